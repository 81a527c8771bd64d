"""Whether two parsed answers are the same answer under a Policy: yes, no, or None (cannot tell)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from pipeline.judge.math import numeric
from pipeline.judge.math.forms.chemistry import formula, is_chemistry
from pipeline.judge.math.forms.equations import equations, substituted
from pipeline.judge.math.forms.languages import if_foreign
from pipeline.judge.math.forms.moments import moment, same_moment
from pipeline.judge.math.forms.wording import bare_condition, comparable, is_universal
from pipeline.judge.math.latex import clean
from pipeline.judge.math.node import (
    Node,
    all_of,
    any_of,
    bound_letters,
    cross_equal,
    distinct,
    ends_of,
    flat,
    is_infinite,
    labels_of,
    permuted,
    points,
    relettered,
    spread,
)
from pipeline.judge.math.parse import parse
from pipeline.judge.math.parser import UnreadableError
from pipeline.judge.math.phrases import key, without_remark, words
from pipeline.judge.math.rational import UnsureError
from pipeline.judge.math.values import Quantities
from pipeline.judge.verdict import Policy

_MONOTONE = re.compile(
    r"monoton|(?:increasing|decreasing) (?:on|interval)"
    r"|intervals? (?:of (?:in|de)crease|(?:where|on which) .{0,40}(?:in|de)creas)", re.I)
_GROUPS = frozenset(("list", "tuple", "set", "interval", "union", "matrix", "piecewise"))
_SUM = re.compile(r"[A-Za-z](?:\s*\+\s*[A-Za-z])+")
"""A sum that a problem asks for, as m + n."""
_EITHER = re.compile(r"\bor\b|\\lor\b|\\vee\b")
_BOTH = re.compile(r"\band\b|\\land\b|\\wedge\b")


def same(gold: str, answer: str, policy: Policy, statement: str = "") -> bool | None:
    """Whether `answer` equals `gold`; the symbols of the problem's `statement` are not free."""
    result = _same(gold, answer, policy, statement)
    if result is False and (if_foreign(gold) or if_foreign(answer)) and any(
            _same(a, b, policy, statement) for a in (gold, if_foreign(gold))
            for b in (answer, if_foreign(answer)) if a and b):
        return None
    return result


def _same(gold: str, answer: str, policy: Policy, statement: str) -> bool | None:
    if early := decided_before_reading(gold, answer, policy, statement):
        return early[1]
    results = [Comparison(policy, statement).same(a, b) for a in readings(gold, gold=True)
               for b in readings(answer) if not a.detail == b.detail == "decimal comma"]
    if True in results:
        return not _joined_otherwise(gold, answer)
    return None if None in results else False


def decided_before_reading(gold: str, answer: str, policy: Policy,
                           statement: str) -> tuple[str, bool | None] | None:
    """(rule, result) if the two texts are enough; None if they must be read."""
    if gold.isascii() and gold.isdecimal() and answer.isascii() and answer.isdecimal() and \
            not policy.tolerance:
        return "whole numbers", gold.lstrip("0") == answer.lstrip("0")
    if is_chemistry(gold) and (said := formula(answer)):
        return "chemical formula", said == formula(gold)
    if key(gold) == key(answer) and not policy.reduced:
        return "the same text", not _joined_otherwise(gold, answer)
    if "?" in answer and "?" not in gold:
        return "a question", None if re.search(r"\w", answer) else False
    told = moment(gold, statement)
    if told is None and (also := moment(answer, statement)) and also.minutes is not None:
        told = moment(gold, statement, timed=True)
    if told is None:
        return None
    also = moment(answer, statement, timed=told.minutes is not None)
    if also is not None:
        return "time or date", same_moment(told, also)
    return "time or date", None if parse(answer).kind in ("text", "opaque") else False


