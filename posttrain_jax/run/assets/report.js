"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  /* Elements. Text only ever enters the page through textContent, so what a model wrote stays text. */
  const element = (name, className, ...children) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    for (const child of children) node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    return node;
  };
  const shape = (name, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };

  /* Numbers: about four significant digits, thousands separated, minus sign and exponents where needed. */
  const number = (value) => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("-", "−").replace("e−", "e-");
    const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4;
    return value.toLocaleString("en-US", { maximumFractionDigits: digits }).replace("-", "−");
  };
  const short = (value, step) => {
    const exact = +value.toPrecision(10);
    if (exact === 0) return "0";
    if (step >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
    if (step >= 2500) return `${+(value / 1e3).toPrecision(4)}k`;
    return (step < 1e-3 ? exact.toExponential() : String(exact)).replace(/^-/, "−");
  };
  const ticks = (low, high, wanted) => {
    const rough = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
    return found;
  };

  /* Curves. */
  const WIDTH = 340, HEIGHT = 180, LEFT = 42, RIGHT = 14, TOP = 8, BOTTOM = 22;
  /* The mean of a window centred on each point, down to half as wide at the ends, so it does not lag. */
  const smoothed = (values) => {
    const reach = Math.ceil(values.length / 40);
    return values.map((_, i) => {
      const side = Math.max(Math.min(reach, i, values.length - 1 - i), Math.ceil(reach / 2));
      const window = values.slice(Math.max(i - side, 0), i + side + 1);
      return window.reduce((sum, value) => sum + value, 0) / window.length;
    });
  };
  const nearest = (steps, step) => {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
  };
  const bounds = (values) => {
    let low = Math.min(...values), high = Math.max(...values);
    if (low > 0 && low < 0.6 * high) low = 0;
    if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) * 0.5, high + Math.abs(high) * 0.5];
    const marks = ticks(low, high, 4), step = marks.length > 1 ? marks[1] - marks[0] : high - low;
    return [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step];
  };

  const drawChart = (chart, limits, point) => {
    const { steps, values } = chart;
    const last = values.length - 1;
    const [low, high] = bounds(values);
    const x = (step) => LEFT + ((step - limits[0]) / Math.max(limits[1] - limits[0], 1)) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const line = (heights) => heights.map((value, i) => `${i ? "L" : "M"}${x(steps[i]).toFixed(1)} ${y(value).toFixed(1)}`).join("");

    const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
      "aria-label": `${chart.title}: from ${number(values[0])} at step ${steps[0]} to ${number(values[last])} at step ${steps[last]}` });
    const marks = ticks(low, high, 4);
    for (const mark of marks) {
      svg.append(shape("line", { class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: y(mark), y2: y(mark) }));
      svg.append(shape("text", { x: LEFT - 7, y: y(mark) + 4, "text-anchor": "end" }, short(mark, marks[1] - marks[0])));
    }
    for (const mark of ticks(limits[0], limits[1] > limits[0] ? limits[1] : limits[0] + 1, 5)) {
      if (!Number.isInteger(mark)) continue;
      svg.append(shape("text", { x: x(mark), y: HEIGHT - 4, "text-anchor": "middle" }, short(mark, mark)));
    }
    const noisy = values.length > 20 && chart.smooth;
    svg.append(shape("path", { class: noisy ? "raw thin" : "raw", d: line(values) }));
    if (noisy) svg.append(shape("path", { class: "smooth", d: line(smoothed(values)) }));
    if (values.length === 1) svg.append(shape("circle", { class: "dot", cx: x(steps[0]), cy: y(values[0]), r: 3 }));
    const cursor = shape("g", { visibility: "hidden" });
    const rule = shape("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    const dot = shape("circle", { class: "dot", r: 4 });
    cursor.append(rule, dot);
    svg.append(cursor);

    const readout = element("output", "", number(values[last]));
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * WIDTH;
      point(limits[0] + ((place - LEFT) / (WIDTH - LEFT - RIGHT)) * (limits[1] - limits[0]));
    });
    svg.addEventListener("pointerleave", () => point(null));
    const show = (step) => {
      cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
      const i = step === null ? last : nearest(steps, step);
      readout.textContent = step === null ? number(values[i]) : `step ${steps[i]}: ${number(values[i])}`;
      rule.setAttribute("x1", x(steps[i]));
      rule.setAttribute("x2", x(steps[i]));
      dot.setAttribute("cx", x(steps[i]));
      dot.setAttribute("cy", y(values[i]));
    };
    const head = element("header", "", element("h3", "", chart.title), element("span", "", chart.unit), readout);
    return [element("figure", "card chart", head, svg), show];
  };

  /* The charts of a stage share their x axis and their cursor. */
  for (const { name, title, charts } of data.curves) {
    const limits = [Math.min(...charts.map((c) => c.steps[0])), Math.max(...charts.map((c) => c.steps.at(-1)))];
    const shows = [];
    const point = (step) => shows.forEach((show) => show(step));
    const grid = element("div", "charts");
    for (const chart of charts) {
      const [figure, show] = drawChart(chart, limits, point);
      shows.push(show);
      grid.append(figure);
    }
    const section = element("section", "", element("h2", "", title, element("small", "", `by step, up to ${limits[1]}`)), grid);
    section.id = `curves-${name}`;
    byId("curves").append(section);
  }

  /* Samples. */
  const samples = data.samples;
  const filters = { stage: byId("stage"), task: byId("task"), result: byId("result") };
  const property = {
    stage: (sample) => sample.stage,
    task: (sample) => sample.task,
    result: (sample) => (sample.correct ? "correct" : "incorrect"),
  };
  let chosen = samples, index = 0;

  const field = (title, text, className) => {
    const box = element("div", `field ${className || ""}`, element("h3", "", title));
    const missing = text === null || text === undefined || text === "";
    box.append(element("pre", missing ? "empty" : "", missing ? "none" : text));
    return box;
  };
  const folded = (title, text) => element("details", "", element("summary", "", title), element("pre", "", text));
  const message = ({ role, thinking, said, calls }) => {
    const box = element("div", `message ${role === "assistant" ? "own" : ""}`, element("h3", "", role ?? "?"));
    if (thinking) box.append(folded("thinking", thinking));
    if (said) box.append(element("pre", "", said));
    if (calls) box.append(folded("tool calls", calls));
    return box;
  };
  const tag = (name, value) => element("span", "", `${name} `, element("b", "", typeof value === "number" ? number(value) : value));
  const draw = () => {
    byId("position").textContent = chosen.length ? `${index + 1} of ${chosen.length}` : "none";
    byId("previous").disabled = index <= 0;
    byId("next").disabled = index >= chosen.length - 1;
    if (!chosen.length) return byId("sample").replaceChildren(element("p", "note", "No sample matches these filters."));
    const sample = chosen[index];
    const good = sample.correct ? "good" : "bad";
    const tags = element("div", "tags", element("span", `badge ${good}`, sample.correct ? "correct" : "incorrect"));
    for (const key of ["stage", "step", "task", "level", "reward", "tokens", "finish"]) {
      if (sample[key] !== undefined && sample[key] !== null) tags.append(tag(key === "finish" ? "ended by" : key, sample[key]));
    }
    const answers = element("div", "pair", field("Answer", sample.answer, `answer ${good}`), field("Expected", sample.expected));
    const whole = element("details", "", element("summary", "", "Whole response, as sampled"), element("pre", "", sample.response ?? ""));
    const talk = (sample.messages ?? []).map(message);
    const said = talk.length ? talk : [field("Prompt", sample.prompt), field("Thinking", sample.reasoning, "thinking"), answers];
    byId("sample").replaceChildren(tags, ...said, whole);
  };
  const turn = (by) => {
    const to = Math.min(Math.max(index + by, 0), Math.max(chosen.length - 1, 0));
    if (to !== index) { index = to; draw(); }
  };
  const filter = () => {
    chosen = samples.filter((sample) => Object.entries(filters).every(
      ([key, select]) => select.selectedIndex <= 0 || String(property[key](sample)) === select.value));
    index = 0;
    draw();
  };
  if (samples.length) {
    for (const [key, select] of Object.entries(filters)) {
      const counts = new Map();
      for (const sample of samples) {
        const value = String(property[key](sample));
        counts.set(value, (counts.get(value) || 0) + 1);
      }
      const option = (value, label) => Object.assign(element("option", "", label), { value });
      select.append(option("", "all"), ...[...counts].sort().map(([value, n]) => option(value, `${value} (${n})`)));
      select.addEventListener("change", filter);
    }
    byId("previous").addEventListener("click", () => turn(-1));
    byId("next").addEventListener("click", () => turn(1));
    document.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || /^(SELECT|INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
      if (event.key === "ArrowLeft") turn(-1);
      if (event.key === "ArrowRight") turn(1);
    });
    byId("browser").hidden = false;
    draw();
  }
})();
