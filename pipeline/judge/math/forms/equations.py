"""Equations and inequalities as one: two sides subtracted, compared up to a factor."""

from __future__ import annotations

import re
from fractions import Fraction

from pipeline.judge.math import numeric
from pipeline.judge.math.latex import clean
from pipeline.judge.math.node import Node
from pipeline.judge.math.parser import Tree, UnreadableError, read
from pipeline.judge.math.rational import TooLargeError, UnsureError


def substituted(a: Node, b: Node) -> bool | None:
    """A gold equation in one symbol more than the answer: y = E stated as E."""
    difference = _difference(a)
    if difference is None or b.tree is None:
        return None
    names, known = numeric.symbols(difference[0]), numeric.symbols(b.tree)
    if len(names - known) != 1 or not known <= names or len(names) < 2:
        return False
    try:
        name, = names - known
        left, right = (numeric.replaced(side, ("v", name), b.tree)
                       for side in (difference[0][1], difference[0][2][2]))
        return numeric.equal(left, right)
    except UnsureError:
        return None


def equations(a: Node, b: Node) -> bool | None:
    """Relations that differ by a constant factor: 2x = 4y and x - 2y = 0."""
    first, second = _difference(a), _difference(b)
    if first is None or second is None:
        return None
    (left, op), (right, other) = first, second
    if op != other:
        return False
    try:
        sign = numeric.ratio(left, right)
    except TooLargeError:
        raise
    except UnsureError:
        return None
    return sign is not None and (sign > 0 or op in ("=", "\\ne"))


def _difference(node: Node) -> tuple[Tree, str] | None:
    """left - right of a relation, turned so that it reads =, ≠, < or ≤ 0."""
    text = clean(node.text)
    match = re.fullmatch(r"([^=<>]*?)(=|<|>|\\le\b|\\ge\b|\\ne\b)([^=<>]*)", text)
    if not match or re.search(r"\\(le|ge|ne|in)\b", match[3]):
        return None
    try:
        left, right = read(match[1].strip()), read(match[3].strip())
    except UnreadableError:
        return None
    if match[2] in (">", "\\ge"):
        left, right = right, left
    return ("+", left, ("*", ("n", Fraction(-1)), right)), match[2].replace(">", "<").replace(
        "\\ge", "\\le")
