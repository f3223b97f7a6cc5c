"""The templates of MiniMax M2: plans, weighted sequences, thinking between the parts of an answer, tools."""

from __future__ import annotations

from functools import partial

from posttrain_jax.data.templates.template import Fields, Template


def thinks(fields: Fields) -> bool:
    return "<think>" in str(fields.get("response"))


TASK = {"instruction": "prompt", "response": "answer"}
INTERLEAVED = {"prompt": "prompt", "output": "answer"}

template = partial(Template, family="minimax_m2")
TEMPLATES = (
    template(name="T11", about="SFT: code or a plan", needs=TASK),
    template(
        name="T12",
        about="RL: a whole sequence and its reward",
        needs={"sequence": "answer", "reward": "reward"},
        may={"prompt": "prompt"},
        stage="rl",
        calls=True,
    ),
    template(name="T13", about="SFT: thinking between the parts of an answer", needs=INTERLEAVED),
    template(
        name="T14",
        about="an agent's search: tools, thinking, result",
        needs={"tools": "tools", "prompt": "prompt", "output": "answer"},
        stage="agentic",
        calls=True,
    ),
    template(name="T25", about="SFT: a response with its thinking", needs=TASK, when=thinks),
    template(
        name="T26",
        about="RL: a trajectory and the weight that it gets",
        needs={"sequence": "answer", "optimization": "reward"},
        may={"prompt": "prompt"},
        stage="rl",
        calls=True,
    ),
    template(name="T27", about="SFT: an agent's work with thinking between its steps", needs=INTERLEAVED),
    template(
        name="T28",
        about="tool calling: a task to run",
        needs={"tools": "tools", "prompt": "prompt"},
        may={"output": "answer"},
        stage="agentic",
        calls=True,
    ),
)
