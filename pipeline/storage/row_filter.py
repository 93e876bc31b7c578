"""`--where 'aesthetic >= 5 and label in ["cat", "dog"]'`: an expression over columns, and no code.

Python's own grammar is read (`ast.parse`), of which comparisons, `and`, `or`, `not`, `in`,
arithmetic and literals are known; each becomes one node of a pyarrow expression. Nothing is ever
evaluated by Python. A row for which the expression is unknown, since a value is missing, does not
count.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError

_LONGEST = 2_000
"""Characters: parsing what is longer costs more than anybody's condition is worth."""
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    # pyarrow would divide whole numbers to whole ones.
    ast.Div: lambda a, b: a.cast(pa.float64()) / b,
}
_ALLOWED = (
    "Known are column names (or col('any name')), numbers, texts in quotes, True, False, None; "
    "== != < <= > >=, in and not in with a [list], is None; + - * /; and, or, not, brackets"
)


@dataclass(frozen=True)
class RowFilter:
    """An expression over columns; `text` is its one spelling, whatever the spaces were."""

    text: str
    columns: tuple[str, ...]
    expression: Any = field(compare=False, repr=False)

    def check(self, kinds: Mapping[str, pa.DataType]) -> None:
        """Raises `ConfigError` as `mask` does, of columns of these types."""
        names = list(kinds)
        self.mask(pa.table([pa.array([], kinds[name]) for name in names], names=names))

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows of a table count: bool [rows].

        Raises `ConfigError` for columns whose kinds the expression does not fit.
        """
        found = np.zeros(table.num_rows, dtype=np.bool_)
        columns = {name: table.column(name) for name in self.columns}
        numbered = pa.table({**columns, _ROW: pa.array(np.arange(table.num_rows))})
        try:
            kept = numbered.filter(self.expression).column(_ROW).to_numpy()
        except (pa.ArrowException, TypeError) as error:
            kinds = ", ".join(f"{name} is {column.type}" for name, column in columns.items())
            said = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"where {self.text}: can't be asked of these columns ({kinds}): {said}"
            ) from None
        found[kept] = True
        return found


_ROW = "\0row"
"""No column has this name: a NUL is no part of a name that was written in JSON by people."""


def parse_where(text: str) -> RowFilter:
    """The filter that `text` says; raises `ConfigError` naming what is not known here."""
    if len(text) > _LONGEST:
        raise ConfigError(f"where: {len(text)} characters; {_LONGEST} are read.")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"where {text!r}: is no expression: {error}. {_ALLOWED}.") from None
    try:
        expression, spelt = _truth(tree.body), ast.unparse(tree.body)
        columns = tuple(sorted(set(_names(tree.body))))
    except RecursionError:
        raise ConfigError(f"where {text[:80]!r}: is nested too deeply.") from None
    if not columns:
        raise ConfigError(f"where {text!r}: names no column. {_ALLOWED}.")
    return RowFilter(spelt, columns, expression)


def _truth(node: ast.expr) -> pc.Expression:
    """A node that says yes or no."""
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            return _joined([_truth(value) for value in values], lambda a, b: a & b)
        case ast.BoolOp(op=ast.Or(), values=values):
            return _joined([_truth(value) for value in values], lambda a, b: a | b)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_truth(operand)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [left, *comparators]
            pairs = zip(sides, ops, sides[1:], strict=False)
            return _joined([_compared(a, op, b) for a, op, b in pairs], lambda a, b: a & b)
        case ast.Name() | ast.Call():
            return _value(node)  # a column of the kind bool
        case _:
            raise _refused(node, "says neither yes nor no")


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
    match op, right:
        case ast.Is(), ast.Constant(value=None):
            return _value(left).is_null()
        case ast.IsNot(), ast.Constant(value=None):
            return ~_value(left).is_null()
        case ((ast.In() | ast.NotIn()), (ast.List() | ast.Tuple())):
            values = [_literal(element) for element in right.elts]
            try:
                inside = _value(left).isin(pa.array(values))
            except (pa.ArrowException, TypeError):
                raise _refused(right, "holds values of several kinds") from None
            # A missing value is in no list, and is not told to be outside of one either.
            return inside if isinstance(op, ast.In) else ~inside & _value(left).is_valid()
    if type(op) not in _COMPARISONS:
        raise _refused(right, f"stands behind {type(op).__name__}, which is not known here")
    return _COMPARISONS[type(op)](_value(left), _value(right))


def _value(node: ast.expr) -> pc.Expression:
    """A column, a literal, or arithmetic over them."""
    match node:
        case ast.Name() | ast.Call():
            return pc.field(_column(node))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            return pc.scalar(0) - _value(operand)
        case _:
            return pc.scalar(_literal(node))


def _literal(node: ast.expr) -> bool | int | float | str:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            if isinstance(value, int) and abs(value) >= 2**63:
                raise _refused(node, "is too large")
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case _:
            raise _refused(node, "is nothing that is known here")


def _column(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Call(
            func=ast.Name(id="col"), args=[ast.Constant(value=str() as name)], keywords=[]
        ):
            return name
        case _:
            raise _refused(node, "calls something")


def _names(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Name | ast.Call):
        yield _column(node)
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _names(child)


def _joined(parts: list[pc.Expression], join: Callable[[Any, Any], Any]) -> pc.Expression:
    whole = parts[0]
    for part in parts[1:]:
        whole = join(whole, part)
    return whole


def _refused(node: ast.expr, why: str) -> ConfigError:
    return ConfigError(f"where: {ast.unparse(node)[:80]!r} {why}. {_ALLOWED}.")
