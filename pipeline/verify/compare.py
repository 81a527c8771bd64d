"""Whether two parsed answers are the same answer under a Policy: yes, no, or None (cannot tell)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from pipeline.verify import value
from pipeline.verify.answer import parse, without_aside
from pipeline.verify.node import Node
from pipeline.verify.elements import (
    all_of,
    any_of,
    cross_equal,
    distinct,
    endless,
    ends_of,
    infinite,
    labels_of,
    spread,
)
from pipeline.verify.expression import Tree, Unreadable
from pipeline.verify.judgement import Policy
from pipeline.verify.latex import clean
from pipeline.verify.measure import coarsely, reduced, rounds, school_pi, unit_of
from pipeline.verify.relation import equations, substituted
from pipeline.verify.wording import key, phrase_of, words

_FUNCTION = re.compile(r"[A-Za-z]\w*\s*\(\s*([a-z])\s*\)\s*")
_PARAMETERS = frozenset("kmnltjscC")
"""Letters that a solver may choose for a free integer or constant."""
_MONOTONE = re.compile(r"monotone|monotonic|(?:increasing|decreasing) (?:on|interval)"
                       r"|intervals? (?:of (?:in|de)crease|where|on which .{0,40}(?:in|de)creas)", re.I)
_GROUPS = frozenset(("list", "tuple", "set", "interval", "union", "matrix"))
_MONTH = re.compile(r"\b(?:january|february|march|april|may|june|july|august|september|october|"
                    r"november|december)\b")


def same(gold: str, answer: str, policy: Policy, given: str = "") -> bool | None:
    """Whether `answer` equals `gold`; `given` is the problem's text (its symbols are not free)."""
    if key(gold) == key(answer) and not policy.reduced:
        return True
    if phrase_of(answer, gold):
        return True
    left, right = parse(gold), parse(answer)
    results = [Comparison(policy, given).same(a, b)
               for a in _readings(gold, left) for b in _readings(answer, right)]
    if True in results:
        return True
    return None if None in results else False


def _readings(text: str, node: Node) -> list[Node]:
    """A number with a comma may also be a decimal ("1,25") or a list ("100,200")."""
    plain = clean(text)
    if match := re.fullmatch(r"(-?\d+),(\d{2,})(\D*)", plain):
        point = [] if re.fullmatch(r"[1-9]\d{0,2},\d{3}", plain) else \
            [parse(f"{match[1]}.{match[2]}{match[3]}")]
        return [node, *point, *([] if match[3] else [parse(plain.replace(",", ", "))])]
    short = without_aside(plain)
    return [node, parse(short)] if short and short != plain else [node]


