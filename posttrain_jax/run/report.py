"""A run as one page: ``report.html``, which needs no network, no server and no other file.

Everything that comes from the run is data to this page. Python escapes what it writes into the HTML; the rest travels
as JSON inside the page and is shown by assets/report.js as text. A content security policy names the page's own script
by its hash and forbids every other, and every connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from posttrain_jax.run.recipe import flatten
from posttrain_jax.run.screen import count, duration

ASSETS = Path(__file__).with_name("assets")
POINTS = 1000  # of a curve, at most
SAMPLES = 500  # trajectories, at most
SAMPLE_BYTES = 2_000_000  # of all trajectories together, at most
CHARACTERS = 2000  # of one text of a trajectory; a longer one loses its middle
MESSAGES = 40  # of an episode; a longer one loses its middle
PARTS = {"role": "role", "thinking": "reasoning_content", "said": "content", "calls": "tool_calls"}
FIELDS = (
    *("stage", "step", "task", "level", "prompt", "response", "reasoning", "answer", "expected", "reward"),
    *("correct", "tokens", "finish"),
)
STAGES = {
    "sft": "Supervised fine-tuning",
    "reward_model": "Reward model",
    "dpo": "Direct preference optimisation",
    "distill": "Self-distillation",
    "rl": "Reinforcement learning",
}
HELDOUT = ("heldout", "heldout_pairs")  # measures between stages, under the same names as stages' records


class Curve(NamedTuple):
    """A metric that is drawn; ``scale`` turns its values into ``unit``."""

    metric: str
    title: str
    unit: str
    scale: float = 1.0
    smooth: bool = True


CURVES = (
    Curve("reward", "Reward", "mean of a response"),
    Curve("pass_rate", "Pass rate", "% of responses", 100.0),
    Curve("response_length", "Response length", "tokens"),
    Curve("score", "Reward model's score", "mean of a response"),
    Curve("score_length", "Score and length", "correlation"),
    Curve("loss", "Loss", "a token"),
    Curve("accuracy", "Pairs in order", "% of pairs", 100.0),
    Curve("margin", "Margin", "chosen over rejected"),
    Curve("entropy", "Entropy", "nats a token"),
    Curve("kl", "KL to the sampler", "nats a token"),
    Curve("mismatch", "Sampler mismatch", "|Δ log π| a token"),
    Curve("clipped", "Clipped weights", "% of tokens", 100.0),
    Curve("level", "Curriculum level", "mean", 1.0, False),
    Curve("cut_off", "Cut off", "% of responses", 100.0),
    Curve("well_formed", "Well-formed", "% of responses", 100.0),
    Curve("grad_norm", "Gradient norm", "before clipping"),
    Curve("learning_rate", "Learning rate", "", 1.0, False),
    Curve("tokens_per_second", "Throughput", "tokens/s"),
)

Records = dict[str, dict[int, dict[str, float]]]  # stage -> step -> metric -> value


def write(workdir: Path | str) -> Path:
    """Builds ``workdir/report.html`` out of whichever of config.json, summary.json, metrics.jsonl, timing.jsonl and
    samples.jsonl are there; what cannot be read in them is left out, and the page says so.

    Returns:
      The path of the page, a file of at most about 3 MB.

    Raises:
      FileNotFoundError: there is no directory ``workdir``.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(f"{workdir}: no such run directory")
    damage: list[str] = []
    config, summary = (_object(workdir / name, damage) for name in ("config.json", "summary.json"))
    records = _records([workdir / "metrics.jsonl", workdir / "timing.jsonl"], damage)
    shown = summary.get("samples")
    samples = [s for s in shown if isinstance(s, Mapping)] if isinstance(shown, list) else []
    samples += _spread(workdir / "samples.jsonl", SAMPLES - len(samples), damage)
    data = {"curves": _curves(config, records), "samples": _fit([_sample(s) for s in samples])}

    style, script = ((ASSETS / name).read_text("utf-8") for name in ("report.css", "report.js"))
    names = ("name", "scale")
    title = " ".join(str(config[name]) for name in names if name in config) or workdir.resolve().name
    results = _results(config, summary, records)
    nothing = not (results or data["curves"] or data["samples"])
    parts = {
        "policy": f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'",
        "title": escape(f"{title}, seed {config['seed']}" if "seed" in config else title),
        "state": "good" if summary else "",
        "status": escape(_status(summary, records)),
        "facts": _facts(config, summary, records),
        "results": results,
        "configuration": _configuration(config),
        "notes": "".join(
            f'<p class="note">{escape(note)}</p>' for note in damage + ["Nothing recorded yet."] * nothing
        ),
        "style": style,
        "script": script,
        "data": _embed(data),
    }
    page = re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], (ASSETS / "report.html").read_text("utf-8"))
    path = workdir / "report.html"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(page.encode("utf-8", errors="replace"))
    partial.replace(path)
    return path


