"""Arithmetic: ``calculate("2 * (3 + 4)")``."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from posttrain_jax.environments.tools.tool import ToolError

LARGEST_POWER = 4096  # bits of an exact power
BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(math, name) for name in ("sqrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "gcd", "lcm")
} | {"abs": abs, "min": min, "max": max, "round": round}
CONSTANTS = {"pi": math.pi, "e": math.e}


def calculate(expression: str) -> str:
    """The value of an arithmetic expression.

    Args:
      expression: numbers, + - * / // % **, parentheses, and sqrt, log, sin and the like
    """
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
        return str(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ToolError(f"{expression!r:.80} is not an expression") from error
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ToolError(str(error)) from error


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return _bounded(node.value)
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) * math.log2(max(abs(left), 2)) > LARGEST_POWER:
            raise ToolError("the power is too large")
        return _bounded(BINARY[type(node.op)](left, right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id in FUNCTIONS:
            return _bounded(FUNCTIONS[node.func.id](*map(_value, node.args)))
        raise ToolError(f"no function {node.func.id!r}; there are {', '.join(FUNCTIONS)}")
    raise ToolError(f"{ast.unparse(node)!r:.80} is not arithmetic")


def _bounded(value: Any) -> int | float:
    if isinstance(value, complex):
        raise ToolError("the value is not real")
    if isinstance(value, float) and not math.isfinite(value):
        raise ToolError("the value is not finite")
    if isinstance(value, int) and value.bit_length() > LARGEST_POWER:
        raise ToolError("the value is too large")
    return value
