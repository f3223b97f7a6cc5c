"""The templates of GLM-4.6: bilingual code, pairs of preference, one tool call, thinking and its absence."""

from __future__ import annotations

from functools import partial

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

template = partial(Template, family="glm_4_6")
TEMPLATES = (
    template(name="T06", about="SFT: code", needs=CODE),
    template(
        name="T07",
        about="preference: a helpful and a poor response",
        needs={"prompt": "prompt", "preferred_response": "chosen", "dispreferred": "rejected"},
        stage="pref",
    ),
    template(
        name="T08",
        about="a tool call and the answer that makes use of it",
        needs={"query": "prompt", "tool_call": "call"},
        may={"response": "answer", **RESULT},
        stage="agentic",
    ),
    template(name="T09", about="thinking mode: steps and a conclusion", needs=MODE, may=OUTPUT, when=thinks),
    template(name="T10", about="non-thinking mode: no steps", needs=MODE, may=OUTPUT, when=answers_at_once),
    template(name="T20", about="SFT in Chinese and English", needs=CODE, when=bilingual),
    template(
        name="T21",
        about="preference: a response of high quality and an unsafe one",
        needs={"prompt": "prompt", "preferred": "chosen", "dispreferred": "rejected"},
        stage="pref",
    ),
    template(
        name="T22",
        about="a tool call and an integrated response",
        needs={"query": "prompt", "tool_call": "call", "integrated_response": "answer"},
        may=RESULT,
        stage="agentic",
    ),
    template(name="T23", about="thinking mode: proofs, puzzles", needs=MODE, may=OUTPUT, when=thinks),
    template(name="T24", about="non-thinking mode: a direct answer", needs=MODE, may=OUTPUT, when=answers_at_once),
)