def thin(steps: Sequence[int], values: Sequence[float], most: int = POINTS) -> tuple[list[int], list[float]]:
    """At most ``most`` points of a curve: its ends, and the lowest and highest of each stretch, so no spike is lost."""
    if len(steps) <= most:
        return list(steps), list(values)
    stretches = (most - 2) // 2
    inner = len(steps) - 2
    kept = {0, len(steps) - 1}
    for i in range(stretches):
        stretch = range(1 + i * inner // stretches, 1 + (i + 1) * inner // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return [steps[i] for i in sorted(kept)], [values[i] for i in sorted(kept)]


def _embed(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _object(path: Path, damage: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    damage.append(f"{path.name} could not be read.")
    return {}


def _lines(path: Path, damage: list[str], wanted: frozenset[int] | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, or of its ``wanted`` lines; a run that was killed may have left half a line."""
    if not path.exists():
        return
    unread = 0
    with path.open("rb") as file:
        for i, line in enumerate(file):
            if wanted is not None and i not in wanted:
                continue
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if isinstance(found, dict):
                yield found
            else:
                unread += 1
    if unread:
        damage.append(f"{path.name}: {unread} {'line' if unread == 1 else 'lines'} could not be read.")


def _records(paths: Sequence[Path], damage: list[str]) -> Records:
    records: Records = {}
    for path in paths:
        for line in _lines(path, damage):
            stage, step = line.pop("stage", None), line.pop("step", None)
            if isinstance(stage, str) and _finite(step):
                numbers = {name: value for name, value in line.items() if _finite(value)}
                records.setdefault(stage, {}).setdefault(int(step), {}).update(numbers)
    return records


def _spread(path: Path, most: int, damage: list[str]) -> list[dict[str, Any]]:
    """At most ``most`` objects of a JSONL file, evenly from its first line to its last."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        total = sum(1 for _ in file)
    wanted = None if total <= most else frozenset(i * (total - 1) // (most - 1) for i in range(most))
    return list(_lines(path, damage, wanted))


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    def clean(value: Any) -> Any:
        if value is None or isinstance(value, bool) or _finite(value):
            return value
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        left_out = len(text) - CHARACTERS
        if left_out <= 0:
            return text
        return f"{text[: CHARACTERS // 2]}\n… {left_out:,} characters left out …\n{text[-CHARACTERS // 2 :]}"

    shown = {name: clean(sample[name]) for name in FIELDS if name in sample}
    messages = sample.get("messages")
    if isinstance(messages, list):  # of an episode: what was said, in parts that can be folded
        said = [message for message in messages if isinstance(message, Mapping)]
        if len(said) > MESSAGES:
            between = {"role": "", "content": f"… {len(said) - MESSAGES:,} messages left out …"}
            said = [*said[: MESSAGES // 2], between, *said[-MESSAGES // 2 :]]
        shown["messages"] = [
            {part: clean(message[name]) for part, name in PARTS.items() if message.get(name)} for message in said
        ]
    return shown


def _fit(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    while len(_embed(samples).encode("utf-8", errors="replace")) > SAMPLE_BYTES:
        samples = samples[::2]
    return samples


def _phases(config: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """The kind and the steps of each stage of a stored configuration, in order."""
    given = config.get("phases") or {}
    found = {}
    for name in config.get("stages") or STAGES:
        own = given.get(name) or {}
        kind = own.get("kind", name)
        found[name] = kind, {**(config.get(kind) or {}), **(own.get(kind) or {})}.get("steps", "?")
    return found


def _titled(name: str, kind: str) -> str:
    """What the page calls a stage."""
    return STAGES.get(kind, name) if name == kind else f"{name}: {STAGES.get(kind, kind)}"


def _curves(config: Mapping[str, Any], records: Records) -> list[dict[str, Any]]:
    stages, phases = [], _phases(config)
    for stage in sorted(set(records) - set(HELDOUT), key=lambda name: (*phases, name).index(name)):
        charts = []
        for metric, title, unit, scale, smooth in CURVES:
            found = [(step, numbers[metric]) for step, numbers in sorted(records[stage].items()) if metric in numbers]
            if found:
                steps, values = thin([step for step, _ in found], [value for _, value in found])
                rounded = [float(f"{value * scale:.5g}") for value in values]
                charts.append({"title": title, "unit": unit, "smooth": smooth, "steps": steps, "values": rounded})
        if charts:
            title = _titled(stage, phases.get(stage, (stage, 0))[0])
            stages.append({"name": stage, "title": title, "charts": charts})
    return stages


def _status(summary: Mapping[str, Any], records: Records) -> str:
    if summary:
        return "finished"
    reached = [(stage, max(steps)) for stage, steps in records.items() if stage not in HELDOUT]
    return f"not finished: {reached[-1][0]} step {reached[-1][1]}" if reached else "not finished"


def _facts(config: Mapping[str, Any], summary: Mapping[str, Any], records: Records) -> str:
    model, seconds = summary.get("model") or {}, summary.get("seconds") or {}
    stages = [(name, steps) for name, (_, steps) in _phases(config).items()] if config.get("stages") else []
    skipped = sum(int(max((n.get("skipped", 0) for n in steps.values()), default=0)) for steps in records.values())
    facts = {
        "Model": model and f"{count(model['parameters'])} parameters, {count(model['active'])} active on a token",
        "Devices": summary.get("devices"),
        "Stages": " → ".join(f"{stage}, {steps} steps" for stage, steps in stages),
        "Held-out pairs": ", ".join(
            f"{100 * value:.1f} % in the right order" for value in (summary.get("pair_accuracy") or {}).values()
        ),
        "Time": ", ".join(f"{stage} {duration(value)}" for stage, value in seconds.items()),
        "First step after": summary.get("first_step_seconds") and duration(summary["first_step_seconds"]),
        "Skipped updates": skipped and f"{skipped} (not finite)",
        "Versions": ", ".join(f"{name} {version}" for name, version in (summary.get("versions") or {}).items()),
    }
    return "".join(f"<div><dt>{name}</dt><dd>{escape(str(v))}</dd></div>" for name, v in facts.items() if v)


def _heldout(
    config: Mapping[str, Any], summary: Mapping[str, Any], records: Records
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """pass@1 by stage, and by stage and task: of summary.json, or else as far as metrics.jsonl goes."""
    if summary.get("heldout"):
        return summary["heldout"], summary.get("per_task") or {}
    names = ("base", *(name for name, (kind, _) in _phases(config).items() if kind != "reward_model"))
    found = {names[i]: dict(n) for i, n in sorted(records.get("heldout", {}).items()) if i < len(names)}
    overall = {stage: numbers.pop("pass@1") for stage, numbers in found.items() if "pass@1" in numbers}
    return overall, found


def _results(config: Mapping[str, Any], summary: Mapping[str, Any], records: Records) -> str:
    overall, per_task = _heldout(config, summary, records)
    if not overall:
        return ""
    problems = (config.get("evaluation") or {}).get("problems")
    cards, before = [], None
    for i, (stage, value) in enumerate(overall.items()):
        gain = "" if before is None else _gain(value - before, "span", " points")
        number = f"<b>{100 * value:.1f}<small>%</small></b>"
        meter = (
            f'<svg class="meter"><rect width="{100 * value:.2f}%" height="6" rx="3" {_fill(i, len(overall))}/></svg>'
        )
        interval = f"<p>95 % interval {_interval(value, problems)}</p>" if problems else ""
        cards.append(f'<div class="card score">{gain}<h3>{_after(stage)}</h3>{number}{meter}{interval}</div>')
        before = value
    note = f"<small>greedy, on {problems} problems kept out of training</small>" if problems else ""
    return (
        f'<section><h2>Held-out pass@1{note}</h2><div class="scores">{"".join(cards)}</div>'
        f"{_tasks(list(overall), per_task)}</section>"
    )


def _tasks(stages: list[str], per_task: Mapping[str, Mapping[str, float]]) -> str:
    stages = [stage for stage in stages if per_task.get(stage)]
    if not stages:
        return ""
    last = per_task[stages[-1]]
    rows = []
    for task in sorted(last, key=lambda name: (-last[name], name)):
        scores = [per_task[stage].get(task, math.nan) for stage in stages]
        cells = "".join(f"<td>{'–' if math.isnan(s) else f'{100 * s:.0f}'}</td>" for s in scores)
        known = [(i, s) for i, s in enumerate(scores) if not math.isnan(s)]
        ends = [100 * s for _, s in known]
        dots = "".join(f'<circle cx="{100 * s:.1f}%" cy="7" r="4.5" {_fill(i, len(stages))}/>' for i, s in known)
        path = (
            '<svg><line class="track" x1="0" x2="100%" y1="7" y2="7"/>'
            f'<line class="span" x1="{min(ends):.1f}%" x2="{max(ends):.1f}%" y1="7" y2="7"/>{dots}</svg>'
        )
        gain = _gain(scores[-1] - scores[0], "td") if len(stages) > 1 and len(ends) == len(stages) else "<td></td>"
        rows.append(f'<tr><td>{escape(task)}</td>{cells}{gain}<td class="path">{path}</td></tr>')
    heads = "".join(f"<th>{escape('Base' if s == 'base' else s.upper())}</th>" for s in stages)
    scale = '<th class="path"><span><i>0</i><i>50</i><i>100 %</i></span></th>'
    return (
        f'<div class="card scroll"><table><thead><tr><th>Task</th>{heads}<th>Gain</th>{scale}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _after(stage: str) -> str:
    return "Base" if stage == "base" else f"After {escape(stage.upper())}"


def _fill(position: int, of: int) -> str:
    return f'class="fill{0 if position == 0 else 2 if position == of - 1 else 1}"'


def _gain(value: float, tag: str, unit: str = "") -> str:
    points = f"{100 * value:+.1f}" if unit else f"{100 * value:+.0f}"
    direction = "up" if value > 0 else "down" if value < 0 else "muted"
    return f'<{tag} class="gain {direction}">{points.replace("-", "−")}{unit}</{tag}>'


def _interval(share: float, problems: int) -> str:
    """Wilson's score interval of a share of ``problems`` trials (1927), at 95 %."""
    z = 1.96
    centre = (share + z * z / (2 * problems)) / (1 + z * z / problems)
    half = z / (1 + z * z / problems) * math.sqrt(share * (1 - share) / problems + (z / (2 * problems)) ** 2)
    return f"{max(0, 100 * (centre - half)):.1f}–{min(100, 100 * (centre + half)):.1f} %"


def _configuration(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    general = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    sections = {"general": general, **{name: value for name, value in config.items() if name not in general}}
    cards = []
    for name, section in sections.items():
        rows = "".join(
            f"<tr><td>{escape(key)}</td><td>{escape(value if isinstance(value, str) else json.dumps(value))}</td></tr>"
            for key, value in flatten(section).items()
        )
        cards.append(f'<div class="card"><h3>{escape(name)}</h3><table><tbody>{rows}</tbody></table></div>')
    return (
        '<details class="configuration"><summary>Configuration</summary>'
        f'<div class="sections">{"".join(cards)}</div></details>'
    )
