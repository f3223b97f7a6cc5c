"""How far do judges agree with people, and with themselves when the answers change places?

Pairs with people's choices: MT-Bench's (one each, as LLMBar gives them) and OpenAssistant's best and worst ranked
sibling answers. Every pair is asked in both orders over HTTP, as RL asks a judge elsewhere. With --url that judge
answers; without, judges that need no trained model, served here: the longer answer, a coin, always the first, and a
tiny model with random weights, which shows no more than that the path holds.

    python benchmarks/judges.py --data=DIR [--url=http://host/v1/chat/completions --model=NAME --key=VARIABLE]
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import measure

Say = Callable[[list[dict[str, Any]], int], str]


class Pair(NamedTuple):
    """Two answers; ``label`` is +1 where people chose the first, else -1."""

    question: str
    a: str
    b: str
    label: int


def main() -> None:
    """Every judge on every set of pairs."""
    parser = measure.parser(__doc__, "judges")
    parser.add_argument("--data", type=Path, required=True, help="holds llmbar/ and oasst/")
    parser.add_argument("--url", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--key", default="", help="environment variable that holds the judge's key")
    parser.add_argument("--pairs", type=int, default=200, help="at most so many of each set")
    parser.add_argument("--engine-pairs", type=int, default=8, help="of them for the tiny model")
    parser.add_argument("--cache", type=Path, help="file of answers already given; with --url")
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    measure.start(options.cores)
    sets = {"mt_bench": mt_bench(options.data), "oasst": oasst(options.data)}
    for pairs in sets.values():
        random.Random(0).shuffle(pairs)
    found: dict[str, dict[str, Any]] = {}
    if options.url:
        key = os.environ[options.key] if options.key else ""
        found[options.model or options.url] = judged(
            options.url, sets, options.pairs, options.model, key, options.cache
        )
    else:
        with random_model() as tiny:
            judges = {"longer": longer, "coin": coin, "first": lambda *_: "Verdict: A", "random weights": tiny}
            for name, say in judges.items():
                most = options.engine_pairs if name == "random weights" else options.pairs
                with serving(say) as url:
                    found[name] = judged(url, sets, most)
    rows = [
        (name, which, *(numbers[c] for c in ("pairs", "agreement", "consistent", "first", "malformed")))
        for name, by_set in found.items()
        for which, numbers in by_set.items()
    ]
    columns = ("judge", "pairs of", "pairs", "agreement", "consistent", "says first", "malformed")
    measure.show("judges beside people", columns, rows)
    measure.write(options.output, {"judges": found})


def judged(
    url: str, sets: dict[str, list[Pair]], most: int, model: str = "", key: str = "", cache: Path | None = None
) -> dict[str, dict[str, float | None]]:
    """A judge's numbers on each set of pairs."""
    from posttrain_jax.rewards.judges.endpoint import Endpoint
    from posttrain_jax.rewards.judges.judge import Prompted

    with Endpoint(url, model=model, max_tokens=1024, key=key, cache=cache) as endpoint:
        judge = Prompted(endpoint.ask)
        return {name: asyncio.run(numbers(judge, pairs[:most])) for name, pairs in sets.items()}


async def numbers(judge: Any, pairs: list[Pair]) -> dict[str, float | None]:
    """Shares: choices that are people's (ties, and verdicts that do not turn, ½), verdicts that turn with the order of
    those with two, verdicts for whoever came first of those that chose, pairs with a malformed answer."""
    from posttrain_jax.rewards.judges.rubrics import GENERAL
    from posttrain_jax.rewards.judges.self_critique import outcome

    straight, swapped = await asyncio.gather(
        asyncio.gather(*(judge.compare(p.question, p.a, p.b, GENERAL, 0) for p in pairs)),
        asyncio.gather(*(judge.compare(p.question, p.b, p.a, GENERAL, 1) for p in pairs)),
    )
    outcomes = [outcome(*both) for both in zip(straight, swapped, strict=True)]
    scores = [(one.score, pair.label) for one, pair in zip(outcomes, pairs, strict=True) if one.score is not None]
    agreed = [score if label > 0 else 1 - score for score, label in scores]
    turned = [one.consistent for one in outcomes if one.consistent is not None]
    chosen = [one.verdict for one in (*straight, *swapped) if one.verdict]
    return {
        "pairs": len(pairs),
        "agreement": sum(agreed) / len(agreed),
        "consistent": sum(turned) / len(turned) if turned else None,
        "first": sum(verdict > 0 for verdict in chosen) / len(chosen) if chosen else None,
        "malformed": sum(bool(one.malformed) for one in outcomes) / len(outcomes),
    }


def mt_bench(data: Path) -> list[Pair]:
    """MT-Bench answers of which people preferred one."""
    rows = records(data / "llmbar" / "mt_bench_human_pairs.jsonl.gz")
    return [Pair(r["input"], r["output_1"], r["output_2"], 1 if r["label"] == 1 else -1) for r in rows]


def oasst(data: Path) -> list[Pair]:
    """First prompts of OpenAssistant's trees with the best and the worst ranked answer, in either order."""
    pairs = []
    for number, tree in enumerate(records(data / "oasst" / "trees_a.jsonl.gz")):
        ranked = sorted((r for r in tree["prompt"]["replies"] if r.get("rank") is not None), key=lambda r: r["rank"])
        if len(ranked) > 1:
            best, worst = ranked[0]["text"], ranked[-1]["text"]
            question, first = tree["prompt"]["text"], number % 2 == 0
            pairs.append(Pair(question, best, worst, 1) if first else Pair(question, worst, best, -1))
    return pairs


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl.gz."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def longer(messages: list[dict[str, Any]], seed: int) -> str:
    """The longer answer wins."""
    text = messages[-1]["content"]
    fence = text.split("\n")[1]
    _, a, b = (part.strip() for part in text.split(fence)[1::2])
    return f"Verdict: {'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'tie'}"


def coin(messages: list[dict[str, Any]], seed: int) -> str:
    """One or the other."""
    return f"Verdict: {random.Random(json.dumps([messages, seed])).choice('AB')}"


@contextlib.contextmanager
def random_model() -> Iterator[Say]:
    """The tiny model before any training, behind the engine's service."""
    from flax import nnx

    from posttrain_jax.rollout.request import Request
    from posttrain_jax.rollout.service import Service
    from posttrain_jax.stages.setup import make_chat, make_engine, make_model

    recipe = measure.recipe("tiny", "model.max_length=4096")
    chat = make_chat(recipe)
    engine = make_engine(recipe, chat, max_prompt=512, max_response=64, read_chunk=512)
    with Service(engine, engine.load(nnx.state(make_model(recipe)()))) as service:

        def say(messages: list[dict[str, Any]], seed: int) -> str:
            prompt = chat.encode(messages, add_generation_prompt=True)[0][-500:]
            completion = service.submit(Request(prompt, seed, 32)).result()
            return chat.parse(chat.tokenizer.decode(completion.tokens.tolist()))["content"]

        yield say


@contextlib.contextmanager
def serving(say: Say) -> Iterator[str]:
    """The URL of a server of chat completions whose model is ``say``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": say(asked["messages"], asked["seed"])}
            body = json.dumps({"choices": [{"message": message}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    os.environ["no_proxy"] = "127.0.0.1"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
