"""A single value of an answer: an expression with its unit, or the words that it is."""

from __future__ import annotations

import re
from fractions import Fraction

from pipeline.judge.math.latex import FUNCTIONS
from pipeline.judge.math.node import Node
from pipeline.judge.math.parser import Tree, UnreadableError, read
from pipeline.judge.math.phrases import number_word, words
from pipeline.judge.math.units import unit_of

_WORD = r"(?:\^-?\d|[^›\d\s])++"
_UNIT = (r"‹(?!(?:unless|but|not|maybe|perhaps|possibly|otherwise)\b)"
         rf"{_WORD}(?:\s{_WORD}){{0,3}}\s?›")
_TAIL = re.compile(rf"(?:\s*(?:[-,]\s*)?\(?{_UNIT}\)?(?:\s*\^\s*(?:\{{\s*)?-?\d(?:\s*\}})?)?"
                   r"(?:\s*/)?)+\s*$")
"""One way alone to read a text by it: by two, lists of words would take exponential time."""
_PERCENT = re.compile(r"\s*(?:%|‹(?:percent|percentage|pct)›)\s*$")
_DEGREE = re.compile(r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|‹degrees?›)\s*(?:‹?[CF]›?)?\s*$")
_MINUTES = re.compile(r"(\d+)\s*\^\s*\{?\s*\\circ\s*\}?\s*(\d+)\s*(?:\^\s*\{?\s*)?(?:'|\\prime)"
                      r"\s*\}?(?:\s*(\d+)\s*(?:''|\"|\^\s*\{\s*\\prime\s*\\prime\s*\}))?")
_LEAD = re.compile(r"‹([^›\d]*)›\s*(?=[-\d.\\(])")
_BOUND = re.compile(r"\b(?:least|most|less|more|fewer|greater|larger|smaller|not|no|non|never|than|"
                    r"over|under|above|below|beyond|before|after|until|except|without|between|up|"
                    r"minus|negative|almost|nearly|neither|nor|twice|half|double|triple|thirds?|"
                    r"quarters?|times|squared?|cubed?|root|log)\b", re.I)
_COMPOUND = re.compile(r"(?:(\d+(?:\.\d+)?)\s*‹([^›\d]+)›[\s,]*){2,4}")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*‹([^›\d]+)›")
_CALLED = re.compile(rf"\b(?:{'|'.join(sorted(FUNCTIONS - {'sqrt'}))})\b")
_NUMERAL = re.compile(r"‹?(\d[\dA-F]*)›?\s*_\s*\{?\s*‹?(\w+)›?\s*\}?")


def amount(text: str) -> Node:
    """The value that `text` is; text or opaque where it reads as none.

    Words in front of a number only name it, unless they bound or deny it ("at least 5").
    """
    if compound := _compound(text):
        return compound
    number, unit = _unit(text)
    label = ""
    if lead := _LEAD.match(number):
        if _BOUND.search(lead[1]):
            return Node("opaque", text)
        number, label = number[lead.end():], lead[1]
    if tree := _numeral(number) or _minutes(number):
        return Node("value", text, tree=tree, unit=unit or "°" * (tree[0] == "+"), label=label)
    try:
        return Node("value", text, tree=read(number.strip()), unit=unit.strip(), label=label)
    except UnreadableError:
        return Node("opaque" if re.search(r"[\\\d^_=]", text) else "text", text)


def _unit(text: str) -> tuple[str, str]:
    """What stands before the unit, and the unit."""
    if match := _PERCENT.search(text):
        return text[:match.start()], "%"
    if (match := _DEGREE.search(text)) and not _CALLED.search(text):
        return text[:match.start()], "°"
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
    base = number_word(match[2]) or match[2]
    if not base.isdecimal() or not 2 <= int(base) <= 16:
        return None
    return ("v", f"{match[1]}_{int(base)}") \
        if all(int(digit, 16) < int(base) for digit in match[1]) else None


def plain_text(text: str) -> Node:
    """‹words› as text, or as the number that they spell."""
    number = number_word(words(text))
    return Node("value", text, tree=("n", Fraction(number))) if number else Node("text", text)
