r"""Files of benchmarks as questions: each row in the shape in which its authors publish it.

A reader takes a row and gives a question. Code is judged in a sandbox and formulas in processes of their own, both
opened before anything is asked: where a program cannot be confined, no question with a program is asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from posttrain_jax.data.files import Lines, decoded, nearest_there
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.graders import asserts, code
from posttrain_jax.rewards.graders.answer import boxes
from posttrain_jax.rewards.graders.constraints import CHECKS
from posttrain_jax.rewards.graders.instructions import instructions
from posttrain_jax.rewards.graders.maths import Maths
from posttrain_jax.rewards.graders.numeric import number, numeric
from posttrain_jax.rewards.sandbox.sandbox import Sandbox
from posttrain_jax.rewards.verdict import Verdict, wrong
from posttrain_jax.stages.benchmarks import bfcl
from posttrain_jax.stages.benchmarks.question import Message, Question, content, user

Row = Mapping[str, Any]
Reader = Callable[[Row, int], Question | None]
BOXED = "Give the final answer in \\boxed{}."
NAMES = ("gsm8k", "math", "mbpp", "humaneval", "ifeval", "bfcl")


def read(spec: str, stack: contextlib.ExitStack, limit: int | None = None) -> list[Question]:
    """The questions of ``NAME:FILE``; ``stack`` closes what their graders hold.

    Args:
      spec: name and file, JSON lines or an array, also .gz; for bfcl also a folder of such files.
      stack: entered with the graders.
      limit: at most so many questions, spread evenly over the file.

    Raises:
      UserError: an unknown benchmark, a row of another shape, or a machine that cannot confine programs.
    """
    name, _, path = spec.partition(":")
    if name not in NAMES or not path:
        raise UserError(f"--benchmark={spec}: expected NAME:FILE, of {', '.join(NAMES)}{nearest_there(name, NAMES)}")
    if name == "bfcl":
        questions = bfcl.read(Path(path).expanduser())
    else:
        questions = list(_rows(path, _reader(name, stack)))
    if limit is None or limit >= len(questions):
        return questions
    return [questions[i * len(questions) // limit] for i in range(limit)]


def _rows(path: str, reader: Reader) -> Iterator[Question]:
    lines = Lines(path)
    for index in range(len(lines)):
        try:
            if question := reader(decoded(lines[index]), index):
                yield question
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(f"{lines.where(index)}: not a row of this benchmark: {error!r}") from None
        except (ValueError, UserError) as error:
            raise UserError(f"{lines.where(index)}: {error}") from None


def _reader(name: str, stack: contextlib.ExitStack) -> Reader:
    if name == "math":
        return partial(maths, stack.enter_context(Maths(workers=2)))
    if name in ("mbpp", "humaneval"):
        return partial({"mbpp": mbpp, "humaneval": humaneval}[name], stack.enter_context(Sandbox.open()))
    return {"gsm8k": gsm8k, "ifeval": ifeval}[name]


def gsm8k(row: Row, index: int) -> Question:
    """``question`` and ``answer``, whose number follows "####" (Cobbe et al., arXiv 2110.14168)."""
    expected = row["answer"].split("####")[1].strip()
    number(expected)
    asked = user(f"{row['question']}\n\n{BOXED}")
    return Question("gsm8k", "all", str(index), asked, lambda m: numeric(content(m), expected), expected=expected)


def maths(grader: Maths, row: Row, index: int) -> Question | None:
    """``problem`` with ``answer``, or with a ``solution`` that boxes it (Hendrycks et al., arXiv 2103.03874); None
    where the answer is null or empty, as in some copies."""
    expected = row["answer"] if "answer" in row else boxes(row["solution"])[-1]
    if not expected:
        return None
    if not isinstance(expected, str):
        raise ValueError(f"the answer {expected!r:.80} is no text")
    asked = user(f"{row['problem']}\n\n{BOXED}")
    subset = str(row.get("type") or row.get("subject") or "all")
    return Question("math", subset, str(index), asked, lambda m: grader.grade(content(m), expected), expected=expected)


def mbpp(sandbox: code.Runner, row: Row, index: int) -> Question:
    """``text`` or ``prompt`` with ``test_list``, shown as in Austin et al., arXiv 2108.07732, section 4."""
    tests: Sequence[str] = row["test_list"]
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
    asserts.parse(tests)
    said = "\n".join(tests)
    asked = user(
        f"{row.get('text') or row['prompt']} The program should pass these tests:\n\n{said}\n\n"
        "Answer with the program in one ```python block."
    )
    return Question(
        "mbpp",
        "all",
        str(row.get("task_id", index)),
        asked,
        lambda m: code.code(sandbox, content(m), tests, setup=setup),
        expected=said,
    )


def humaneval(sandbox: code.Runner, row: Row, index: int) -> Question:
    """``prompt``, ``entry_point`` and ``test`` (Chen et al., arXiv 2107.03374). An answer may be the whole program, or
    go on where the prompt ends."""
    prompt, name, test = row["prompt"], row["entry_point"], row["test"]
    asserts.parse(test, [name])

    def grade(message: Message) -> Verdict:
        program = code.program_of(content(message))
        if not program.strip():
            return wrong("no program", well_formed=False)
        return code.code(sandbox, f"{prompt}\n{program}", test, functions=[name])

    asked = user(f"Complete this program:\n\n```python\n{prompt}```\n\nAnswer with all of it in one ```python block.")
    return Question("humaneval", "all", row.get("task_id", str(index)), asked, grade, expected=test)


def ifeval(row: Row, index: int) -> Question:
    """``prompt``, ``instruction_id_list`` and ``kwargs`` (Zhou et al., arXiv 2311.07911), judged strictly: right if all
    instructions are followed, rewarded by the share that is."""
    prompt, names, arguments = row["prompt"], row["instruction_id_list"], row["kwargs"]
    for name in names:
        if name not in CHECKS:
            raise ValueError(f"instruction {name!r} is unknown{nearest_there(name, list(CHECKS))}")
    if not len(names) == len(arguments) > 0:
        raise ValueError(f"{len(names)} instructions with arguments for {len(arguments)}")
    return Question(
        "ifeval",
        f"{len(names)} at once",
        str(row.get("key", index)),
        user(prompt),
        lambda m: instructions(content(m), names, arguments, prompt=prompt, partial=True),
        expected=", ".join(names),
    )
