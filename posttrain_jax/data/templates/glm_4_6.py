"""The templates of GLM-4.6: bilingual code, pairs of preference, one tool call, thinking and its absence."""

from __future__ import annotations

from posttrain_jax.data.templates.template import Fields, Template


def bilingual(fields: Fields) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in f"{fields.get('input')}{fields.get('output')}")


def thinks(fields: Fields) -> bool:
    return not str(fields.get("mode")).lower().startswith("no")


def answers_at_once(fields: Fields) -> bool:
    return not thinks(fields)


CODE = {"input": "prompt", "output": "answer"}
MODE = {"prompt": "prompt", "mode": "mode"}
OUTPUT = {"output": "answer"}
RESULT = {"tool_response": "result"}

TEMPLATES = tuple(
    Template(family="glm_4_6", **given)
    for given in (
        dict(name="T06", about="SFT: code", needs=CODE),
        dict(
            name="T07",
            about="preference: a helpful and a poor response",
            needs={"prompt": "prompt", "preferred_response": "chosen", "dispreferred": "rejected"},
            stage="pref",
        ),
        dict(
            name="T08",
            about="a tool call and the answer that makes use of it",
            needs={"query": "prompt", "tool_call": "call"},
            may={"response": "answer", **RESULT},
            stage="agentic",
        ),
        dict(name="T09", about="thinking mode: the steps and their conclusion", needs=MODE, may=OUTPUT, when=thinks),
        dict(name="T10", about="non-thinking mode: no steps", needs=MODE, may=OUTPUT, when=answers_at_once),
        dict(name="T20", about="SFT in Chinese and English", needs=CODE, when=bilingual),
        dict(
            name="T21",
            about="preference: a response of high quality and an unsafe one",
            needs={"prompt": "prompt", "preferred": "chosen", "dispreferred": "rejected"},
            stage="pref",
        ),
        dict(
            name="T22",
            about="a tool call and an integrated response",
            needs={"query": "prompt", "tool_call": "call", "integrated_response": "answer"},
            may=RESULT,
            stage="agentic",
        ),
        dict(name="T23", about="thinking mode: proofs, puzzles", needs=MODE, may=OUTPUT, when=thinks),
        dict(name="T24", about="non-thinking mode: a direct answer", needs=MODE, may=OUTPUT, when=answers_at_once),
    )
)