class Comparison:
    """One comparison: the policy and the text of the problem."""

    def __init__(self, policy: Policy, given: str) -> None:
        self.policy, self.given = policy, given

    def same(self, a: Node, b: Node) -> bool | None:
        """Gold `a` against answer `b`."""
        if self.policy.gold_is_set and a.kind in ("list", "set") and b.kind not in ("list", "set"):
            return any_of(self.same(item, b) for item in a.items)
        if "relation" in (a.kind, b.kind):
            return self.relations(a, b)
        if a.kind == b.kind == "value":
            return self.values(a, b)
        if a.kind in _GROUPS or b.kind in _GROUPS:
            return self.groups(a, b)
        if "ratio" in (a.kind, b.kind):
            return self.ratios(a, b)
        return self.texts(a, b)

    def texts(self, a: Node, b: Node) -> bool | None:
        left, right = words(a.text), words(b.text)
        if left and left == right and "text" in (a.kind, b.kind):
            return True
        if _MONTH.search(left) and sorted(left.split()) == sorted(right.split()):
            return True
        if endless(a) and endless(b):
            return True
        if (a.kind == "value" and b.kind == "text") or (
                a.kind == "text" and len(left.split()) == 1):
            return False
        return None

    def values(self, a: Node, b: Node) -> bool | None:
        assert a.tree and b.tree
        if self.otherwise_named(a, b) or (self.policy.reduced and not reduced(b.tree)):
            return False
        pairs = [(self.same_argument(a, b), b.tree)]
        if a.unit != b.unit and {a.unit, b.unit} & {"%", "°"} and (
                "" in (a.unit, b.unit) or "%" in (a.unit, b.unit)):
            pairs = self.scaled(a, b)
        elif a.unit != b.unit:
            pairs = self.measured(a, b)
        return any_of(self.trees(left, right) for left, right in pairs)

    def otherwise_named(self, a: Node, b: Node) -> bool:
        """Whether the answer is said to be of another unknown or, in words, of another thing."""
        if a.label == b.label or not (a.label and b.label):
            return False
        if len(a.label) == len(b.label) == 1:
            return not self.given or b.label in re.findall(r"[A-Za-z]+", self.given)
        return a.text.startswith("‹") and b.text.startswith("‹") and "=" not in a.text + b.text

    def measured(self, a: Node, b: Node) -> list[tuple[Tree, Tree]]:
        """Values with different units: both in base units; a unit may be left out by policy."""
        assert a.tree and b.tree
        first, second = unit_of(a.unit), unit_of(b.unit)
        plain = [(a.tree, b.tree)] if self.policy.units == "optional" else []
        if first is None or second is None:
            return plain
        inside: list[tuple[Tree, Tree]] = [
            (("*", ("n", first[1]), a.tree), ("*", ("n", second[1]), b.tree))]
        if first[0] == second[0]:
            bare = not a.unit or not b.unit
            return [*plain, *inside] if bare else inside
        return plain if not (a.unit and b.unit) else []

    def same_argument(self, a: Node, b: Node) -> Tree:
        """The gold's tree, with the argument of f(z) = … called as the answer calls it."""
        assert a.tree
        names = [_FUNCTION.fullmatch(node.label) for node in (a, b)]
        if not names[0] or not names[1] or names[0][1] == names[1][1]:
            return a.tree
        return value.replaced(a.tree, ("v", names[0][1]), ("v", names[1][1]))

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
        if a == b or _numeral(a) == _numeral(b) != "":
            return True
        try:
            if value.equal(a, b):
                return True
            if self.near(a, b):
                return True
            return self.renamed(a, b)
        except value.TooLarge:
            raise
        except value.Unsure:
            return False if infinite(a) != infinite(b) else None

    def near(self, a: Tree, b: Tree) -> bool:
        """Equal within the policy's tolerance, or one is the other correctly rounded."""
        if value.symbols(a) or value.symbols(b):
            return False
        left, right = value.number(a), value.number(b)
        if self.policy.tolerance and abs(left - right) <= self.policy.tolerance * abs(left):
            return True
        if self.policy.rounding == "coarse" and coarsely(value.exact(a), value.exact(b)):
            return True
        return rounds(a, left, right, 3, cut=b[0] != "n") or school_pi(value.exact(a), b) or \
            (not value.terminates(a) and rounds(b, right, left, self.policy.digits))

    def renamed(self, a: Tree, b: Tree) -> bool:
        """Equal up to the name of one symbol that the problem does not give: kπ and nπ."""
        old, new = value.symbols(a) - value.symbols(b), value.symbols(b) - value.symbols(a)
        if len(old) != 1 or len(new) != 1 or a[0] == "v" or not new <= _PARAMETERS \
                or not self.free(*old):
            return False
        return value.equal(value.replaced(a, ("v", *old), ("v", *new)), b)

    def free(self, name: str) -> bool:
        letter = name.lstrip("\\")
        alone = rf"(?<![A-Za-z]){re.escape(letter)}(?![A-Za-z])"
        return letter.isalpha() and bool(self.given) and not re.search(alone, self.given)

    def groups(self, a: Node, b: Node) -> bool | None:
        """Collections: element by element, ordered or as multisets (see Policy.order)."""
        if "ratio" in (a.kind, b.kind):
            return False
        if (a.kind not in _GROUPS) != (b.kind not in _GROUPS):
            single, group = (a, b) if a.kind not in _GROUPS else (b, a)
            if len(group.items) == 1 and group.kind in ("set", "list", "union"):
                return self.same(a.items[0] if group is a else a, b.items[0] if group is b else b)
            if group is b and b.kind == "list" and len(b.items) == 2 and \
                    all(self.same(a, item) for item in b.items):
                return True
            return None if single.kind == "opaque" or (single is a and a.kind == "text") else False
        left, right = distinct(spread(a)), distinct(spread(b))
        if "interval" in (a.kind, b.kind) and ends_of(a) != ends_of(b) and not self.open_ends():
            return False
        if len(left) != len(right):
            return False
        if not self.ordered(a, b):
            return self.matched(left, right)
        return all_of(self.same(x, y) for x, y in zip(left, right, strict=True))

    def open_ends(self) -> bool:
        """A function rises on (a, b) where it rises on [a, b]: such problems leave the ends free"""
        return self.policy.ends == "free" or bool(_MONOTONE.search(self.given))

    def ordered(self, a: Node, b: Node) -> bool:
        if self.policy.order != "tuples":
            return self.policy.order == "all" or {a.kind, b.kind} <= {"interval"}
        if {a.kind, b.kind} <= {"list", "set", "union"}:
            return bool(labels_of(a)) and labels_of(a) == labels_of(b)
        return True

    def matched(self, left: Sequence[Node], right: Sequence[Node]) -> bool | None:
        """Whether the multisets pair off; None where an undecided pair could make it so."""
        rest, unsure = list(right), False
        for item in left:
            results = [self.same(item, other) for other in rest]
            if True in results:
                rest.pop(results.index(True))
            elif None in results:
                unsure = True
            else:
                return False
        return None if unsure else True

    def ratios(self, a: Node, b: Node) -> bool | None:
        """a:b against c:d, or against a fraction."""
        if a.kind == b.kind:
            if len(a.items) != len(b.items):
                return False
            try:
                pairs = [cross_equal(x, y, a.items[0], b.items[0])
                         for x, y in zip(a.items[1:], b.items[1:], strict=True)]
            except (value.Unsure, Unreadable):
                return all_of(self.same(x, y) for x, y in zip(a.items, b.items, strict=True))
            return all(pairs)
        ratio, other = (a, b) if a.kind == "ratio" else (b, a)
        if len(ratio.items) != 2 or other.kind != "value" or None in [n.tree for n in ratio.items]:
            return None if other.kind in ("opaque", "text") else False
        quotient = Node("value", ratio.text, tree=("/", ratio.items[0].tree, ratio.items[1].tree))
        return self.same(*((quotient, other) if ratio is a else (other, quotient)))

    def relations(self, a: Node, b: Node) -> bool | None:
        """An equation is an answer only where the gold is one; chains must agree throughout."""
        if b.detail == "chain" and a.kind != "relation":
            return all_of(self.same(a, item) for item in b.items)
        if a.detail == "chain" and b.kind != "relation":
            return all_of(self.same(item, b) for item in a.items)
        if a.kind == "relation" and b.kind == "list" and set(a.detail.split()) in ({"<"}, {">"}) \
                and len(a.items) == len(b.items) > 2:
            return all_of(self.same(x, y) for x, y in zip(a.items, b.items, strict=True))
        if a.kind == "relation" and b.kind == "value" and a.detail == "=":
            return substituted(a, b)
        if a.kind != b.kind:
            return equations(a, b) if a.label or b.label or "interval" in (a.kind, b.kind) \
                else False
        if a.detail == b.detail and len(a.items) == len(b.items) and \
                all_of(self.same(x, y) for x, y in zip(a.items, b.items, strict=True)):
            return True
        return equations(a, b)


_HUNDREDTH: Tree = ("n", Fraction(1, 100))


def _scaled(node: Node, unit: str, *operation: Any) -> Tree:
    """The tree of a value, with the operation that its unit stands for."""
    assert node.tree
    return (*operation, node.tree) if node.unit == unit else node.tree


def _numeral(tree: Tree) -> str:
    """The digits of a numeral, whose base may go without saying."""
    if tree[0] == "v" and re.fullmatch(r"\d+_\d+", tree[1]):
        return str(tree[1].partition("_")[0])
    return str(tree[1]) if tree[0] == "n" and tree[1].denominator == 1 else ""
