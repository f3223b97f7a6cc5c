"""posttrain_jax.run.report: one page that opens anywhere, from whatever a run has left; only its own script runs."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from posttrain_jax.run import report

IMAGE = "<img src=x onerror='document.title=1'>"
HOSTILE = f"</script x><script>document.title=1</script>{IMAGE}<!--<script &amp;{{{{script}}}}"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")


class Page(HTMLParser):
    """What a browser would make of the page: its elements, and the text inside those that hold scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.scripts += [""] * (tag == "script")

    def handle_data(self, data):
        self.text += data
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


def lines(path, objects, tail=""):
    path.write_text("".join(json.dumps(o) + "\n" for o in objects) + tail)


def sample(step, **changes):
    base = {"stage": "rl", "step": step, "task": "gcd", "level": 1, "prompt": f"question {step}", "response": "r"}
    judged = {"reasoning": "because", "answer": "3", "expected": "3", "reward": 1.0, "correct": True, "tokens": 9}
    return {**base, **judged, "finish": "stop", **changes}


@pytest.fixture
def workdir(tmp_path):
    """A small finished run whose model has written what it could to break the page."""
    config = {"name": "tiny", "seed": 3, "stages": ["sft", "rl"], "evaluation": {"problems": 100}, "sft": {"steps": 4}}
    config["tasks"] = {"system": HOSTILE}
    (tmp_path / "config.json").write_text(json.dumps(config))
    metrics = [{"stage": "sft", "step": i, "loss": 4.0 / i, "skipped": float(i == 4)} for i in range(1, 5)]
    metrics += [{"stage": "rl", "step": i, "pass_rate": 0.25 * i, "kl": float("nan")} for i in range(1, 4)]
    lines(tmp_path / "metrics.jsonl", metrics, '{"stage": "rl", "step": 4, "pass_')
    lines(tmp_path / "timing.jsonl", [{"stage": "rl", "step": i, "tokens_per_second": 10.0 * i} for i in range(1, 4)])
    wrong = sample(2, prompt=HOSTILE, reasoning=HOSTILE, answer=HOSTILE, task=HOSTILE, correct=False)
    lines(tmp_path / "samples.jsonl", [sample(1), wrong, sample(3, task="lcm")])
    heldout = {"base": 0.0, "sft": 0.5, "rl": 0.45}
    per_task = {stage: {"gcd": value, HOSTILE: value} for stage, value in heldout.items()}
    model = {"parameters": 2_000_000, "active": 1_000_000}
    summary = {"heldout": heldout, "per_task": per_task, "model": model, "devices": HOSTILE, "seconds": {"total": 75.0}}
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "samples": [sample(0, stage="heldout")]}))
    return tmp_path


def test_the_page_holds_the_run_and_nothing_from_elsewhere(workdir):
    path = report.write(workdir)
    text = path.read_text("utf-8")
    page = Page(text)
    assert path == workdir / "report.html" and sorted(p.name for p in workdir.glob("*report*")) == ["report.html"]
    for words in ("tiny, seed 3", "finished", "2 M parameters", "1:15", "50.0", "+50.0 points", "−5.0 points"):
        assert words in page.text, words
    assert "1 (not finite)" in page.text
    assert "40.4–59.6 %" in page.text  # Wilson's interval of 50 in 100
    assert not [attrs for _, attrs in page.elements if {"src", "href", "action", "style"} & set(attrs)]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|innerHTML", text)
    assert "metrics.jsonl: 1 line could not be read" in page.text


def test_what_a_model_wrote_stays_text(workdir):
    page = Page(report.write(workdir).read_text("utf-8"))
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert "img" not in {tag for tag, _ in page.elements}
    assert page.data["samples"][2]["answer"] == HOSTILE
    assert page.text.count(HOSTILE) >= 3  # the configuration, the devices and the table of tasks


def test_an_episode_keeps_its_messages_apart_and_a_long_one_its_ends(tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"item": HOSTILE}}}
    said = {"role": "assistant", "content": "", "reasoning_content": "so", "tool_calls": [call]}
    turns = [[said, {"role": "tool", "content": f"result {i}"}] for i in range(60)]
    flat = [{"role": "user", "content": HOSTILE}, *(message for turn in turns for message in turn)]
    lines(tmp_path / "samples.jsonl", [sample(1, task="shop", messages=flat), sample(2)])
    (tmp_path / "config.json").write_text("{}")
    page = Page(report.write(tmp_path).read_text())
    shown = {s["step"]: s for s in page.data["samples"]}
    messages = shown[1]["messages"]
    assert messages[0] == {"role": "user", "said": HOSTILE} and messages[-1] == {"role": "tool", "said": "result 59"}
    assert messages[1]["thinking"] == "so" and json.loads(messages[1]["calls"]) == [call]
    assert len(messages) == 41 and "81 messages left out" in messages[20]["said"] and "messages" not in shown[2]


def test_curves(workdir):
    sft, rl = Page(report.write(workdir).read_text("utf-8")).data["curves"]
    assert [stage["name"] for stage in (sft, rl)] == ["sft", "rl"]
    assert sft["charts"][0] == {
        "title": "Loss",
        "unit": "a token",
        "smooth": True,
        "steps": [1, 2, 3, 4],
        "values": [4.0, 2.0, 1.3333, 1.0],
    }
    values = {chart["title"]: chart["values"] for chart in rl["charts"]}
    assert values == {"Pass rate": [25.0, 50.0, 75.0], "Throughput": [10.0, 20.0, 30.0]}  # the nan is left out


