"""Sums with dots: 1 + 2 + … + n, however many of the terms are written and from whichever end."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.verify import value
from pipeline.verify.expression import Tree

_DOTS: Tree = ("v", "…")
_SUM: Tree = ("v", "Σ")


def alike(a: Tree, b: Tree) -> tuple[Tree, Tree] | None:
    """Both trees with their dotted sum as one symbol, where it is the same sum; else None."""
    first, second = list(_dotted(a)), list(_dotted(b))
    if len(first) != 1 or len(second) != 1 or not _same(first[0], second[0]):
        return None
    return value.replaced(a, first[0], _SUM), value.replaced(b, second[0], _SUM)


def _dotted(tree: Tree) -> Iterator[Tree]:
    if tree[0] == "+" and tree.count(_DOTS) == 1 and tree[1] != _DOTS != tree[-1]:
        yield tree
        return
    for part in tree[1:]:
        if isinstance(part, tuple):
            yield from _dotted(part)


def _same(a: Tree, b: Tree) -> bool:
    return any(_runs(a[1:], other) for other in (b[1:], b[:0:-1]))


def _runs(a: tuple[Tree, ...], b: tuple[Tree, ...]) -> bool:
    """Whether the terms before the dots agree as far as both go on, and so those after them.

    Each must show a step, or 1 + … + n could be any progression.
    """
    if min(len(a), len(b)) < 4:
        return False
    cuts = a.index(_DOTS), b.index(_DOTS)
    ends = zip(a[:cuts[0]], b[:cuts[1]], strict=False), \
        zip(a[:cuts[0]:-1], b[:cuts[1]:-1], strict=False)
    return all(value.equal(x, y) for end in ends for x, y in end)
