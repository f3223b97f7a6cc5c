"""A page with some records, to be read by a person."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}
details{border:1px solid #ddd;border-radius:8px;margin:.6rem 0;padding:.4rem .8rem}
summary{cursor:pointer}
.m{margin:.4rem 0;padding:.3rem .7rem;border-left:4px solid #bbb;white-space:pre-wrap;overflow-wrap:anywhere}
.system{border-color:#999}.user{border-color:#4269d0}.assistant{border-color:#3ca951}.tool{border-color:#efb118}
small{color:#777}i{color:#777}code{font-size:13px}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}details{border-color:#444}}
"""


def page(records: Sequence[Mapping[str, Any]], title: str, about: str) -> str:
    """HTML of the records, each folded."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>",
    ]
    return "\n".join([*parts, *map(_record, records)]) + "\n"


def _record(record: Mapping[str, Any]) -> str:
    found = record["annotations"]["provenance"]
    head = f"{found['index']}: {found['application']}, {found['world']} level {found['level']}, {found['persona']}"
    tools = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in record.get("tools", ()))
    told = ", ".join([*found["perturbed"], *(f"{count} {name}" for name, count in found["outcomes"].items())])
    return (
        f"<details><summary>{html.escape(head)} <small>{html.escape(told)}</small></summary>"
        f"<details><summary>tools</summary><code class=m>{html.escape(tools)}</code></details>"
        f"{''.join(map(_message, record['messages']))}</details>"
    )


def _message(message: Mapping[str, Any]) -> str:
    role = message["role"]
    thought = f"<i>{html.escape(message['reasoning_content'])}</i>\n" if message.get("reasoning_content") else ""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    called = "".join(
        f"\n<code>{html.escape(call['name'])}({html.escape(json.dumps(call['arguments'], ensure_ascii=False))})</code>"
        for call in calls
    )
    text = html.escape(message.get("content") or "")
    return f"<div class='m {role}'><small>{role}</small>\n{thought}{text}{called}</div>"
