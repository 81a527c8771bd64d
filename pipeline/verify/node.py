"""Node: one parsed answer, as answer.py builds it and compare.py reads it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.verify.expression import Tree


@dataclass(frozen=True)
class Node:
    """One answer. `items` are the parts of a collection; `tree` the expression of a value.

    kind: value, text, opaque, list, tuple, set, interval, union, matrix, relation, ratio.
    """

    kind: str
    text: str
    items: tuple[Node, ...] = ()
    tree: Tree | None = None
    unit: str = ""
    label: str = ""
    detail: str = ""
