"""A small, safe expression language on columns: `tokens_per_param > 5 and 1e6 <= params_total < 1e9`.

Numbers (30k and 2.5M too), strings, True/False, column names, `+ - * / // % **`, comparisons (chained, and
`in (…)`), `and`, `or`, `not`. The text is parsed by `ast` and walked node by node; nothing is ever evaluated by
Python itself.
A column whose name is no plain word (`eval/loss`, `lr.max`) is written as it is, or between backticks.
The same expression works on one row (a dict) and on a whole table. A value that is missing (None, NaN)
makes a comparison false, except `!=` and `not in`: what is missing is no value that could be named.
"""

import ast
import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sweep.common.errors import UserError
from sweep.common.units import parse_quantity

MAX_CHARACTERS = 2000

# A number with a suffix, outside of quotes and names.
QUANTITY = re.compile(r"""'[^']*'|"[^"]*"|(?<![\w.])(\d[\d_]*\.?\d*(?:e[+-]?\d+)?[kmbgt])\b""", re.IGNORECASE)

ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class Expression:
    """A checked condition: its text, the column names it reads (sorted), and its tree."""

    text: str
    names: tuple[str, ...]
    tree: ast.expr


def parse(text: str, columns: Sequence[str] = ()) -> Expression:
    """The expression in `text`, which may name any of `columns`, whatever is in their names. UserError (one line)
    where it is empty, not an expression, or uses more than the language in this file's docstring."""
    text = text.strip()
    if not text:
        raise UserError("where: the condition is empty; write one like 'tokens_per_param > 5' or leave it out")
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"where: {len(text)} characters; at most {MAX_CHARACTERS} are read")
    try:
        words, odd = _with_plain_names(text, columns)
        plain = QUANTITY.sub(lambda match: repr(parse_quantity("where", match[1])) if match[1] else match[0], words)
        tree = ast.parse(plain.replace("\n", " "), mode="eval").body
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                node.id = odd.get(node.id, node.id)
        names = _check(tree, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        detail = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(f"where: cannot read {text!r}: {detail}") from None
    return Expression(text, tuple(sorted(names)), tree)


def _with_plain_names(text: str, columns: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The text with a plain word for each column whose name is none, and what these words stand for. a-b is the column
    of that name only where a and b are not both columns; between backticks it always is."""
    odd = [name for name in columns if not name.isidentifier() and not name.replace(".", "", 1).isdigit()]
    odd = [name for name in odd if not set(re.findall(r"\w+", name)) <= set(columns)]
    names = "|".join(re.escape(name) for name in sorted(odd, key=len, reverse=True)) or "(?!)"
    pattern = re.compile(rf"""('[^']*'|"[^"]*")|`([^`]+)`|(?<![\w./])({names})(?![\w./])""")
    stands_for: dict[str, str] = {}

    def word(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        placeholder = f"column_{len(stands_for)}_of_where"
        stands_for[placeholder] = match[2] or match[3]
        return placeholder

    return pattern.sub(word, text), stands_for


def evaluate(expression: Expression, row: Mapping[str, Any]) -> bool:
    """Whether the condition holds for one row. UserError names an unknown column and the valid ones."""
    _check_names(expression, list(row))
    result = _guarded(expression, row)
    if not isinstance(result, (bool, np.bool_)):
        raise UserError(f"where: {expression.text!r} gives {result!r}, not true or false; compare it")
    return bool(result)


def mask(expression: Expression, frame: pd.DataFrame) -> np.ndarray:
    """Whether the condition holds, for each row of a table: bool, shape (rows,)."""
    _check_names(expression, [str(c) for c in frame.columns])
    columns = {name: _as_array(frame[name]) for name in expression.names}
    result = np.asarray(_guarded(expression, columns))
    if result.dtype != bool:
        raise UserError(f"where: {expression.text!r} gives numbers, not true or false; compare it")
    return np.broadcast_to(result, (len(frame),)).copy()


def _as_array(column: pd.Series) -> np.ndarray:
    if pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=bool)
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=float, na_value=np.nan)
    return column.astype(object).where(column.notna(), None).to_numpy(dtype=object)


def _check(node: ast.AST, text: str) -> set[str]:
    """Refuse every construct that the language does not have; the names that the rest reads."""
    match node:
        case ast.Name():
            return {node.id}
        case ast.Constant(value=bool() | int() | float() | str()):
            return set()
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            children: list[ast.expr] = [node.left, node.right]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not()):
            children = [node.operand]
        case ast.BoolOp():
            children = node.values
        case ast.Compare():
            children = [node.left]
            for op, right in zip(node.ops, node.comparators, strict=True):
                if isinstance(op, (ast.In, ast.NotIn)):
                    if not isinstance(right, (ast.Tuple, ast.List)):
                        raise UserError(f"where: in {text!r}, write the right of 'in' as (value, value, …)")
                    children += right.elts
                elif type(op) in COMPARISONS:
                    children.append(right)
                else:
                    raise UserError(f"where: in {text!r}, 'is' is not understood; use == or !=")
        case _:
            piece = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
            raise UserError(
                f"where: in {text!r}, {piece!r} is not understood; "
                "use numbers, 'strings', column names, arithmetic, comparisons, and, or, not, in (…)"
            )
    return set().union(*(_check(child, text) for child in children))


