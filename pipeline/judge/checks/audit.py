"""A second grader for the audit, independent of the first: no parser, no engine, strings alone.

It strips LaTeX to a bare spelling and compares strings, then fractions; lists as sorted parts. It
knows no algebra, so it misses right answers. A person should look if it says "equal" and the judge
does not, or if the judge relied on rules it lacks.
"""

from __future__ import annotations

import re
from fractions import Fraction

_BARE = (
    (re.compile(r"\\(?:left|right|displaystyle|,|;|!|quad|qquad)(?![a-z])|\$|\\ |~|\s"), ""),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\(?:text|mathrm|mbox|textbf|operatorname)\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\frac\{([^{}]*)\}\{([^{}]*)\}"), r"(\1)/(\2)"),
    (re.compile(r"\\frac(\d)(\d)"), r"(\1)/(\2)"),
    (re.compile(r"\^\{?\\circ\}?|\\?%|\\\$|degrees?$|\.$"), ""),
    (re.compile(r"\^\{(\w)\}"), r"^\1"),
    (re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))|\\!|\{,\}"), ""),
    (re.compile(r"^[a-zA-Z](?:\([a-z]\))?=(?=.)|^.\\in(?![a-z])"), ""),
    (re.compile(r"\((-?[\w.]+)\)/\((-?[\w.]+)\)"), r"\1/\2"))


def bare(text: str) -> str:
    """`text` in the bare spelling: "\\dfrac{1}{2}" is "1/2"."""
    for pattern, replacement in _BARE:
        text = pattern.sub(replacement, text)
    return text.casefold()


def second_grader(answer: str, gold: str) -> bool:
    """Whether the bare spellings agree as strings, as rationals, or as sorted lists."""
    first, other = bare(answer[:2000]), bare(gold[:2000])
    if first == other or _parts(first) == _parts(other):
        return True
    one, two = _rational(first), _rational(other)
    return one is not None and one == two


def _parts(text: str) -> list[str]:
    return sorted(text.strip("{}\\").split(",")) if "(" not in text and "[" not in text else [text]


def _rational(text: str) -> Fraction | None:
    if not re.fullmatch(r"-?\d{1,50}(?:\.\d{1,50})?(?:/-?\d{1,50})?", text):
        return None
    top, _, bottom = text.partition("/")
    divisor = Fraction(bottom or 1)
    return Fraction(top) / divisor if divisor else None
