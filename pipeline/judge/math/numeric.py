"""Equality of expression trees: exact for rationals, else at random points to thirty digits.

Everything is bounded before it is computed (exponents, factorials, sizes), so that no answer can
make it hang. Two expressions that agree to thirty digits at several points, with no term lost
against another, are equal (Schwartz 1980 for polynomials; sympy's `equals` works the same way);
where that cannot be told, Unsure is raised and the engine decides.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pipeline.judge.math.parser import Tree
from pipeline.judge.math.rational import TooLargeError, UnsureError, exact, small


@lru_cache(maxsize=20_000)
def symbols(tree: Tree) -> frozenset[str]:
    """The names of the free symbols of `tree`."""
    if tree[0] in ("n", "c"):
        return frozenset()
    if tree[0] == "v":
        return frozenset([tree[1]])
    return frozenset().union(*(symbols(part) for part in tree[1:] if isinstance(part, tuple)))


def replaced(tree: Tree, old: Tree, by: Tree) -> Tree:
    """`tree` with every subtree `old` replaced by the tree `by`."""
    if tree == old:
        return by
    return tuple(replaced(p, old, by) if isinstance(p, tuple) else p for p in tree)


def periodic(tree: Tree, name: str) -> bool:
    """Whether `name` counts the periods of a solution: a step of it is a fraction of π."""
    steps = [_evaluate(replaced(tree, ("v", name), ("n", Fraction(n))), {name: 0})
             for n in range(3)] if symbols(tree) == {name} else [0, 0, 1]
    step = steps[1] - steps[0]
    turns = step / _mp().pi * 60
    return step != 0 and _close(steps[2] - steps[1], step) and \
        abs(turns - _mp().nint(_mp().re(turns))) < 1e-25


@lru_cache(maxsize=1)
def _mp() -> Any:
    """An mpmath context of our own at 50 digits: its precision is never changed."""
    from mpmath.ctx_mp import MPContext

    context = MPContext()
    context.dps = 50
    return context


def number(tree: Tree) -> Any:
    """Evaluate a tree without symbols to 50 digits. Raises UnsureError if it has no value."""
    return _evaluate(tree, {})


def _evaluate(tree: Tree, point: Mapping[str, Any]) -> Any:
    mp = _mp()
    try:
        value = _node(tree, point, mp)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
        raise UnsureError(str(error)) from None
    if (value != 0 and not -1000 < mp.mag(value) < 1000) or not mp.isfinite(value):
        raise TooLargeError("value out of bounds")
    return value


def _node(tree: Tree, point: Mapping[str, Any], mp: Any) -> Any:
    head = tree[0]
    if head == "n":
        return mp.mpf(tree[1].numerator) / tree[1].denominator if \
            small(tree[1]) is not None else None
    if head == "v":
        return point[tree[1]]
    if head == "c":
        if tree[1] == "oo":
            raise UnsureError("infinity")
        return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[tree[1]]
    if head == "f":
        return _function(tree[1], [_evaluate(part, point) for part in tree[2:]], mp)
    parts = [_evaluate(part, point) for part in tree[1:]]
    if head == "+":
        return _sum(parts, mp)
    if head == "^":
        return _raise(parts[0], parts[1], mp)
    return parts[0] * parts[1] if head == "*" else parts[0] / parts[1]


def _sum(parts: list[Any], mp: Any) -> Any:
    """The sum; Unsure where a term is lost against another or most digits cancel."""
    total, largest = mp.fsum(parts), max(map(abs, parts))
    smallest = min((abs(part) for part in parts if part != 0), default=largest)
    if smallest < largest * mp.mpf("1e-20"):
        raise UnsureError("terms too far apart")
    if abs(total) < largest * mp.mpf("1e-42"):
        return mp.mpf(0)
    if abs(total) < largest * mp.mpf("1e-12"):
        raise UnsureError("terms cancel")
    return total


def _raise(base: Any, exponent: Any, mp: Any) -> Any:
    if base == 0 or abs(exponent * mp.log(abs(base) + 1e-99)) > 1500:
        if base == 0 and mp.re(exponent) > 0:
            return base
        raise TooLargeError("power out of bounds")
    real = mp.im(base) == 0 and mp.re(base) < 0 and mp.im(exponent) == 0
    if real and (odd := mp.nint(1 / exponent)) % 2 == 1 and abs(exponent * odd - 1) < 1e-40:
        return -((-base) ** exponent)
    return base ** exponent


_NAMES = frozenset(["ln", "exp", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos",
                    "arctan", "arccot", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "floor",
                    "ceil", "cis"])


def _function(name: str, arguments: list[Any], mp: Any) -> Any:
    first = arguments[0]
    if any(abs(argument) > 10_000 for argument in arguments):
        raise TooLargeError("argument out of bounds")
    if name == "abs":
        return abs(first)
    if name == "degree":
        return first * mp.pi / 180
    if name == "conj":
        return mp.conj(first)
    if name in ("gcd", "lcm"):
        return _of_integers(name, arguments, mp)
    if name in ("max", "min"):
        return _extreme(name, arguments, mp)
    if name in ("factorial", "double factorial", "binom"):
        return {"factorial": mp.factorial, "double factorial": mp.fac2,
                "binom": mp.binomial}[name](*arguments)
    if name == "log":
        return mp.log(first, 10)
    if name not in _NAMES:
        raise UnsureError(f"no value for {name}")
    return getattr(mp, "expj" if name == "cis" else name.replace("arc", "a"))(first)


def _extreme(name: str, arguments: list[Any], mp: Any) -> Any:
    if any(mp.im(value) for value in arguments):
        raise UnsureError(f"{name} of complex numbers")
    return max(arguments) if name == "max" else min(arguments)


def _of_integers(name: str, arguments: list[Any], mp: Any) -> Any:
    numbers = [int(mp.re(value)) for value in arguments]
    if any(value != number for value, number in zip(arguments, numbers, strict=True)):
        raise UnsureError(f"{name} of what is no integer")
    return mp.mpf(getattr(math, name)(*numbers))


def _points(names: frozenset[str], negative: bool) -> Iterator[dict[str, Any]]:
    source = random.Random("limbeck")
    size = -10_007 if negative else 10_007
    for _ in range(3):
        yield {name: _mp().mpf(source.randrange(3_000, 29_000)) / size for name in sorted(names)}


def _far_points(names: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Whole and broken points up to 60, where step functions that differ have parted."""
    source = random.Random("steps")
    for number in range(40):
        yield {name: _mp().mpf(source.randrange(1, 60)) / (number % 2 + 1)
               for name in sorted(names)}