@pytest.mark.parametrize("missing", ["config.json", "summary.json", "metrics.jsonl", "timing.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("damaged", [None, b"", b'{"a', b"\xff\xfe\x00", b"[1]\n3\n"])
def test_any_file_may_be_missing_or_damaged(workdir, missing, damaged):
    (workdir / missing).unlink()
    if damaged is not None:
        (workdir / missing).write_bytes(damaged)
    page = Page(report.write(workdir).read_text("utf-8"))
    told = damaged is not None and (damaged != b"" or missing.endswith(".json"))
    assert (missing in page.text) == told
    assert page.data["samples"] or page.data["curves"]


def test_a_run_stopped_early_shows_how_far_it_got(workdir):
    (workdir / "summary.json").unlink()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('\n{"stage": "heldout", "step": 0, "pass@1": 0.125, "gcd": 0.25}\n')
    text = Page(report.write(workdir).read_text("utf-8")).text
    assert "not finished: rl step 3" in text
    assert "12.5" in text and "gcd" in text and "After" not in text


def test_an_empty_directory_and_none(tmp_path):
    assert "Nothing recorded yet." in report.write(tmp_path).read_text("utf-8")
    with pytest.raises(FileNotFoundError, match="no such run directory"):
        report.write(tmp_path / "gone")


def test_a_large_run_stays_small(tmp_path):
    steps = range(1, 6001)
    numbers = {curve.metric: 0.123456789 for curve in report.CURVES}
    lines(tmp_path / "metrics.jsonl", [{"stage": s, "step": i, **numbers} for s in ("sft", "rl") for i in steps])
    long = "ÿ<" * 10_000
    lines(tmp_path / "samples.jsonl", [sample(i, prompt=long, reasoning=long, response=long) for i in range(700)])
    path = report.write(tmp_path)
    data = Page(path.read_text("utf-8")).data
    assert path.stat().st_size < 3_000_000
    assert max(len(chart["steps"]) for stage in data["curves"] for chart in stage["charts"]) <= report.POINTS
    assert 50 < len(data["samples"]) <= report.SAMPLES
    assert data["samples"][0]["step"] == 0 and data["samples"][-1]["step"] > 680
    assert "characters left out" in data["samples"][0]["prompt"]


@pytest.mark.parametrize("length", [1, 2, 999, 1000, 1001, 1999, 12345])
def test_thinning_keeps_ends_spikes_and_order(length):
    values = [0.0] * length
    values[length // 2], values[length // 3] = 9.0, -9.0
    steps, kept = report.thin(range(length), values)
    assert len(steps) == len(kept) <= 1000 and (length > 1000 or len(steps) == length)
    assert (steps[0], steps[-1]) == (0, length - 1) and steps == sorted(set(steps))
    assert [values[step] for step in steps] == kept
    assert {values[length // 2], values[length // 3]} <= set(kept)


def test_lone_surrogates_and_odd_values(tmp_path):
    (tmp_path / "samples.jsonl").write_text(
        '{"stage": "rl", "answer": "\\ud800", "reward": NaN, "step": 1e999, "expected": {"a": [1]}, "correct": null}\n'
    )
    (found,) = Page(report.write(tmp_path).read_text("utf-8")).data["samples"]
    assert found["answer"] == "?" and found["expected"] == '{"a": [1]}' and found["reward"] == "NaN"


def dom(path, tmp_path):
    """The page's document after its scripts have run."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@needs_browser
def test_a_browser_draws_the_page_under_its_own_policy(workdir, tmp_path):
    text = dom(report.write(workdir), tmp_path)
    assert text.count('<figure class="card chart">') == 3
    assert re.search(r'<path class="raw" d="M\d', text)
    assert ">1 of 4</output>" in text and "<pre>question 0</pre>" in text
    assert "<title>tiny, seed 3</title>" in text


DRIVER = """<script>
const seen = [], errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("load", () => {
  const look = () => seen.push(document.getElementById("position").textContent + " "
    + document.querySelector("#sample pre")?.textContent);
  const press = (key) => { document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })); look(); };
  const choose = (id, value) => {
    const select = document.getElementById(id);
    select.value = value;
    select.dispatchEvent(new Event("change"));
    look();
  };
  const click = (id) => { document.getElementById(id).click(); look(); };
  look(); click("next"); press("ArrowRight"); click("previous"); press("ArrowRight"); press("ArrowRight");
  press("ArrowRight"); press("ArrowLeft");
  choose("result", "correct"); choose("task", "lcm"); choose("stage", "heldout");
  const svg = document.querySelector(".chart svg"), box = svg.getBoundingClientRect();
  const at = { clientX: box.right - 4, clientY: box.top + 9, bubbles: true };
  svg.dispatchEvent(new PointerEvent("pointermove", at));
  const hover = document.querySelector(".chart output").textContent;
  const images = document.images.length, title = document.title;
  document.documentElement.dataset.result = JSON.stringify({ seen, errors, hover, images, title });
});
</script>"""


@needs_browser
def test_paging_filters_and_hovering_without_the_policy(workdir, tmp_path):
    text = report.write(workdir).read_text("utf-8")
    unguarded = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', lambda _: DRIVER, text)
    assert unguarded != text
    (workdir / "driven.html").write_text(unguarded, "utf-8")
    document = Page(dom(workdir / "driven.html", tmp_path))
    result = json.loads(dict(document.elements)["html"]["data-result"])
    assert result["errors"] == [] and result["images"] == 0 and result["title"] == "tiny, seed 3"
    assert result["seen"] == [
        "1 of 4 question 0",
        "2 of 4 question 1",
        f"3 of 4 {HOSTILE}",
        "2 of 4 question 1",
        f"3 of 4 {HOSTILE}",
        "4 of 4 question 3",
        "4 of 4 question 3",
        f"3 of 4 {HOSTILE}",
        "1 of 3 question 0",
        "1 of 1 question 3",
        "none undefined",
    ]
    assert result["hover"] == "step 4: 1"
