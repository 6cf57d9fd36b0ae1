"""The calculator: + - * / and parentheses over exact rationals.

The expression is parsed to a syntax tree and walked by hand over an allow-list
of nodes; nothing is ever evaluated by the interpreter. Sizes are bounded, so an
expression can neither hang nor fill memory. Left out on purpose: powers,
functions, names, comparison.
"""

from __future__ import annotations

import ast
import re
from fractions import Fraction

from openk2.protocols import ToolError

MAX_CHARACTERS = 200
MAX_MAGNITUDE = 10**30
_ALLOWED = re.compile(r"[0-9+\-*/(). ]+")


def evaluate(expression: str) -> Fraction:
    """The exact value of an arithmetic expression. Raises `ToolError` for anything else."""
    return _walk(_parse(expression), expression)


def operands(expression: str) -> list[Fraction]:
    """The numbers written in the expression, sorted: what is computed with, whatever the order."""
    nodes = ast.walk(_parse(expression))
    return sorted(_number(node, expression) for node in nodes if isinstance(node, ast.Constant))


def format_number(value: Fraction, decimals: int) -> str:
    """`value` rounded half to even to `decimals` places, trailing zeros dropped; whole numbers have no point."""
    rounded = round(value, decimals)
    if rounded.denominator == 1:
        return str(rounded.numerator)
    sign = "-" if rounded < 0 else ""
    digits = str(abs(rounded) * 10**decimals).rjust(decimals + 1, "0")
    return f"{sign}{digits[:-decimals]}.{digits[-decimals:]}".rstrip("0")


def exact(value: int | float) -> Fraction:
    """The decimal number that was written: 0.1 is one tenth, not the nearest binary fraction."""
    return Fraction(repr(value))


def _parse(expression: str) -> ast.expr:
    if len(expression) > MAX_CHARACTERS:
        raise ToolError(f"expression is longer than {MAX_CHARACTERS} characters")
    # The parser never sees letters, so it has no names to find and no warnings to print.
    if not _ALLOWED.fullmatch(expression):
        raise ToolError("expression may hold only numbers, + - * / and parentheses")
    try:
        return ast.parse(expression.lstrip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolError("expression is not well formed") from None


def _walk(node: ast.expr, source: str) -> Fraction:
    if isinstance(node, ast.Constant):
        return _number(node, source)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _walk(node.operand, source)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        return _bounded(_binary(node.op, _walk(node.left, source), _walk(node.right, source)))
    raise ToolError("expression may hold only numbers, + - * / and parentheses")


def _binary(operator: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    if isinstance(operator, ast.Add):
        return left + right
    if isinstance(operator, ast.Sub):
        return left - right
    if isinstance(operator, ast.Mult):
        return left * right
    if isinstance(operator, ast.Div):
        if right == 0:
            raise ToolError("division by zero")
        return left / right
    raise ToolError("expression may hold only numbers, + - * / and parentheses")


def _number(node: ast.Constant, source: str) -> Fraction:
    if type(node.value) not in (int, float):
        raise ToolError("expression may hold only numbers, + - * / and parentheses")
    # The digits as written: the parser's float has only the first seventeen. Offsets are in (ASCII) bytes.
    return _bounded(Fraction(source.lstrip()[node.col_offset : node.end_col_offset]))


def _bounded(value: Fraction) -> Fraction:
    if abs(value) > MAX_MAGNITUDE:
        raise ToolError("number is too large")
    return value
