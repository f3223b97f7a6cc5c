"""What a judge reads of an episode: every message that others could see, cut in the middle where it is too long."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from posttrain_jax.chat.format import Message
from posttrain_jax.chat.tokenizer import Tokenizer

VISIBLE = ("role", "content", "tool_calls")


def transcript(messages: Sequence[Message], question: str) -> str:
    """A conversation as JSON, a message a line: answers, calls of tools, their results and what users said.

    Reasoning is left out, and so is what stands before the first answer and is the ``question`` or a system's. In JSON
    no message can end its line and begin another: nobody speaks for a tool or a user but they themselves. More than
    three backticks in a row are escaped, so that they make no fence around the text longer.
    """
    known = itertools.dropwhile(lambda m: m["role"] == "system" or m.get("content") == question, messages)
    text = "\n".join(json.dumps(_visible(message), ensure_ascii=False) for message in known)
    return re.sub("`{4,}", lambda run: "\\u0060" * len(run[0]), text)


def _visible(message: Message) -> dict[str, Any]:
    told = {name: message[name] for name in VISIBLE if message.get(name)}
    if "tool_calls" in told:
        told["tool_calls"] = [call.get("function", call) for call in told["tool_calls"]]
    return told


def cut(text: str, most: int, tokenizer: Tokenizer) -> str:
    """A text of ``most`` tokens at most: beginning and end, and between them a line that tells how many are missing.

    That line alone is left where there is no room for anything.
    """
    tokens = tokenizer.encode(text)
    if len(tokens) <= most:
        return text
    room = max(most, 0)
    while True:
        head, tail = room - room // 2, room // 2
        parts = tokens[:head], tokens[len(tokens) - tail :]
        first, last = (tokenizer.decode(part) for part in parts)
        shorter = "\n".join(filter(None, (first, f"[{len(tokens) - room} tokens left out]", last)))
        over = len(tokenizer.encode(shorter)) - most
        if over <= 0 or not room:
            return shorter
        room = max(room - over, 0)
