"""Matrices, vectors in i, j, k, and piecewise functions, as nodes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from pipeline.judge.math import numeric
from pipeline.judge.math.latex import UNIT_VECTORS
from pipeline.judge.math.node import Node
from pipeline.judge.math.parser import Tree, UnreadableError, read

Parse = Callable[[str], Node]
_ONE = re.compile(r"([^⟦⟧]*?)[(\[{|]*\s*⟦([^⟦⟧]*)⟧\s*[)\]}|]*\s*(?:\^\s*\{?\s*(T|\\top|\\intercal)"
                  r"\s*\}?)?")
_CASES = re.compile(r"⦃\s*⟦([^⟦⟧]*)⟧\s*[.,;]?")
_BEFORE_CONDITION = re.compile(r"&|(?=‹(?:if|when|for|where|otherwise|else)\b)"
                               r"|,(?=\s*(?:‹|[^,]*(?:[<>=]|\\(?:le|ge|ne|in)\b)))")
_IF = re.compile(r"^[\s,]*(?:‹(?:if|when|for|where)\s*›|‹(?:if|when|for|where) )?\s*", re.I)


def matrix(text: str, parse: Parse) -> Node | None:
    """A matrix with its factor and transpose, a determinant, or a function by cases."""
    if cases := _CASES.fullmatch(text):
        return _piecewise(text, cases[1], parse)
    if not (match := _ONE.fullmatch(text)):
        return None
    rows = tuple(Node("tuple", row, tuple(parse(cell) for cell in row.split("&")))
                 for row in _rows(match[2]))
    if match[3]:
        if len({len(row.items) for row in rows}) != 1:
            return None
        rows = tuple(Node("tuple", "&".join(cell.text for cell in cells), cells)
                     for cells in zip(*(row.items for row in rows), strict=True))
    return _scaled(match[1].strip(), Node("matrix", text, rows))


def _rows(text: str) -> list[str]:
    return [row for row in text.split("⏎") if row.strip(" \\hline")]


def _scaled(factor: str, node: Node) -> Node | None:
    if not factor or factor in ("\\left", "\\big"):
        return node
    if factor == "\\det":
        return _determinant(node)
    try:
        tree = read(factor + "1" if factor in "+-" else factor.removesuffix("\\cdot").strip())
    except UnreadableError:
        return None
    cells = [cell for row in node.items for cell in row.items]
    if any(cell.tree is None for cell in cells):
        return None
    return replace(node, items=tuple(replace(row, items=tuple(
        replace(cell, tree=("*", tree, cell.tree)) for cell in row.items)) for row in node.items))


def _determinant(node: Node) -> Node | None:
    rows = [[cell.tree for cell in row.items] for row in node.items]
    if not 1 <= len(rows) <= 4 or any(len(row) != len(rows) or None in row for row in rows):
        return None
    return Node("value", node.text, tree=_expanded([[c for c in row if c] for row in rows]))


def _expanded(rows: list[list[Tree]]) -> Tree:
    """The determinant along the first row."""
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, cell in enumerate(rows[0]):
        minor = _expanded([row[:column] + row[column + 1:] for row in rows[1:]])
        terms.append(("*", ("n", Fraction((-1) ** column)), ("*", cell, minor)))
    return ("+", *terms)


def _piecewise(text: str, inner: str, parse: Parse) -> Node | None:
    """Pieces with their conditions; without any condition a list, as of a system of equations."""
    rows = [_BEFORE_CONDITION.split(row, maxsplit=1) for row in _rows(inner)]
    if all(len(row) == 1 or not row[1].strip(" .,") for row in rows):
        return Node("list", text, tuple(parse(row[0].strip(" .,")) for row in rows))
    if any(len(row) == 1 for row in rows):
        return None
    return Node("piecewise", text, tuple(
        replace(parse(row[0].strip(" .,;")), condition=_condition(row[1])) for row in rows))


def _condition(text: str) -> str:
    text = text.strip(" .,;&")
    match = _IF.match(text)
    rest = text[match.end():] if match else text
    if rest.strip("‹› ").lower() in ("else", "otherwise", "elsewhere", "in all other cases"):
        return "‹otherwise›"
    return f"‹{rest}" if "›" in rest and "‹" not in rest.partition("›")[0] else rest


def vector(node: Node) -> Node:
    """A sum of multiples of the unit vectors as a tuple; any other node as it is."""
    tree = node.tree
    if tree is None or not any(letter in node.text for letter in UNIT_VECTORS.values()):
        return node
    names = list(UNIT_VECTORS.values())
    items = []
    for one in names:
        part = tree
        for name in names:
            part = numeric.replaced(part, ("v", name), ("n", Fraction(name == one)))
        items.append(Node("value", node.text, tree=part))
    return replace(node, kind="tuple", tree=None, items=tuple(items), detail="ijk")
