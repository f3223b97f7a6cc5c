"""Do the graders agree with the reference solutions, and do they reject solutions that are wrong?

MBPP's reference solutions should pass their hidden tests, in the sandbox. Each is then changed in one place (a
comparison, an operator, a number, a returned value) in up to three ways; those that fail when Python itself runs the
asserts, in a process of the same sandbox, should be rejected, and those that pass should not.

    python benchmarks/graders.py --data=DIR [--problems=N]

DIR holds mbpp/train_val_prompt.jsonl.gz: lines with code, test_setup_code, test_list.
"""

from __future__ import annotations

import ast
import concurrent.futures
import copy
import gzip
import json
import random
import time
from pathlib import Path

import measure

from posttrain_jax.errors import UserError
from posttrain_jax.rewards.graders.code import LIMITS, code
from posttrain_jax.rewards.sandbox.program import Program
from posttrain_jax.rewards.sandbox.sandbox import Sandbox

MUTANTS = 3
SWAPS = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
SWAPS |= {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.Mult, ast.FloorDiv: ast.Mult}
SWAPS |= {ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}


def main() -> None:
    """Reference solutions, then their mutants."""
    parser = measure.parser(__doc__, "graders")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--problems", type=int)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with gzip.open(options.data / "mbpp" / "train_val_prompt.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines][: options.problems]
    sandbox = Sandbox.open(workers=options.workers)
    try:
        numbers = judge(sandbox, rows, options.workers)
    finally:
        sandbox.close()
    shown = [(name, value) for name, value in numbers.items() if isinstance(value, (int, float))]
    measure.show("MBPP", ("", ""), shown)
    measure.write(options.output, numbers)


def judge(sandbox: Sandbox, rows: list[dict], workers: int, count: int = MUTANTS) -> dict:
    """Counts, shares, and the ids of what was judged wrongly."""
    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        references = list(pool.map(lambda row: verdict(sandbox, row, row["code"]), rows))
        spent = time.perf_counter() - started
        changed = [(row, program) for row in rows for program in mutants(row["code"], count, seed=row["task_id"])]
        graded = list(pool.map(lambda pair: verdict(sandbox, *pair), changed))
        passing = list(pool.map(lambda pair: passes(sandbox, *pair), changed))
    failing = [i for i, passed in enumerate(passing) if not passed]
    return {
        "kind": sandbox.kind,
        "problems": len(rows),
        "agreement": sum(told == "right" for told in references) / len(rows),
        "refused": sum(told.startswith("refused") for told in references),
        "references_not_passed": {
            str(row["task_id"]): told for row, told in zip(rows, references, strict=True) if told != "right"
        },
        "seconds_per_solution": spent / len(rows) * workers,
        "mutants": len(changed),
        "mutants_failing": len(failing),
        "mutants_rejected": sum(graded[i] != "right" for i in failing) / max(len(failing), 1),
        "failing_but_accepted": [changed[i][0]["task_id"] for i in failing if graded[i] == "right"],
        "passing_but_rejected": {
            str(changed[i][0]["task_id"]): graded[i] for i in range(len(changed)) if passing[i] and graded[i] != "right"
        },
        "ungraded": sum(told.startswith("ungraded") for told in references + graded),
    }


def verdict(sandbox: Sandbox, row: dict, program: str) -> str:
    """ "right", or why not."""
    try:
        told = code(sandbox, program, row["test_list"], setup=row["test_setup_code"])
    except UserError as reason:
        return f"refused: {reason}"
    return "right" if told.correct else f"ungraded: {told.reason}" if told.infrastructure else told.reason


def passes(sandbox: Sandbox, row: dict, program: str) -> bool:
    """Whether Python itself runs the asserts to their end."""
    text = "\n".join([program, row["test_setup_code"], *row["test_list"], "print('\\nto the end')"])
    outcome = sandbox.run(Program(source=text.replace("\r\n", "\n"), limits=LIMITS))
    return outcome.ended == "exit" and outcome.status == 0 and outcome.stdout.endswith(b"\nto the end\n")


def mutants(program: str, count: int, seed: int) -> list[str]:
    """The program changed in one place, in up to ``count`` ways."""
    tree = ast.parse(program)
    size = sum(1 for _ in ast.walk(tree))
    order = list(range(size))
    random.Random(seed).shuffle(order)
    found: list[str] = []
    for place in order:
        changed = copy.deepcopy(tree)
        for i, node in enumerate(ast.walk(changed)):
            if i == place and _change(node):
                found.append(ast.unparse(changed))
        if len(found) == count:
            break
    return found


def _change(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
    elif isinstance(node, ast.Return) and node.value:
        node.value = ast.Tuple([node.value], ast.Load())
    else:
        return False
    return True


if __name__ == "__main__":
    main()
