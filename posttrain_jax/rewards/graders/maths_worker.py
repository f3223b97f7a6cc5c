"""A process that compares formulas: a line of JSON in, a line out. It is run as a script and imports no neighbour.

math-verify interrupts itself by signals, which only a main thread gets, and what it parses may never end or eat all
memory: so it works here, where it can be killed.
"""

from __future__ import annotations

import json
import resource
import sys

MEMORY = 2 << 30  # bytes


def main() -> None:
    """Answers ``[gold, answer]`` with ``true`` or ``false`` until the input ends; ``null`` once it is ready."""
    from math_verify import LatexExtractionConfig, parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    told, sys.stdout = sys.stdout, sys.stderr
    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def formula(text: str) -> list:
        return parse(
            f"\\boxed{{{text}}}",
            extraction_config=config,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,  # type: ignore[arg-type]
        )

    print("null", file=told, flush=True)
    for line in sys.stdin:
        try:
            gold, answer = map(formula, json.loads(line))
            same = bool(gold and answer) and verify(gold, answer, strict=True, timeout_seconds=None)
        except (MemoryError, RecursionError):
            same = False
        print(json.dumps(same), file=told, flush=True)


if __name__ == "__main__":
    main()
