"""Cleaned answers in other words: without remarks, congruences as expressions, |x| as x."""

from __future__ import annotations

import re

from pipeline.judge.extract import is_prose
from pipeline.judge.math.latex import clean

_ASIDE = re.compile(r"\s*,?\s*(?:‹(?:for|where|with|when|if)\b[^›\d]*›|\\forall\b"
                    r"|,\s*\(?\s*[a-z]\s*\\in\s*[ZNQℝ]\b)"
                    r"(?:[^\d=+]|(?:[<>]|\\(?:ge|le|ne)|[ZN] *[_^] *\{?) *0)*$")
_REMARK = re.compile(r"\s*‹(?:is|are|which|since|because)\b(?!.*\b(?:not|no|never)\b).*$")
_CONGRUENT = re.compile(r"(?:\(?[a-z]\)?\s*\\equiv|‹[^›]*\bcongruent to›)\s*([-\d\s,]+?)\s*\(?\s*"
                        r"(?:\\[pb]?mod\b|‹mod(?:ulo)?›)\s*\{?\s*(\d{1,9})\s*\}?\s*\)?")


def congruence(text: str) -> str:
    """n ≡ 2, 3 (mod 4) as "4k + 2, 4k + 3"; "" of anything else."""
    if not (match := _CONGRUENT.fullmatch(text)) or not (modulus := int(match[2])):
        return ""
    rests = [int(rest) % modulus for rest in re.findall(r"-?\d{1,18}", match[1])]
    return ", ".join(f"{modulus}k + {rest}" for rest in rests)


_DISTANCE = re.compile(r"\|\s*([a-z])\s*\|\s*(<|>|\\le|\\ge)\s*([^<>=|,\\]+)")


def distance(text: str) -> str:
    """|x| < a as "-a < x < a", |x| > a as both its rays; "" of anything else."""
    if not (match := _DISTANCE.fullmatch(text)):
        return ""
    name, sign, bound = match.groups()
    if sign in ("<", "\\le"):
        return f"-({bound}) {sign} {name} {sign} {bound}"
    turned = {">": "<", "\\ge": "\\le"}[sign]
    return f"{name} {turned} -({bound}) , {name} {sign} {bound}"


def without_aside(text: str) -> str:
    """A cleaned answer up to its first aside ("(n, 1) for all n, m" is (n, 1))."""
    return _ASIDE.sub("", text)


def without_remark(text: str) -> str:
    """A cleaned gold up to the words that say what it is ("x = 1 is the only solution")."""
    return _REMARK.sub("", text)


_FUNCTION_WORDS = frozenset([
    "a", "an", "the", "is", "are", "it", "of", "to", "in", "on", "at", "by", "for", "and", "or",
    "its", "be", "was", "this", "that", "which", "there", "any", "all", "answer", "correct",
    "true", "false", "number", "result", "solution", "value"])
_TURNING = re.compile(r"\b(?:than|not|no|never|neither|nor|without|or|if|cannot)\b|n't|\?", re.I)


def phrase_of(answer: str, gold: str) -> bool:
    """A short text that a gold sentence contains word for word: "odd" of "It is an odd number".

    Only where the sentence compares and negates nothing, so that the phrase cannot be its
    opposite or the other alternative.
    """
    plain = clean(answer)
    if not re.fullmatch(r"[‹› A-Za-z-]{3,60}", plain) or not is_prose(gold) or len(gold) > 300:
        return False
    phrase, sentence = words(plain), f" {words(gold)} "
    content = [word for word in phrase.split() if word not in _FUNCTION_WORDS]
    return bool(content) and len(max(content, key=len)) > 2 and f" {phrase} " in sentence \
        and not _TURNING.search(gold)


_SAID = {"dne": "does not exist", "doesn t exist": "does not exist"}
_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def words(text: str) -> str:
    """Letters and digits only, lower case, no articles: how texts are compared."""
    plain = re.sub(r"\\[A-Za-z]+|[^\w]", " ", text).casefold().split()
    bare = [word for word in plain if word not in ("a", "an", "the")]
    return _SAID.get(" ".join(bare), " ".join(bare or plain))


def number_word(text: str) -> str:
    """The digits of a number below a hundred in words ("forty two"), "" of anything else."""
    first, _, last = text.casefold().replace("-", " ").partition(" ")
    if first in _SMALL and not last:
        return str(_SMALL.index(first))
    if first not in _TENS or last not in ("", *_SMALL[1:10]):
        return ""
    return str(20 + 10 * _TENS.index(first) + (_SMALL.index(last) if last else 0))


def key(text: str) -> str:
    """`text` cleaned, without spaces and braces that TeX would ignore: equal keys, equal answers"""
    bare = re.sub(r"\{([A-Za-z0-9])\}", r"\1", clean(text))
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)|\\cdot\b", "", bare)
