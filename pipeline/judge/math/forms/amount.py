"""A single value of an answer: an expression with its unit, or the words that it is."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from pipeline.judge.math import numeric
from pipeline.judge.math.forms.number_words import in_words
from pipeline.judge.math.forms.wording import harmless_after, harmless_before, is_name
from pipeline.judge.math.latex import FUNCTIONS
from pipeline.judge.math.node import Node
from pipeline.judge.math.parser import Tree, UnreadableError, read
from pipeline.judge.math.rational import UnsureError, exact
from pipeline.judge.math.units import Unit, unit_of

_WORD = r"(?:\^-?\d|[^›\d\s])++"
_UNIT = rf"‹{_WORD}(?:\s{_WORD}){{0,4}}\s?›"
_TAIL = re.compile(rf"(?:\s*(?:[-,]\s*)?\(?{_UNIT}\)?(?:\s*\^\s*(?:\{{\s*)?-?\d(?:\s*\}})?)?"
                   r"(?:\s*(?:/|\\cdot\b))?)+\s*$")
"""One way alone to read a text by it: by two, lists of words would take exponential time."""
_PERCENT = re.compile(r"\s*(?:%|‹(?:percent|percentage|pct|per cent)›)\s*$")
_PER_CENT = ("percent", "per cent", "pct")
_DEGREE = re.compile(r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|‹(?:degrees?|deg)›?)\s*"
                     r"(?:‹?\s*(C|F|[Cc]elsius|[Ff]ahrenheit)\s*›?)?\s*$")
_MINUTES = re.compile(r"(\d+)\s*\^\s*\{?\s*\\circ\s*\}?\s*(\d+)\s*(?:\^\s*\{?\s*)?(?:'|\\prime)"
                      r"\s*\}?(?:\s*(\d+)\s*(?:''|\"|\^\s*\{\s*\\prime\s*\\prime\s*\}))?")
_LEAD = re.compile(r"((?:‹[^›\d]*›\s*(?:[A-Za-z]\s*(?=‹))?)*)(?=[-\d.\\(A-Za-z])")
_SIGN = re.compile(r"\s*\b(?:negative|minus)$", re.I)
_COMPOUND = re.compile(r"(?:(\d+(?:\.\d+)?)\s*‹([^›\d]+)›[\s,]*){2,4}")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*‹([^›\d]+)›")
_CALLED = re.compile(rf"\b(?:{'|'.join(sorted(FUNCTIONS - {'sqrt'}))})\b")
_NUMERAL = re.compile(r"‹?(\d[\dA-F]*)›?\s*_\s*\{?\s*‹?(\w+)›?\s*\}?")


def amount(text: str) -> Node:
    """Read the value that `text` is; a node of kind text, modified or opaque if it is none."""
    if compound := _compound(text):
        return compound
    number, unit = _unit(text)
    label, detail = "", ""
    if (lead := _LEAD.match(number)) and lead[1]:
        number, label = number[lead.end():], re.sub(r"\s*[‹›]\s*", " ", lead[1]).strip()
        if sign := _SIGN.search(label):
            number, label = f"-({number})", label[:sign.start()]
        if not harmless_before(label):
            detail = "named" if is_name(label) and not label.endswith(" of") else "modified"
    tree, unit = _magnitude(_read(number, unit), unit.strip())
    if tree is None:
        return Node("opaque" if re.search(r"[\\\d^_=]", text) else "text", text)
    if unit not in ("", "%") and unit_of(unit) is None and not is_name(unit):
        detail = "modified"
    unit = unit or "°" * (tree[0] == "+" and _MINUTES.fullmatch(number.strip()) is not None)
    node = Node("value", text, tree=tree, unit=unit, label=label, detail=detail)
    if detail == "modified":
        return Node("modified", text, (replace(node, unit="", label="", detail=""),))
    return node


def _read(number: str, unit: str) -> Tree | None:
    if tree := _numeral(number) or _minutes(number):
        return tree
    try:
        if endless := _ENDLESS.match(number):
            return _geometric(read(number[endless.end():].strip()), endless[1], int(endless[2]))
        return read(number.strip())
    except UnreadableError:
        return None


_ENDLESS = re.compile(r"\s*\\sum\s*_\s*\{\s*([a-z])\s*=\s*(\d{1,3})\s*\}\s*"
                      r"\^\s*(?:\{\s*\\infty\s*\}|\\infty)")
_TERMS = 12
"""As many have one quotient in a geometric sum."""


def _geometric(term: Tree, name: str, first: int) -> Tree | None:
    """The value of the endless sum of `term` from `name` = `first` on, if it is geometric."""
    try:
        values = [exact(numeric.replaced(term, ("v", name), ("n", Fraction(first + k))))
                  for k in range(_TERMS)]
    except UnsureError:
        return None
    terms = [value for value in values if value]
    ratios = {after / before for before, after in pairwise(terms)}
    if len(terms) < _TERMS or len(ratios) > 1 or abs(ratio := ratios.pop()) >= 1:
        return None
    return ("n", terms[0] / (1 - ratio))


def _magnitude(tree: Tree | None, unit: str) -> tuple[Tree | None, str]:
    """The number with what "million" or "tenths" beside it multiplies; the unit left."""
    if tree is None or not unit or unit in "%°":
        return tree, unit
    left: list[str] = []
    for word in re.sub(r"[‹›]", " ", unit).split():
        known: Unit | None = unit_of(word) if len(word) > 3 else None
        if known is not None and not known[0] and known[1] != 1:
            tree = ("*", ("n", known[1]), tree)
        else:
            left.append(word)
    if len(left) == len(re.sub(r"[‹›]", " ", unit).split()):
        return tree, unit
    return tree, " ".join(word for word in left if word != "of")


def _unit(text: str) -> tuple[str, str]:
    """What stands before the unit, and the unit."""
    if match := _PERCENT.search(text):
        return text[:match.start()], "%"
    if (match := _DEGREE.search(text)) and not _CALLED.search(text):
        return text[:match.start()], "°" + (match[1] or "")[:1].upper()
    if (match := _TAIL.search(text)) and not _CALLED.search(match[0]):
        return text[:match.start()], match[0]
    return text, ""


def _compound(text: str) -> Node | None:
    """1 h 30 min as one measure, in its base unit."""
    if not _COMPOUND.fullmatch(text):
        return None
    parts = [(Fraction(number), unit_of(name)) for number, name in _PART.findall(text)]
    kinds = [unit[0] for _, unit in parts if unit]
    if len(kinds) < len(parts) or len(kinds[0]) != 1 or any(kind != kinds[0] for kind in kinds):
        return None
    total = sum(number * unit[1] for number, unit in parts if unit)
    return Node("value", text, tree=("n", Fraction(total)), unit=next(iter(kinds[0])))


def _minutes(text: str) -> Tree | None:
    """60°42'18" as a sum of degrees."""
    if not (match := _MINUTES.fullmatch(text.strip())):
        return None
    return ("+", *(("n", Fraction(int(part or 0), 60 ** power))
                   for power, part in enumerate(match.groups())))


def _numeral(text: str) -> Tree | None:
    """A numeral with its base, 2A_{16} or 43_{five}, as the symbol "43_5"."""
    if not (match := _NUMERAL.fullmatch(text.strip())):
        return None
    spelt = in_words(match[2])
    base = str(spelt) if spelt is not None else match[2]
    if not base.isdecimal() or not 2 <= int(base) <= 16:
        return None
    return ("v", f"{match[1]}_{int(base)}") \
        if all(int(digit, 16) < int(base) for digit in match[1]) else None


def plain_text(text: str) -> Node:
    """‹words› as text, or as the number, with its unit, that they spell."""
    said = text.strip("‹› .").split()
    for end in range(len(said), 0, -1):
        value = in_words(" ".join(said[:end]))
        unit = " ".join(said[end:])
        if value is not None and (unit in _PER_CENT or harmless_after(unit, single=value == 1)):
            return Node("value", text, tree=_spelt(value), unit="%" if unit in _PER_CENT else unit)
        if end < len(said) - 4:
            break
    return Node("text", text)


def _spelt(value: Fraction) -> Tree:
    if value.denominator == 1:
        return ("n", value)
    return ("/", ("n", Fraction(value.numerator)), ("n", Fraction(value.denominator)))
