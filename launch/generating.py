"""What launch/synthesize.py has for all that it makes: the model that is asked, a bar, the evaluation's texts."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain_jax.errors import UserError


def texts(files: Sequence[str]) -> list[str]:
    """The lines of evaluation files."""
    from posttrain_jax.data.files import Lines

    opened = [Lines(file) for file in files]
    return [lines[index].decode(errors="replace") for lines in opened for index in range(len(lines))]


def digest(texts: Sequence[str]) -> str:
    """Names the texts; nothing where there are none."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest() if texts else ""


@contextlib.contextmanager
def endpoint(values: Any, out: Path) -> Iterator[Any]:
    """The model behind --generator; None for the procedural one."""
    if values.generator == "procedural":
        yield None
        return
    from posttrain_jax.rewards.judges.endpoint import Endpoint, Limits

    if "://" not in values.generator:
        raise UserError(f"--generator={values.generator}: expected procedural or a URL such as http://HOST:8000/v1")
    url = values.generator.rstrip("/")
    url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
    out.mkdir(parents=True, exist_ok=True)
    with Endpoint(
        url,
        model=values.model,
        max_tokens=values.max_tokens,
        temperature=values.temperature,
        key=os.environ.get("OPENAI_API_KEY", ""),
        limits=Limits(concurrency=values.concurrency, attempts=values.tries),
        cache=out / "answers.sqlite",
    ) as opened:
        yield opened


@contextlib.contextmanager
def progress(count: int) -> Iterator[Any]:
    """A bar of so many records; gives what hears of `produce.Counts`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        bar = shown.add_task("records", total=count)

        def told(counts: Any) -> None:
            rejected = sum(counts.rejected.values())
            shown.update(bar, completed=counts.accepted, description=f"records ({rejected:,} rejected)")

        yield told
