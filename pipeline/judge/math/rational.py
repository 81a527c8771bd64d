"""Rational arithmetic on expression trees, bounded before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from math import isqrt, prod

from pipeline.judge.math.parser import Tree

MAX_BITS = 20_000


class UnsureError(ArithmeticError):
    """The value is out of bounds or cannot be told from another safely."""


class NoNumberError(UnsureError):
    """A division by zero."""


class TooLargeError(UnsureError):
    """A number that no grader should write out: the engine is not asked either."""


@lru_cache(maxsize=20_000)
def exact(tree: Tree) -> Fraction | None:
    """The rational that `tree` is, or None. Raises UnsureError if it is too large."""
    head = tree[0]
    if head == "n":
        return tree[1]
    if head not in ("+", "*", "/", "^") and (head != "f" or tree[1] not in _EXACT):
        return None
    parts = [exact(part) for part in tree[1 + (head == "f"):]]
    if any(part is None for part in parts):
        return None
    return small(_combine(tree[1] if head == "f" else head,
                          [part for part in parts if part is not None]))


def _combine(head: str, parts: list[Fraction]) -> Fraction | None:
    if head == "+":
        return sum(parts, Fraction(0))
    if head == "*":
        return parts[0] * parts[1]
    if head in _EXACT:
        return _EXACT[head](parts)
    if head == "/":
        if parts[1] == 0:
            raise NoNumberError("division by zero")
        return parts[0] / parts[1]
    return _power(*parts)


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _exact_root(base, exponent)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS or (base == 0 and exponent <= 0):
        raise TooLargeError("power out of bounds")
    return base ** int(exponent)


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """√ of a rational square, else None."""
    if exponent != Fraction(1, 2) or base < 0:
        return None
    top, bottom = isqrt(base.numerator), isqrt(base.denominator)
    return Fraction(top, bottom) if Fraction(top, bottom) ** 2 == base else None


def _factorial(n: Fraction, step: int = 1) -> Fraction:
    if n.denominator != 1 or not 0 <= n <= 1000:
        raise TooLargeError("factorial out of bounds")
    return Fraction(prod(range(int(n), 0, -step)))


_EXACT: Mapping[str, Callable[[list[Fraction]], Fraction]] = {
    "factorial": lambda parts: _factorial(parts[0]),
    "double factorial": lambda parts: _factorial(parts[0], 2), "max": max, "min": min}


def small(value: Fraction | None) -> Fraction | None:
    if value is not None and \
            max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooLargeError("number out of bounds")
    return value


def places(number: Fraction) -> int | None:
    """Decimal places of a terminating decimal, None of any other rational (or beyond 30)."""
    rest, counts = number.denominator, {2: 0, 5: 0}
    for prime in counts:
        while rest % prime == 0 and counts[prime] <= 30:
            rest //= prime
            counts[prime] += 1
    most = max(counts.values())
    return most if rest == 1 and most <= 30 else None
