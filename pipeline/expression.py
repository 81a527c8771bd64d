"""Safe expressions over table columns: `0 < pass_rate < 1 and verdict == "correct"`.

Read as Python's grammar, never evaluated as Python: only names of columns, constants, lists,
comparisons (chained too), `and or not`, `in` and the four operations become a polars expression.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

from pipeline.errors import UserError

_BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
           ast.Div: operator.truediv}
_COMPARE = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
            ast.Eq: operator.eq, ast.NotEq: operator.ne}


def compile_expression(text: str, columns: Iterable[str]) -> Any:
    """Compile `text` to a polars expression over `columns`. Raises UserError if it is not one."""
    names = sorted(columns)
    try:
        return _visit(ast.parse(text.strip(), mode="eval").body, names)
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError):
        equal = "write == for equality; " if re.search(r"(?<![=<>!])=(?!=)", text) else ""
        raise UserError(f"expression {text!r} cannot be read; {equal}use columns, constants, "
                        "comparisons, and/or/not, in, + - * /, but not None: a comparison with a "
                        "missing value is false") from None
    except KeyError as error:
        raise UserError(f"expression {text!r} names {error.args[0]!r}, which is no column; "
                        f"the columns are {', '.join(names)}") from None


def names_in(text: str) -> set[str]:
    """The names that `text` mentions, without judging whether it is a valid expression."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def check_expression(text: str, columns: Mapping[str, Any]) -> None:
    """Raise UserError if `text` is not true or false over `columns` (name: polars type)."""
    import polars as pl

    expression = compile_expression(text, columns)
    try:
        outcome = pl.DataFrame(schema=dict(columns)).select(expression).dtypes[0]
    except pl.exceptions.PolarsError as error:
        raise UserError(f"expression {text!r} compares what cannot be compared "
                        f"({str(error).splitlines()[0]})") from None
    if outcome != pl.Boolean:
        raise UserError(f"expression {text!r} is a {outcome}, not true or false; compare it")


def _visit(node: ast.expr, names: list[str]) -> Any:
    import polars as pl

    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value) if _fits(value):
            return pl.lit(value)
        case ast.Name(id=name):
            if name not in names:
                raise KeyError(name)
            return pl.col(name)
        case ast.BoolOp(op=op, values=values):
            join = operator.and_ if isinstance(op, ast.And) else operator.or_
            return reduce(join, [_visit(value, names) for value in values])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_visit(operand, names)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_visit(operand, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_visit(left, names), _visit(right, names))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            return _comparison([left, *comparators], ops, names)
    raise ValueError(ast.dump(node))


def _fits(value: Any) -> bool:
    return not isinstance(value, int) or abs(value) < 1 << 63


def _comparison(operands: list[ast.expr], ops: list[ast.cmpop], names: list[str]) -> Any:
    """`a < b < c` as `a < b and b < c`; `a in [..]` as membership."""
    parts = []
    for left, op, right in zip(operands, ops, operands[1:], strict=False):
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
                raise ValueError(ast.dump(right))
            member = _visit(left, names).is_in(list(ast.literal_eval(right)))
            parts.append(~member if isinstance(op, ast.NotIn) else member)
        elif type(op) in _COMPARE:
            parts.append(_COMPARE[type(op)](_visit(left, names), _visit(right, names)))
        else:
            raise ValueError(ast.dump(op))
    return reduce(operator.and_, parts)
