"""Numbers in words, English and Chinese: cardinals, fractions, halves, "point five"."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from pipeline.judge.math.forms import languages

_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
MAGNITUDES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
              "trillion": 10**12, "dozen": 12, "lakh": 10**5, "crore": 10**7, "score": 20}
_ORDINALS = ["third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
             "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth",
             "seventeenth", "eighteenth", "nineteenth"]
_PARTS = {name: 3 + i for i, name in enumerate(_ORDINALS)} | {
    "half": 2, "quarter": 4, "twentieth": 20, "hundredth": 100, "thousandth": 1000,
    "millionth": 10**6}
PARTS = _PARTS | {f"{name}s": size for name, size in _PARTS.items()} | {"halves": 2}
"""Denominators in words: "tenths" is 10."""
NUMBER_WORDS = frozenset([*_SMALL, *_TENS, *MAGNITUDES, *PARTS, "first", "second", "double",
                          "triple", "twice", "thrice", "once", "pair", "couple"])


@lru_cache(maxsize=5_000)
def in_words(text: str) -> Fraction | None:
    """The number that `text` spells ("one and three quarters", "minus two"), None of others."""
    if (foreign := languages.number(text)) is not None:
        return Fraction(foreign)
    tokens = text.casefold().replace("-", " ").split()
    if not tokens or len(tokens) > 14:
        return None
    if tokens[0] in ("negative", "minus"):
        value = in_words(" ".join(tokens[1:]))
        return None if value is None or value < 0 else -value
    if "point" in tokens[:-1]:
        return _decimal(tokens)
    if "in" in tokens or tokens[1:-1].count("of"):
        return _share(tokens)
    if tokens[-1] in PARTS:
        return _fraction(tokens)
    if tokens[:2] == ["half", "a"] or tokens[:2] == ["half", "an"]:
        rest = _cardinal(["one", *tokens[2:]])
        return None if rest is None else Fraction(rest, 2)
    whole = _cardinal(tokens)
    return None if whole is None else Fraction(whole)


_ORDINAL = {"first": 1, "second": 2, **{name: 3 + i for i, name in enumerate(_ORDINALS)},
            **{f"{ten[:-1]}ieth": 20 + 10 * i for i, ten in enumerate(_TENS)}, "hundredth": 100}


def in_ordinal(words: list[str]) -> str:
    """"5th" of "fifth", "5th" or "5 th"; "" of anything else."""
    said = "".join(words)
    if match := re.fullmatch(r"(\d{1,6})(?:st|nd|rd|th)", said):
        return f"{int(match[1])}th"
    if len(words) == 2 and words[0] in _TENS and 0 < _ORDINAL.get(words[1], 0) < 10:
        return f"{20 + 10 * _TENS.index(words[0]) + _ORDINAL[words[1]]}th"
    return f"{_ORDINAL[said]}th" if said in _ORDINAL else ""


def _share(tokens: list[str]) -> Fraction | None:
    """"one in four", "three out of four"."""
    said, _, over = " ".join(tokens).replace(" out of ", " in ").partition(" in ")
    part, whole = _cardinal(said.split()), _cardinal(over.split())
    return Fraction(part, whole) if part and whole and part < whole else None


def _decimal(tokens: list[str]) -> Fraction | None:
    at = tokens.index("point")
    whole, digits = _cardinal(tokens[:at]), tokens[at + 1:]
    if whole is None or not all(digit in _SMALL[:10] for digit in digits):
        return None
    return Fraction(f"{whole}." + "".join(str(_SMALL.index(digit)) for digit in digits))


def _fraction(tokens: list[str]) -> Fraction | None:
    """"three quarters", "a half", "two and a half"."""
    if "and" in tokens:
        at = len(tokens) - 1 - tokens[::-1].index("and")
        whole, part = _cardinal(tokens[:at]), _fraction(tokens[at + 1:])
        if whole is not None and part is not None and part < 1:
            return whole + part
    if tokens in (["half"], ["a", tokens[-1]], ["an", tokens[-1]]):
        return Fraction(1, PARTS[tokens[-1]])
    number = _cardinal(tokens[:-1])
    return None if not number else Fraction(number, PARTS[tokens[-1]])


def _cardinal(tokens: list[str]) -> int | None:
    """A whole number of words; None unless every word has its place."""
    if tokens in (["zero"], ["0"]):
        return 0
    total, group, last = 0, 0, 10**15
    for place, word in enumerate(tokens):
        if word == "and" and (group or total) and place < len(tokens) - 1:
            continue
        if word in ("a", "an") and place == 0 and len(tokens) > 1 and tokens[1] in MAGNITUDES:
            group = 1
        elif word in _SMALL[1:] and (group % 100 == 0 or (
                group % 10 == 0 and group % 100 and word in _SMALL[1:10])):
            group += _SMALL.index(word)
        elif word in _TENS and group % 100 == 0:
            group += 20 + 10 * _TENS.index(word)
        elif word == "hundred" and 0 < group < 100:
            group *= 100
        elif word in MAGNITUDES and word != "hundred" and (group or place == 0) and \
                MAGNITUDES[word] < last:
            last = MAGNITUDES[word]
            total, group = total + (group or 1) * last, 0
        else:
            return None
    return total + group or None


_DIGITS = {char: i for i, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_STEPS = {"十": 10, "百": 100, "千": 1000}
CHINESE = "零〇一二两三四五六七八九十百千万亿"
_CHINESE_NUMBER = re.compile(
    rf"(负)?(?:([{CHINESE}]+)分之)?(\d+(?:\.\d+)?(?:[十百千]?[万亿]+|[百千])|[{CHINESE}]+)"
    r"(?:点([零〇一二三四五六七八九]+))?")


def chinese(text: str) -> str:
    """The number that a run of Chinese numerals is, as LaTeX; "" of anything else."""
    match = _CHINESE_NUMBER.fullmatch(text)
    if not match:
        return ""
    value, sign = _chinese_whole(match[3]), "-" if match[1] else ""
    if value is None:
        return ""
    if match[2] == "百":
        return f"{sign}{value}\\%"
    if match[2]:
        bottom = _chinese_whole(match[2])
        return f"{sign}\\frac{{{value}}}{{{bottom}}}" if bottom else ""
    decimals = "." + "".join(str(_DIGITS[char]) for char in match[4]) if match[4] else ""
    return f"{sign}{value}{decimals}"


def _chinese_whole(text: str) -> Fraction | None:
    for name, size in (("亿", 10**8), ("万", 10**4)):
        if name in text:
            high, _, low = text.rpartition(name)
            first, second = _chinese_whole(high or "一"), _chinese_whole(low or "零")
            return None if first is None or second is None else first * size + second
    if re.fullmatch(r"\d+(?:\.\d+)?[十百千]?", text):
        step = _STEPS.get(text[-1], 1)
        return Fraction(text.rstrip("十百千")) * step
    total, digit = 0, None
    for char in text:
        if char in _STEPS:
            total, digit = total + (1 if digit is None else digit) * _STEPS[char], None
        else:
            digit = _DIGITS[char]
    return Fraction(total + (digit or 0))
