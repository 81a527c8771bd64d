"""Units, roundings and lowest terms: what surrounds the value of a number."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pipeline.judge.math import numeric
from pipeline.judge.math.parser import Tree
from pipeline.judge.math.rational import exact, places


def reduced(tree: Tree) -> bool:
    if tree[0] != "/" or not tree[1][0] == tree[2][0] == "n":
        return True
    return Fraction(tree[1][1], tree[2][1]).denominator == tree[2][1]


def zeros(text: str) -> int:
    """How many zeros end the decimal in `text`: 251.60 says more than 251.6."""
    return len(found[1]) if (found := re.search(r"[.,]\d*?(0+)(?!\d)", text)) else 0


def rounds(tree: Tree, decimal: Any, other: Any, digits: int, cut: bool = False,
           ending: int = 0) -> bool:
    """Whether `tree` is a decimal of at least `digits` significant digits and rounds `other`.

    `cut` also takes a decimal that was cut off instead of rounded, as golds are at times;
    `ending` counts the zeros that it was written with.
    """
    number = exact(tree)
    digits_after = places(number) if number is not None and not other.imag else None
    if digits_after is None or number is None or not (digits_after := digits_after + ending):
        return False
    significant = len(str(abs(int(number * 10 ** digits_after))))
    difference = (abs(other) - abs(decimal)) * 10 ** digits_after
    close = -0.5 - 1e-9 <= difference <= (1 if cut else 0.5) + 1e-9
    return significant >= digits and decimal * other > 0 and bool(close)


def coarsely(gold: Fraction | None, answer: Fraction | None, ending: int = 0) -> bool:
    """Whether `answer` is the longer decimal `gold`, rounded to three digits and within 0.2 %."""
    if gold is None or answer is None or (given := places(gold)) is None:
        return False
    kept = places(answer)
    if kept is None or (kept := kept + ending) >= given or abs(answer) * 10 ** kept < 100:
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
_SIZES: dict[str, dict[str, str | int | Fraction]] = {
    "m": {"m": 1, "meter": 1, "metre": 1, "in": Fraction("0.0254"), "inch": Fraction("0.0254"),
          "ft": Fraction("0.3048"), "foot": Fraction("0.3048"), "feet": Fraction("0.3048"),
          "yd": Fraction("0.9144"), "yard": Fraction("0.9144"), "mi": Fraction("1609.344"),
          "mile": Fraction("1609.344")},
    "s": {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hr": 3600,
          "hour": 3600, "day": 86400, "week": 604800},
    "month": {"month": 1, "year": 12, "yr": 12},
    "g": {"g": 1, "gram": 1, "lb": Fraction("453.59237"), "pound": Fraction("453.59237")},
    "l": {"l": 1, "L": 1, "liter": 1, "litre": 1}, "gallon": {"gallon": 1, "gal": 1},
    "dollar": {"dollar": 1, "usd": 1, "cent": Fraction(1, 100), "¢": Fraction(1, 100)},
    "": {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
         "trillion": 10**12, "dozen": 12},
    "J": {"J": 1, "joule": 1}, "N": {"N": 1, "newton": 1}, "W": {"W": 1, "watt": 1},
    "Pa": {"Pa": 1, "pascal": 1}, "Hz": {"Hz": 1, "hertz": 1}, "V": {"V": 1, "volt": 1},
    "ohm": {"ohm": 1, "Ω": 1}, "C": {"C": 1, "coulomb": 1}, "A": {"A": 1, "amp": 1, "ampere": 1},
    "K": {"K": 1, "kelvin": 1}, "T": {"T": 1, "tesla": 1}, "mol": {"mol": 1, "mole": 1},
    "eV": {"eV": 1}, "°": {"°": 1}, "am": {"am": 1, "AM": 1}, "pm": {"pm": 1, "PM": 1}}
_UNITS = {name: (base, Fraction(size)) for base, sizes in _SIZES.items()
          for name, size in sizes.items()}
_PREFIXED = frozenset(["m", "g", "s", "l", "L", "J", "N", "W", "Pa", "Hz", "V", "ohm", "C", "A",
                       "mol", "eV", "meter", "metre", "gram", "liter", "litre", "second", "joule",
                       "newton", "watt", "volt"])
_PREFIXES = {"n": -9, "μ": -6, "µ": -6, "m": -3, "c": -2, "d": -1, "k": 3, "M": 6, "G": 9,
             "nano": -9, "micro": -6, "milli": -3, "centi": -2, "kilo": 3, "mega": 6}
_POWERS = {"square": 2, "squared": 2, "sq": 2, "cubic": 3, "cubed": 3}
_TOKEN = re.compile(r"[^\W\d_]+|[°¢]|-?\d|/|\^")
Unit = tuple[dict[str, int], Fraction]


@lru_cache(maxsize=5_000)
def unit_of(text: str) -> Unit | None:
    """(powers of base units, size in them) of a unit as amount() leaves it; None if not known."""
    tokens = _TOKEN.findall(re.sub(r"\bper\b", "/", text))
    powers: dict[str, int] = {}
    size, sign, waiting, last = Fraction(1), 1, 1, ("", Fraction(1), 0)
    for token in tokens:
        if token == "/":
            sign = -1
        elif token in _POWERS:
            waiting = _POWERS[token]
            if token.endswith("d"):
                token, waiting = str(waiting), 1
        if re.fullmatch(r"-?\d", token):
            base, one, before = last
            more = int(token) * (1 if before > 0 else -1) - before
            powers[base] = powers.get(base, 0) + more
            size *= one ** more
        elif token not in _POWERS and token not in "/^":
            if (named := _named(token)) is None:
                return None
            last = (*named, sign * waiting)
            powers[named[0]] = powers.get(named[0], 0) + last[2]
            size *= named[1] ** last[2]
            sign, waiting = 1, 1
    return {base: n for base, n in powers.items() if base and n}, size


def _named(token: str) -> tuple[str, Fraction] | None:
    """Base unit and size of one name: km, kilometers, Hours. Short names keep their case."""
    names = [token]
    if len(token) > 2:
        names += [token.lower(), token.lower().removesuffix("s"), token.lower().removesuffix("es")]
    for name in names:
        if name in _UNITS:
            return _UNITS[name]
    for prefix, power in _PREFIXES.items():
        for name in names:
            if name.startswith(prefix) and name.removeprefix(prefix) in _PREFIXED:
                base, size = _UNITS[name.removeprefix(prefix)]
                return base, size * Fraction(10) ** power
    return None