def _joined_otherwise(gold: str, answer: str) -> bool:
    """Whether one says "or" and the other "and" of equations that a value does not settle."""
    first, second = parse(gold), parse(answer)
    if first.kind != "list" or second.kind != "list" or (not all(
            item.tree is None or numeric.symbols(item.tree) for item in first.items) \
            and len({item.label for item in first.items}) < 2):
        return False
    sides = [(bool(_EITHER.search(text)), bool(_BOTH.search(text))) for text in (gold, answer)]
    return sides in ([(True, False), (False, True)], [(False, True), (True, False)])


def readings(text: str, gold: bool = False) -> list[Node]:
    """A number with a comma may also be a decimal ("1,25") or a list ("100,200"); a gold may end
    in words that say what it is."""
    plain, node = clean(text), parse(text)
    if gold and not node.condition and (short := without_remark(plain)) not in ("", plain):
        return [node, parse(short)]
    if match := re.fullmatch(r"(-?\d+),(\d{2,})(\D*)", plain):
        point = [] if re.fullmatch(r"[1-9]\d{0,2},\d{3}", plain) else \
            [replace(parse(f"{match[1]}.{match[2]}{match[3]}"), detail="decimal comma")]
        return [node, *point, *([] if match[3] else [parse(plain.replace(",", ", "))])]
    return [node]


