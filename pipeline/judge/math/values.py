"""Single values under a Policy: numbers with units, roundings, percentages, formulas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

from pipeline.judge.math import numeric
from pipeline.judge.math.forms.constants import renamed
from pipeline.judge.math.forms.wording import content, harmless_after
from pipeline.judge.math.node import Node, any_of
from pipeline.judge.math.parser import Tree
from pipeline.judge.math.rational import NoNumberError, TooLargeError, UnsureError, exact, places
from pipeline.judge.math.rounding import (
    coarsely,
    cut_off,
    is_double,
    literal,
    reduced,
    rounds,
    school_pi,
    zeros,
)
from pipeline.judge.math.units import unit_of
from pipeline.judge.verdict import Policy

_FUNCTION = re.compile(r"[A-Za-z]\w*\s*\(\s*([a-z])\s*\)\s*")
_PRECISION = re.compile(r"decimal (?:place|point)|nearest \w+|significant (?:fig|dig)"
                        r"|\bround(?:ed)?\b|approximat", re.I)
_HUNDREDTH: Tree = ("n", Fraction(1, 100))


class Quantities:
    """Comparison of two values: the policy and the text of the problem."""

    def __init__(self, policy: Policy, statement: str) -> None:
        self.policy, self.statement = policy, statement
        self.zeros = (0, 0)  # that end the decimals compared now
        self.called = False  # the argument of a function was renamed, so nothing else may be

    def values(self, a: Node, b: Node) -> bool | None:
        assert a.tree and b.tree
        named = self.names(a, b)
        if named is False or (self.policy.reduced and not reduced(b.tree)):
            return False
        self.zeros = zeros(a.text), zeros(b.text)
        self.called = self.same_argument(a, b) is not a.tree
        if a.unit != b.unit and "%" in (a.unit, b.unit) and a.unit and b.unit:
            return False
        pairs: list[tuple[Tree, Tree]] | None = [(self.same_argument(a, b), b.tree)]
        if a.unit != b.unit and {a.unit, b.unit} & {"%", "°"} and (
                "" in (a.unit, b.unit) or "%" in (a.unit, b.unit)):
            pairs = self.scaled(a, b)
        elif a.unit != b.unit:
            pairs = self.measured(a, b)
        if pairs is None:
            return None
        equal = any_of(self.trees(left, right) for left, right in pairs)
        return None if equal and named is None else equal

    def names(self, a: Node, b: Node) -> bool | None:
        """Whether both are said to be the same thing; one that names nothing agrees with all."""
        first, second = _name(a), _name(b)
        if first == second:
            return True
        if not first or not second:
            return None if "named" in (a.detail, b.detail) else True
        if "‹" in first + second:
            left, right = set(content(first)), set(content(second))
            if ("‹" in first) != ("‹" in second):
                return None
            return left <= right or right <= left
        if {first[0], second[0]} == {"y", "f"} and "(" in first + second and \
                max(len(first), len(second)) == 4 and min(len(first), len(second)) == 1:
            return True
        calls = [_FUNCTION.fullmatch(name) for name in (first, second)]
        if calls[0] and calls[1] and first.partition("(")[0] == second.partition("(")[0]:
            return True
        return bool(self.statement) and len(first) == len(second) == 1 and first not in "yz" and \
            not {first, second} & set(re.findall(r"[A-Za-z]+", self.statement))

    def measured(self, a: Node, b: Node) -> list[tuple[Tree, Tree]] | None:
        """Pairs to compare of values with different units, [] if they differ, None if unsure.

        Both in base units; a unit may be left out by policy.
        """
        (left, unit), (right, other) = _lettered(a, b), _lettered(b, a)
        first, second = unit_of(unit), unit_of(other)
        if not unit or not other:
            if self.policy.units == "required":
                return []
            said = unit or other
            one = ("n", Fraction(1)) in (left, right)
            if unit or harmless_after(said, self.statement, one):
                return [(left, right)]
            return None
        if {unit, other} & {"°"} and "\\pi" in a.text + b.text and "rad" in unit + other:
            return self.scaled(replace(a, unit=unit.replace("rad", "").strip("‹› ian")),
                               replace(b, unit=other.replace("rad", "").strip("‹› ian")))
        if sorted((unit.strip("‹› ").rstrip("s"), other.strip("‹› ").rstrip("s"))) == \
                ["pound", "quid"]:
            return [(left, right)]  # £, whose name is also that of a weight
        if first is not None and second is not None:
            return [(("*", ("n", first[1]), left), ("*", ("n", second[1]), right))] \
                if first[0] == second[0] else []
        words, others = set(content(unit)), set(content(other))
        if words == others or {"°", "°C"} >= {unit, other} or {"°", "°F"} >= {unit, other}:
            return [(left, right)]
        return None if words < others or others < words else []

    def same_argument(self, a: Node, b: Node) -> Tree:
        """The gold's tree, with the argument of f(z) = … called as the answer calls it."""
        assert a.tree
        names = [_FUNCTION.fullmatch(node.label) for node in (a, b)]
        if not names[0] or not names[1] or names[0][1] == names[1][1]:
            return a.tree
        return numeric.replaced(a.tree, ("v", names[0][1]), ("v", names[1][1]))

    def scaled(self, a: Node, b: Node) -> list[tuple[Tree, Tree]]:
        """Both readings of a percentage, and degrees as radians where the other side has π."""
        assert a.tree and b.tree
        plain: list[tuple[Tree, Tree]] = [(a.tree, b.tree)]
        if "°" in (a.unit, b.unit):
            if "\\pi" not in a.text + b.text:
                return plain
            return [(_scaled(a, "°", "f", "degree"), _scaled(b, "°", "f", "degree")), *plain]
        shares = (_scaled(a, "%", "*", _HUNDREDTH), _scaled(b, "%", "*", _HUNDREDTH))
        return {"either": [*plain, shares], "number": plain, "value": [shares]}[self.policy.percent]

    def trees(self, a: Tree, b: Tree) -> bool | None:
        if a == b or _bare_numeral(a, b) or _bare_numeral(b, a):
            return True
        try:
            if numeric.equal(*(same_ellipsis_sum(a, b) or (a, b))):
                return True
            if self.near(a, b):
                return True
            return not self.called and renamed(a, b, self.statement)
        except TooLargeError:
            raise
        except NoNumberError:
            return False
        except UnsureError:
            return False if numeric.holds(a, "c", "oo") != numeric.holds(b, "c", "oo") else None

    def near(self, a: Tree, b: Tree) -> bool:
        """Equal within the policy's tolerance, or a decimal that rounds the other (rounding.py)."""
        decimals = [value for value in map(literal, (a, b)) if value and value.denominator > 1]
        close = decimals or self.policy.tolerance or numeric.holds(b, "c", "pi")
        if not close or numeric.symbols(a) or numeric.symbols(b):
            return False
        first, second = exact(a), exact(b)
        left, right = numeric.number(a), numeric.number(b)
        if self.policy.tolerance and abs(left - right) <= self.policy.tolerance * abs(left):
            return True
        if self.policy.rounding == "coarse" and coarsely(first, second, self.zeros[1]):
            return True
        if is_double(b, left) or school_pi(first, b):
            return True
        if self.endless(first) and rounds(b, left, self.policy.digits, self.zeros[1]):
            return True
        if self.endless(second) and cut_off(a, right):
            return True  # a gold that was cut off: no decimal can be an answer of this kind
        asked = self.asked() and literal(b) is None  # a longer decimal was not rounded as asked
        return (self.endless(second) or asked) and rounds(a, right, 2 if asked else 3,
                                                          self.zeros[0])

    @staticmethod
    def endless(value: Fraction | None) -> bool:
        """Whether a value has no decimal that ends; `value` is its fraction if it has one."""
        return value is None or places(value) is None

    def asked(self) -> bool:
        """Whether the problem asks for a rounded answer."""
        return self.policy.rounding == "asked" and bool(_PRECISION.search(self.statement))

