"""Decimals beside exact values, by one rule on signed numbers; lowest terms.

A fraction is exact. So is a decimal, unless it rounds a value that does not terminate, the problem
asks for rounding, or it has the digits of a double.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from pipeline.judge.math import numeric
from pipeline.judge.math.parser import Tree
from pipeline.judge.math.rational import exact, places

_DOUBLE_DIGITS = 15
_FACTORS: tuple[Tree, ...] = (("n", Fraction(-1)), ("n", Fraction(1, 100)))
"""A sign and per cent."""


def reduced(tree: Tree) -> bool:
    """Whether a fraction of integers is in lowest terms."""
    if tree[0] != "/" or not tree[1][0] == tree[2][0] == "n":
        return True
    return Fraction(tree[1][1], tree[2][1]).denominator == tree[2][1]


def zeros(text: str) -> int:
    """How many zeros end the decimal in `text`: 251.60 says more than 251.6."""
    return len(found[1]) if (found := re.search(r"[.,]\d*?(0+)(?!\d)", text)) else 0


def literal(tree: Tree) -> Fraction | None:
    """The number that a tree writes out with its sign, as 2.5 or -3; None of a fraction."""
    if tree[0] == "*" and tree[1] in _FACTORS:
        value = literal(tree[2])
        return None if value is None else tree[1][1] * value
    return tree[1] if tree[0] == "n" else None


def rounds(tree: Tree, value: Any, digits: int, ending: int = 0) -> bool:
    """Whether `tree` is a decimal of at least `digits` significant digits that rounds `value`.

    `ending` counts the zeros that it was written with.
    """
    decimal = literal(tree)
    after = places(decimal) if decimal is not None and not value.imag else None
    if decimal is None or after is None or not (after := after + ending):
        return False
    if len(str(abs(int(decimal * 10 ** after)))) < digits or decimal * value.real <= 0:
        return False
    return bool(abs(value - numeric.number(tree)) * 10 ** after <= 0.5 + 1e-9)


def cut_off(tree: Tree, value: Any, digits: int = 4) -> bool:
    """Whether `tree` is a decimal of at least `digits` digits that begins as `value` does."""
    decimal = literal(tree)
    after = places(decimal) if decimal is not None and not value.imag else None
    if decimal is None or not after or decimal * value.real <= 0:
        return False
    written = abs(decimal) * 10 ** after
    return len(str(int(written))) >= digits and \
        int(abs(value.real) * 10 ** after) == int(written)


def is_double(tree: Tree, value: Any) -> bool:
    """Whether `tree` writes `value` out to the digits of a double, within its last places."""
    decimal = literal(tree)
    if decimal is None or (after := places(decimal)) is None or value.imag or value == 0:
        return False
    if len(str(abs(int(decimal * 10 ** after)))) < _DOUBLE_DIGITS:
        return False
    return bool(abs(numeric.number(tree) / value - 1) < 1e-15)


def coarsely(gold: Fraction | None, answer: Fraction | None, ending: int = 0) -> bool:
    """Whether `answer` is the longer decimal `gold`, rounded to three digits and within 0.2 %."""
    if gold is None or answer is None or (most := places(gold)) is None:
        return False
    kept = places(answer)
    if kept is None or (kept := kept + ending) >= most or abs(answer) * 10 ** kept < 100:
        return False
    return abs(gold - answer) * 10 ** kept <= Fraction(1, 2) and \
        abs(gold - answer) * 500 <= abs(gold)


def school_pi(gold: Fraction | None, tree: Tree) -> bool:
    """Whether `gold` is `tree` with 3.14 or 22/7 taken for π."""
    if gold is None or tree == _PI or exact(tree) is not None or places(gold) is None:
        return False
    return any(exact(numeric.replaced(tree, _PI, ("n", pi))) == gold for pi in _SCHOOL)


_PI: Tree = ("c", "pi")
_SCHOOL = (Fraction(314, 100), Fraction(22, 7))