def _check_names(expression: Expression, valid: list[str]) -> None:
    unknown = [name for name in expression.names if name not in valid]
    if unknown:
        close = difflib.get_close_matches(unknown[0], valid, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"where: {expression.text!r} names {unknown[0]!r}; {meant}there is {', '.join(sorted(valid))}")


def _guarded(expression: Expression, values: Mapping[str, Any]) -> Any:
    try:
        with np.errstate(all="ignore"):
            return _value(expression.tree, values)
    except (TypeError, ArithmeticError, ValueError) as error:
        raise UserError(f"where: {expression.text!r} cannot be computed: {error}") from None


def _value(node: ast.AST, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name():
            return values[node.id]
        case ast.Constant():
            # Integers become floats: 9**9**9 then overflows at once, where exact integers would hang.
            return node.value if isinstance(node.value, (bool, str)) else float(node.value)  # type: ignore[arg-type]
        case ast.BinOp():
            left, right = _number(_value(node.left, values)), _number(_value(node.right, values))
            return ARITHMETIC[type(node.op)](left, right)
        case ast.UnaryOp(op=ast.Not()):
            return np.logical_not(_truth(_value(node.operand, values)))
        case ast.UnaryOp():
            operand = _number(_value(node.operand, values))
            return -operand if isinstance(node.op, ast.USub) else operand
        case ast.BoolOp():
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            result = _truth(_value(node.values[0], values))
            for item in node.values[1:]:
                result = join(result, _truth(_value(item, values)))
            return result
        case ast.Compare():
            result, left = True, _value(node.left, values)
            for op, right_node in zip(node.ops, node.comparators, strict=True):
                if isinstance(op, (ast.In, ast.NotIn)):
                    items = [_value(item, values) for item in right_node.elts]  # type: ignore[attr-defined]
                    found: Any = False
                    for item in items:
                        found = np.logical_or(found, _compare(operator.eq, left, item))
                    holds, left = (found if isinstance(op, ast.In) else np.logical_not(found)), None
                else:
                    right = _value(right_node, values)
                    holds, left = _compare(COMPARISONS[type(op)], left, right), right
                result = np.logical_and(result, holds)
            return result
    raise AssertionError(f"unchecked node {node!r}")  # `_check` refuses every other construct


def _compare(compare: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """`compare`, with false wherever either side is missing; for `!=`, true there."""
    if compare is operator.ne:
        return np.logical_not(_compare(operator.eq, left, right))
    if not isinstance(left, np.ndarray) and not isinstance(right, np.ndarray):
        return bool(not _missing(left) and not _missing(right) and compare(left, right))
    left_n, right_n = np.broadcast_arrays(left, right)
    if left_n.dtype != object and right_n.dtype != object:
        return np.asarray(compare(left_n, right_n) & (left_n == left_n) & (right_n == right_n), dtype=bool)
    pairs = zip(left_n.tolist(), right_n.tolist(), strict=True)
    return np.array([bool(not _missing(a) and not _missing(b) and compare(a, b)) for a, b in pairs], dtype=bool)


def _missing(value: Any) -> bool:
    return value is None or value != value


def _number(value: Any) -> Any:
    """`value` if arithmetic makes sense on it; exact Python integers become floats."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.astype(float)
    if isinstance(value, (bool, int, float, np.number)):
        return float(value)
    if value is None:
        return float("nan")
    kind = "a column of text" if isinstance(value, np.ndarray) else repr(value)
    raise TypeError(f"{kind} is not a number")


def _truth(value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, np.ndarray) and value.dtype == bool):
        return value
    kind = "a column of values" if isinstance(value, np.ndarray) else repr(value)
    raise TypeError(f"{kind} is neither true nor false; compare it with something")