def _name(node: Node) -> str:
    """What a node is said to be, without layout and without words that only state."""
    if not node.label:
        return ""
    if "‹" in node.label or re.fullmatch(r"[A-Za-z' -]*(?:[a-z]{4,}| )[A-Za-z' -]*", node.label):
        return f"‹{' '.join(content(node.label))}›" if content(node.label) else ""
    return re.sub(r"[\s{}]|\\(?:mathrm|text)", "", node.label)


def _lettered(node: Node, beside: Node) -> tuple[Tree, str]:
    """Value and unit; 26000 m, which reads as a product, is a length beside another length."""
    tree = node.tree
    assert tree
    if node.unit or not beside.unit or tree[0] != "*" or tree[2][0] != "v" \
            or numeric.symbols(tree[1]):
        return tree, node.unit
    own, other = unit_of(tree[2][1]), unit_of(beside.unit)
    return (tree[1], tree[2][1]) if own and other and own[0] == other[0] else (tree, "")


def _scaled(node: Node, unit: str, *operation: Any) -> Tree:
    """The tree of a value, with the operation that its unit stands for."""
    assert node.tree
    return (*operation, node.tree) if node.unit == unit else node.tree


def _bare_numeral(a: Tree, b: Tree) -> bool:
    """Whether `a` is the numeral `b` with the base that `b` leaves out: 1011_2 and 1011."""
    if a[0] != "v" or b[0] != "n" or not (found := re.fullmatch(rf"({b[1]})_(\d+)", a[1])):
        return False
    return int(found[2]) > 1 and all(int(digit) < int(found[2]) for digit in found[1])


_DOTS: Tree = ("v", "…")
_SUM: Tree = ("v", "Σ")


def same_ellipsis_sum(a: Tree, b: Tree) -> tuple[Tree, Tree] | None:
    """Replace the same dotted sum in both trees by one symbol; None if it is not the same."""
    first, second = list(_dotted(a)), list(_dotted(b))
    if len(first) != 1 or len(second) != 1 or not _same(first[0], second[0]):
        return None
    return numeric.replaced(a, first[0], _SUM), numeric.replaced(b, second[0], _SUM)


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
    return all(numeric.equal(x, y) for end in ends for x, y in end)
