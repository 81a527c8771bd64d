"""Node: one parsed answer, as answer.py builds it and compare.py reads it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.judge.math import numeric
from pipeline.judge.math.parser import Tree, UnreadableError
from pipeline.judge.math.phrases import key, words


@dataclass(frozen=True)
class Node:
    """One answer. `items` are the parts of a collection; `tree` the expression of a value.

    kind: value, text, opaque, list, tuple, set, interval, union, matrix, relation, ratio,
    piecewise, or modified (the number in `items` with words that change it).
    """

    kind: str
    text: str
    items: tuple[Node, ...] = ()
    tree: Tree | None = None
    unit: str = ""
    label: str = ""
    detail: str = ""
    condition: str = ""


def any_of(results: Iterable[bool | None]) -> bool | None:
    """True if any is, else None if any cannot be told, else False."""
    seen = list(results)
    return True if True in seen else None if None in seen else False


def all_of(results: Iterable[bool | None]) -> bool | None:
    """False if any is, else None if any cannot be told, else True."""
    seen = list(results)
    return False if False in seen else None if None in seen else True


def spread(node: Node) -> tuple[Node, ...]:
    """Items; a matrix of one column or one row is its vector."""
    if node.kind != "matrix":
        return node.items
    if len(node.items) == 1 or all(len(row.items) == 1 for row in node.items):
        return tuple(cell for row in node.items for cell in row.items)
    return node.items


def distinct(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """Repeated tuples of a list of solutions count once."""
    if any(item.kind != "tuple" for item in items):
        return items
    return tuple({key(item.text): item for item in items}.values())


def labels_of(node: Node) -> list[str]:
    names = [item.label for item in node.items]
    return names if all(names) and len(set(names)) == len(names) else []


def ends_of(node: Node) -> str:
    """The brackets of an interval; (a, b) may be one, nothing else."""
    return node.detail if node.kind in ("interval", "tuple") else ""


def cross_equal(x: Node, y: Node, first: Node, other: Node) -> bool:
    if None in (x.tree, y.tree, first.tree, other.tree):
        raise UnreadableError("no values")
    for node in (x, y, first, other):
        if node.tree == ("n", 0):
            raise UnreadableError("a zero in a ratio")
    return numeric.equal(("/", x.tree, first.tree), ("/", y.tree, other.tree))


def is_infinite(node: Node) -> bool:
    return node.tree == ("c", "oo") or \
        words(node.text) in ("infinitely many", "infinite", "infinity")
