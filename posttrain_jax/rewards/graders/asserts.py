"""Assert statements taken apart: what the candidate evaluates, and what is checked of the values."""

from __future__ import annotations

import ast
import builtins
import copy
import dataclasses
import sys
from collections.abc import Collection, Sequence
from typing import Any

from posttrain_jax.errors import UserError

UNKNOWN = object()  # what is expected is no literal


@dataclasses.dataclass(frozen=True)
class Check:
    """One assert.

    Attributes:
      test: its source.
      calls: expressions for the candidate; their values are named ``_0``, ``_1``, ….
      condition: an expression over those names, free of the candidate's.
      expected: the literal that ``_0`` must equal if the condition is no more than that, else `UNKNOWN`.
      identical: the condition is ``_0 is expected``.
      modules: of the standard library that the assert uses.
    """

    test: str
    calls: tuple[str, ...]
    condition: str
    expected: Any = UNKNOWN
    identical: bool = False
    modules: tuple[str, ...] = ()


def parse(tests: str | Sequence[str], functions: Collection[str] = ()) -> list[Check]:
    """The checks of some asserts, or of a function ``check(candidate)`` that only asserts (``functions`` has its name).

    Names that are neither builtins nor modules of the standard library are the candidate's, and those in ``functions``.

    Raises:
      UserError: a test that is anything else, or in which no value of the candidate can be told from what is expected.
    """
    source = tests if isinstance(tests, str) else "\n".join(tests)
    try:
        body = ast.parse(source.strip()).body
    except (SyntaxError, ValueError, RecursionError) as mistake:
        raise UserError(f"tests that are not Python: {mistake}") from None
    if len(body) > 1 and all(isinstance(s, ast.Assign) for s in body[:-1]) and isinstance(body[-1], ast.FunctionDef):
        body = body[-1:]  # HumanEval's METADATA
    if len(body) == 1 and isinstance(body[0], ast.FunctionDef) and body[0].name == "check":
        body = _of_function(body[0], functions)
    imported = {alias.name for s in body if isinstance(s, ast.Import) for alias in s.names if not alias.asname}
    found = [_check(s, functions) for s in body if not (isinstance(s, ast.Import) and imported <= STANDARD)]
    if not found:
        raise UserError("tests without an assert")
    return found


STANDARD = frozenset(sys.stdlib_module_names)
BUILTINS = frozenset(dir(builtins))


def _of_function(check: ast.FunctionDef, functions: Collection[str]) -> list[ast.stmt]:
    if len(functions) != 1 or len(check.args.args) != 1:
        raise UserError("a function check(candidate) needs the name of one function")
    given, name = check.args.args[0].arg, next(iter(functions))
    for node in ast.walk(check):
        if isinstance(node, ast.Name) and node.id == given:
            node.id = name
    return [s for s in check.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]


def _check(statement: ast.stmt, functions: Collection[str]) -> Check:
    test = ast.unparse(statement)
    if not isinstance(statement, ast.Assert):
        raise UserError(f"a test that is no assert: {test[:100]!r}")
    split = _Split(statement.test, functions)
    condition = split.visit(copy.deepcopy(statement.test))
    if not split.calls:
        raise UserError(f"a test that calls no function of the answer: {test[:100]!r}")
    expected, identical = _expected(condition)
    if isinstance(condition, ast.Compare) and not _names(condition) - {f"_{i}" for i in range(len(split.calls))}:
        if not any(isinstance(n, ast.Constant) for n in ast.walk(condition)) and expected is UNKNOWN:
            raise UserError(f"a test that compares the answer with itself: {test[:100]!r}")
    modules = sorted((_names(statement) | _names(condition)) & STANDARD - split.own)
    return Check(test, tuple(split.calls), ast.unparse(condition), expected, identical, tuple(modules))


def _expected(condition: ast.expr) -> tuple[Any, bool]:
    if isinstance(condition, ast.Compare) and len(condition.ops) == 1:
        sides = [condition.left, condition.comparators[0]]
        for value, literal in (sides, sides[::-1]):
            if isinstance(value, ast.Name) and value.id == "_0" and isinstance(condition.ops[0], (ast.Eq, ast.Is)):
                try:
                    return ast.literal_eval(literal), isinstance(condition.ops[0], ast.Is)
                except (ValueError, TypeError):
                    continue
    return UNKNOWN, False


class _Split(ast.NodeTransformer):
    """Replaces what the candidate evaluates by names."""

    def __init__(self, test: ast.expr, functions: Collection[str]):
        self.calls: list[str] = []
        self._bound = _stored(test)
        called = {n.func.id for n in ast.walk(test) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        used = _names(test) - self._bound
        self.own = set(functions) & used
        self.own |= {name for name in used - BUILTINS if name in called or name not in STANDARD}
        left = test.left if isinstance(test, ast.Compare) else test
        if not self.own and isinstance(left, ast.Call) and isinstance(left.func, ast.Name):
            self.own = {left.func.id}  # a function that is named like a builtin

    def visit(self, node: ast.AST) -> Any:
        if not isinstance(node, ast.expr) or _root(node) not in self.own:
            return self.generic_visit(node)
        if self._bound & _names(node) - _stored(node):
            raise UserError(f"a test that calls the answer in a loop: {ast.unparse(node)[:100]!r}")
        self.calls.append(ast.unparse(node))
        return ast.Name(f"_{len(self.calls) - 1}", ast.Load())


def _root(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Call, ast.Attribute)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _stored(node: ast.AST) -> set[str]:
    """What loops, lambdas and := in it bind."""
    stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