def holds(tree: Tree, *head: str) -> bool:
    """Whether a subtree of `tree` begins with `head`."""
    return tree[:2] == head or any(holds(t, *head) for t in tree[1:] if isinstance(t, tuple))


def equal(left: Tree, right: Tree) -> bool:
    """Whether two trees are the same function of the same symbols. May raise UnsureError."""
    a, b = exact(left), exact(right)
    if a is not None and b is not None:
        return a == b
    names = symbols(left) | symbols(right)
    steps = any(holds(tree, "f", name) for tree in (left, right) for name in ("floor", "ceil"))
    if steps and names and not all(_close(_evaluate(left, point), _evaluate(right, point))
                                   for point in _far_points(names)):
        return False
    signs = (False, True) if holds(left, "f", "abs") != holds(right, "f", "abs") else (False,)
    return all(_close(_evaluate(left, point), _evaluate(right, point))
               for sign in signs for point in _points(names, sign))


def constant(tree: Tree) -> bool:
    """Whether `tree` has one value whatever its symbols. Raises UnsureError if untold."""
    values = [_evaluate(("+", tree, ("n", Fraction(7, 3))), point)
              for point in _points(symbols(tree), False)]
    return all(_close(value, values[0]) for value in values)


def _close(a: Any, b: Any) -> bool:
    return bool(abs(a - b) <= max(abs(a), abs(b)) * _mp().mpf("1e-28"))


def ratio(left: Tree, right: Tree) -> int | None:
    """The sign of c if left = c·right for a constant c ≠ 0, else None."""
    names = symbols(left) | symbols(right)
    ratios = [_evaluate(("/", left, right), point) for point in _points(names, False)]
    if not names or any(not _close(r, ratios[0]) for r in ratios) or ratios[0] == 0:
        return None
    return 1 if _mp().re(ratios[0]) > 0 else -1
