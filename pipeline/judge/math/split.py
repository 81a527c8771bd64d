"""Where a cleaned answer falls apart: brackets, relations, and labels that only name it."""

from __future__ import annotations

import re

from pipeline.judge.math.numeric import number
from pipeline.judge.math.parser import UnreadableError, read
from pipeline.judge.math.rational import UnsureError, exact

OPEN, CLOSE = "([{⦃⟦", ")]}⦄⟧"
_RELATION = re.compile(r"\\le\b|\\ge\b|\\ne\b|\\in\b|\\approx\b|\\equiv\b|\\sim\b|[=<>]")
_TOP = re.compile(_RELATION.pattern + r"|[\[({⦃})\]⦄]|‹[^›]*›")
_LABEL = re.compile(
    r"(?:[A-Za-z]|\\(?!pi\b|frac\b|sqrt\b|infty\b|emptyset\b|varnothing\b)[A-Za-z]+)\s*(?:_\s*(?:\{[^{}]*\}|\w))?\s*'*\s*"
    r"(?:\(\s*(?:[a-z]|\d+)(?:\s*,\s*[a-z])*\s*\))?|[A-Z]{2,5}|P\s*\([A-Z]\)|"
    r"(?:‹[^‹›]*›|[EV])\s*[(\[]\s*[A-Z](?:\s*[,|]\s*[A-Z])*\s*[)\]]|"
    r"\\frac\s*\{\s*(?:[A-Z]{1,3}\s*\}\s*\{\s*[A-Z]{1,3}|d\s*[a-z]?\s*\}\s*\{\s*d\s*[a-z])\s*\}|"
    r"\\frac\s*\{\s*\\partial\s*[a-z]\s*\}\s*\{\s*\\partial\s*[a-z]\s*\}|"
    r"\\(?:sin|cos|tan|cot)\s*[A-Za-z]|\\(?:sin|cos|tan)\s*\\(?:alpha|beta|theta)"
    r"|(?:‹m›|m)?\s*\\(?:angle|triangle)\s*[A-Z]+|\[\s*‹?[A-Z]{3,6}›?\s*\]"
    r"|\\(?:max|min)\s*(?:_\s*(?:\{[^{}=]*\}|\w)\s*)?[A-Za-z]\s*(?:\([a-z\s,]+\))?"
    r"|(?:[^\d=‹›]*+‹[^›]*+›)+\s*|\|\s*[A-Za-z]{1,2}\s*\|"
    r"|[A-Z]\w*\s*(?:_\s*(?:\{[^{}]*\}|\w))?(?:\s*:\s*[A-Z]\w*\s*(?:_\s*(?:\{[^{}]*\}|\w))?)?")
_TUPLE_LABEL = re.compile(r"\(\s*[^\d()=]{1,8}(?:\([a-z]\)\s*)?(?:,[^\d=,]{1,8}?)+\s*\)")
_AFTER = re.compile(r"\s*(?:‹[^›]*›(?:\s*\^\s*\{?\s*\d\s*\}?)?|%|\\ldots|…|\.\.\.)\s*$")


def split_top(text: str, separators: str) -> list[str]:
    """`text` at the separators that stand in no bracket. Any closing bracket closes any opening."""
    for separator in separators:
        if separator in text:
            break
    else:
        return [text.strip()]
    parts, depth, start, quoted = [], 0, 0, False
    for position, char in enumerate(text):
        quoted = char == "‹" or (quoted and char != "›")
        depth += (char in OPEN) - (char in CLOSE)
        if char in separators and depth <= 0 and not quoted:
            parts.append(text[start:position])
            start = position + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def rounds_to(exactly: str, roughly: str) -> bool:
    """Whether `roughly` is within a hundredth of `exactly`, or its last digit is rounded."""
    try:
        first, second = (number(read(_AFTER.sub("", side))) for side in (exactly, roughly))
    except (UnreadableError, UnsureError, KeyError):
        return False
    digits = re.search(r"\.(\d+)", roughly)
    last = 10.0 ** -len(digits[1]) if digits else 0.0
    return bool(abs(first - second) <= max(abs(first) / 100, 0.5001 * last))


def evaluates_to(left: str, right: str) -> bool:
    """Whether `left` is arithmetic that comes to `right`: 35 + 70 = 105 offers one answer."""
    try:
        first, second = exact(read(left)), exact(read(_AFTER.sub("", right)))
    except (UnreadableError, UnsureError):
        return False
    return first is not None and first == second and read(left)[0] != "n"


def in_order(points: list[str]) -> list[str]:
    """Numbers by size, each once; [] where one of them is no real number."""
    try:
        sized = {number(read(point)): point for point in points}
        return [sized[size] for size in sorted(sized)]
    except (UnreadableError, UnsureError, KeyError, TypeError):
        return []


def is_label(text: str) -> bool:
    """Whether `text` only names an answer: x, a_1, f(x), AB, (x, y), words; never a value."""
    return bool(_LABEL.fullmatch(text) or _TUPLE_LABEL.fullmatch(text))


def split_relation(text: str) -> tuple[list[str], list[str]]:
    if not _RELATION.search(text):
        return [text.strip()], []
    parts, ops, start, level = [], [], 0, 0
    for match in _TOP.finditer(text):
        token = match[0]
        if token in OPEN or token in CLOSE:
            level += 1 if token in OPEN else -1
        elif level <= 0 and token[0] != "‹":
            parts.append(text[start:match.start()].strip())
            ops.append(token)
            start = match.end()
    return [*parts, text[start:].strip()], ops


def is_bracketed(text: str) -> bool:
    """Whether the first bracket of `text` is closed by its last."""
    depth = 0
    for position, char in enumerate(text):
        depth += (char in OPEN) - (char in CLOSE)
        if depth == 0:
            return position == len(text) - 1
    return False
