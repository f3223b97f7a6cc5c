"""The templates of Kimi K2: answers, verified trajectories, synthesised agents, the instruct and thinking variants."""

from __future__ import annotations

from functools import partial

from posttrain_jax.data.templates.template import Fields, Template


def filtered(fields: Fields) -> bool:
    return "safety_filter" in fields


def tested(fields: Fields) -> bool:
    return "unit_test" in fields or isinstance(fields.get("trajectory"), list)


ANSWER = {"prompt": "prompt", "response": "answer"}
VERIFIED = {"task": "prompt", "trajectory": "answer", "reward": "reward"}

template = partial(Template, family="kimi_k2")
TEMPLATES = (
    template(name="T01", about="SFT: an answer in steps", needs=ANSWER),
    template(name="T02", about="RL with a verifiable reward", needs=VERIFIED, stage="rl", calls=True),
    template(
        name="T03",
        about="agentic synthesis: a query, and calls with their responses",
        needs={"tools": "tools", "user": "prompt", "agent": "answer"},
        stage="agentic",
        calls=True,
    ),
    template(name="T04", about="SFT of the instruct variant", needs=ANSWER, variant="instruct"),
    template(
        name="T05",
        about="SFT of the thinking variant: steps of thought, then the answer",
        needs={"prompt": "prompt", "think_steps": "reasoning"},
        may={"output": "answer"},
        variant="thinking",
    ),
    template(name="T15", about="SFT: direct answers, code", needs=ANSWER),
    template(
        name="T16",
        about="RL on problems with a unit test: a trajectory of several steps",
        needs=VERIFIED,
        may={"unit_test": "annotation"},
        stage="rl",
        calls=True,
        when=tested,
    ),
    template(
        name="T17",
        about="agentic trajectory with a rubric's verdict",
        needs={"tools": "tools", "user_sim": "prompt", "agent_actions": "answer"},
        may={"quality_check": "reward"},
        stage="agentic",
        calls=True,
    ),
    template(
        name="T18",
        about="SFT of the instruct variant with safety filters",
        needs=ANSWER,
        may={"safety_filter": "annotation"},
        variant="instruct",
        when=filtered,
    ),
    template(
        name="T19",
        about="SFT of the thinking variant: internal steps",
        needs={"prompt": "prompt", "think": "reasoning"},
        may={"output": "answer", "response": "answer"},
        variant="thinking",
    ),
)
