"""Node: one parsed answer, as answer.py builds it and compare.py reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

from pipeline.judge.math import numeric
from pipeline.judge.math.forms.wording import is_universal
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


def relettered(node: Node, old: str, new: str) -> Node:
    """`node` with the symbol `old` called `new`, unless it has a `new` of its own."""
    if node.tree is not None and new in numeric.symbols(node.tree):
        return node
    tree = node.tree and numeric.replaced(node.tree, ("v", old), ("v", new))
    return replace(node, tree=tree, items=tuple(relettered(i, old, new) for i in node.items))


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


def permuted(a: Node, b: Node) -> Node:
    """`a` in the order of the names of `b`: (a, b) = (1, 2) beside (b, a)."""
    names, others = ([name.strip() for name in node.label.strip("() ").split(",")]
                     if node.label.startswith("(") else [] for node in (a, b))
    if names == others or sorted(names) != sorted(others) or len(names) != len(a.items):
        return a
    return replace(a, label=b.label, items=tuple(a.items[names.index(name)] for name in others))


_BOUND = re.compile(r"(?<![A-Za-z\\])[a-z](?![A-Za-z])")


def bound_letters(a: Node, b: Node) -> tuple[str, str] | None:
    """The letters that alike conditions declare: k and m of "k ∈ Z" and "m ∈ Z"."""
    said = [re.sub("‹[^›]*›", " ", node.condition) for node in (a, b)]
    if not all(is_universal(node.condition) for node in (a, b)) or \
            key(_BOUND.sub("", a.condition)) != key(_BOUND.sub("", b.condition)):
        return None
    names = [found[0] for one in said if len(found := _BOUND.findall(one)) == 1]
    return (names[0], names[1]) if len(names) == 2 and names[0] != names[1] else None


def points(node: Node) -> tuple[Node, ...]:
    """The parts of a union, each number of a set in it by itself; () of anything else."""
    return tuple(one for item in node.items for one in (
        item.items if item.kind == "set" else (item,))) if node.kind == "union" else ()


def flat(b: Node, a: Node) -> Node:
    """A vector in i, j, k as a pair beside a pair."""
    if b.detail == "ijk" and len(a.items) == 2 and b.items[2].tree and \
            numeric.equal(b.items[2].tree, ("n", Fraction(0))):
        return replace(b, items=b.items[:2])
    return b