class Comparison(Quantities):
    """One comparison of whole answers."""

    def same(self, a: Node, b: Node) -> bool | None:
        """Gold `a` against answer `b`, with what they hold for."""
        result = self.shapes(a, b)
        if result is False and (letters := bound_letters(a, b)):
            result = self.shapes(relettered(a, *letters), b)
        if result is not False and (a.condition or b.condition):
            return all_of([result, self.conditions(a.condition, b.condition)])
        return result

    def shapes(self, a: Node, b: Node) -> bool | None:
        if self.policy.gold_is_set and a.kind in ("list", "set") and b.kind not in ("list", "set"):
            return any_of(self.same(item, b) for item in a.items)
        if "modified" in (a.kind, b.kind):
            return self.modified(a, b)
        if "relation" in (a.kind, b.kind):
            return self.relations(a, b)
        if a.kind == b.kind == "value":
            return self.values(a, b)
        if a.kind in _GROUPS or b.kind in _GROUPS:
            return self.groups(a, b)
        if "ratio" in (a.kind, b.kind):
            return self.ratios(a, b)
        return self.texts(a, b)

    def conditions(self, first: str, second: str) -> bool | None:
        """Whether two answers hold for the same; one that only names its letters adds nothing."""
        if not first or not second:
            return True if is_universal(first or second, alone=True) else None
        left, right = ("" if is_universal(one) else bare_condition(one)
                       for one in (first, second))
        if left == right or (sorted(comparable(left).split()) == sorted(comparable(right).split()) \
                and not re.search(r"[\d=<>\\]", left + right)):
            return True
        if not left or not right:
            return None
        if not re.search(r"[\d=<>\\]", left + right):
            return False
        nodes = parse(left), parse(right)
        if any(node.kind in ("opaque", "text") for node in nodes):
            return False if re.search(r"[A-Za-z]", left + right) else None
        return self.same(*nodes)

    def modified(self, a: Node, b: Node) -> bool | None:
        """A number with words that change it is not that number; what it is, is not known."""
        inner = self.same(*(node.items[0] if node.kind == "modified" else node for node in (a, b)))
        if a.kind == b.kind:
            return inner if comparable(a.text) == comparable(b.text) else inner and None
        return False if inner and a.kind == "value" else None

    def texts(self, a: Node, b: Node) -> bool | None:
        left, right = words(a.text), words(b.text)
        if re.fullmatch(r"\d+th", left) and left == right:
            return True
        plain = not re.search(r"[\\^_=<>+*/|(){}\d]", a.text + b.text)
        if left and plain and (left == right or (
                comparable(a.text) == comparable(b.text) != "" and _short(left) == _short(right))):
            return True
        if left in ("yes", "no") and (said := re.match(r"‹(yes|no)[,.;:]", b.text, re.I)):
            return said[1].lower() == left
        if is_infinite(a) and is_infinite(b):
            return True
        if a.kind == "value" and (b.kind == "text" or not re.search(r"[A-Za-z\\‹]", b.text)):
            return False
        return False if a.kind == "text" and len(left.split()) == 1 else None

    def groups(self, a: Node, b: Node) -> bool | None:
        """Collections: element by element, ordered or as multisets (see Policy.order)."""
        if "ratio" in (a.kind, b.kind):
            return False
        if "piecewise" in (a.kind, b.kind):
            if a.kind != b.kind:
                return None if "opaque" in (a.kind, b.kind) else False
            return self.matched(a.items, b.items) if len(a.items) == len(b.items) else False
        a, b = permuted(a, b), flat(b, a)
        if (named := self.names(a, b)) is not True:
            return named if named is False or key(a.text) != key(b.text) else None
        if (a.kind not in _GROUPS) != (b.kind not in _GROUPS):
            single, group = (a, b) if a.kind not in _GROUPS else (b, a)
            if len(group.items) == 1 and group.kind in ("set", "list", "union"):
                return self.same(a.items[0] if group is a else a, b.items[0] if group is b else b)
            if group is b and b.kind == "list" and len(b.items) == 2 and \
                    all(self.same(a, item) for item in b.items):
                return True
            return None if single.kind == "opaque" or (single is a and a.kind == "text") else False
        if {a.kind, b.kind} in ({"set", "tuple"}, {"set", "interval"}):
            return False
        left, right = (distinct(points(node) or spread(node)) for node in (a, b))
        if "interval" in (a.kind, b.kind) and ends_of(a) != ends_of(b) and not self.open_ends():
            return False
        if len(left) != len(right):
            return False
        if not self.ordered(a, b):
            return self.matched(left, right)
        return all_of(self.same(x, y) for x, y in zip(left, right, strict=True))

    def open_ends(self) -> bool:
        """Whether ends are free: a function that rises on [a, b] rises on (a, b) too."""
        return self.policy.ends == "free" or bool(_MONOTONE.search(self.statement))

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
            results = [(item.kind == "set") == (other.kind == "set") and self.same(item, other)
                       for other in rest]
            if True in results:
                rest.pop(results.index(True))
            elif None in results:
                unsure = True
            else:
                return False
        return None if unsure else True

    def ratios(self, a: Node, b: Node) -> bool | None:
        """a:b against c:d, or against a fraction; 3:30 pm is no ratio."""
        if a.kind == b.kind:
            if len(a.items) != len(b.items):
                return False
            if a.items[-1].unit or b.items[-1].unit:
                return all_of(self.same(x, y) for x, y in zip(a.items, b.items, strict=True))
            try:
                pairs = [cross_equal(x, y, a.items[0], b.items[0])
                         for x, y in zip(a.items[1:], b.items[1:], strict=True)]
            except (UnsureError, UnreadableError):
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
        if b.kind == "relation" and b.detail == "=" and a.kind == "value" and not a.label \
                and a.tree and not numeric.symbols(a.tree):
            sides = [item for item in b.items if not _SUM.fullmatch(item.text)]
            return self.same(a, sides[0]) if len(sides) == 1 else False
        if a.kind == "relation" and b.kind == "value" and a.detail == "=":
            return substituted(a, b)
        if a.kind != b.kind:
            return equations(a, b) if a.label or b.label or "interval" in (a.kind, b.kind) \
                else False
        if a.detail == b.detail and len(a.items) == len(b.items) and \
                all_of(self.same(x, y) for x, y in zip(a.items, b.items, strict=True)):
            return True
        if a.detail == b.detail and len(a.items) == len(b.items) > 2 and all(
                item.tree and item.tree[0] == "v" for item in (*a.items, *b.items)):
            return False
        return equations(a, b)


def _short(text: str) -> list[str]:
    """The words so short that they may be symbols, whose case counts."""
    return sorted(word for word in text.split() if len(word) < 3 and word.casefold() not in (
        "is", "be", "it", "to", "of", "no"))
