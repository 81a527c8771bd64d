"""Units, roundings and lowest terms: what surrounds the value of a number."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from pipeline.verify import value
from pipeline.verify.node import Node
from pipeline.verify.expression import Tree


def reduced(tree: Tree) -> bool:
    if tree[0] != "/" or not tree[1][0] == tree[2][0] == "n":
        return True
    return Fraction(tree[1][1], tree[2][1]).denominator == tree[2][1]


def rounds(tree: Tree, decimal: Any, other: Any, digits: int, cut: bool = False) -> bool:
    """Whether `tree` is a decimal of at least `digits` significant digits and rounds `other`.

    `cut` also takes a decimal that was cut off instead of rounded, as golds are at times.
    """
    if decimal.imag or other.imag:
        return False
    number = value.exact(tree)
    places = value.places(number) if number is not None else None
    if not places or number is None:
        return False
    significant = len(str(abs(int(number * 10 ** places))))
    difference = (abs(other) - abs(decimal)) * 10 ** places
    low = 0 if cut else 0.5
    close = -0.5 - 1e-9 <= difference <= (1 - low) + 1e-9
    return significant >= digits and decimal * other > 0 and bool(close)


_SAME_UNIT = {"inches": "in", "inch": "in", "feet": "ft", "foot": "ft", "meters": "m", "meter": "m",
              "metres": "m", "centimeters": "cm", "kilometers": "km", "miles": "mi", "mile": "mi",
              "seconds": "s", "second": "s", "sec": "s", "hours": "h", "hour": "h", "hr": "h",
              "hrs": "h", "minutes": "min", "minute": "min", "grams": "g", "gram": "g",
              "kilograms": "kg", "kilogram": "kg", "yards": "yd", "yard": "yd", "days": "day",
              "cents": "cent", "dollars": "dollar", "millimeters": "mm", "weeks": "week",
              "months": "month", "years": "year", "gallons": "gallon", "liters": "l", "liter": "l"}
_KNOWN = frozenset(_SAME_UNIT.values()) | {"sq"}


def unit_of(node: Node) -> str:
    """The unit of a value in one spelling, "" without: `square feet` is `ft 2`."""
    names = re.findall(r"[A-Za-z]+|\d|°|%", node.unit)
    power = {"square": "2", "sq": "2", "cubic": "3"}
    plain = [_SAME_UNIT.get(n.lower(), n.lower()) for n in names if n.lower() not in power]
    return " ".join(plain + [power[n.lower()] for n in names if n.lower() in power])


def other_unit(a: str, b: str) -> bool:
    """Whether both are measures that we know, and not the same one."""
    first, second = a.split(" ")[0], b.split(" ")[0]
    return first in _KNOWN and second in _KNOWN and a != b and (
        first != second or a.split()[1:] != [] != b.split()[1:])
