"""Cleaned answers in other words: without remarks, congruences as expressions, |x| as x."""

from __future__ import annotations

import re
from functools import lru_cache

from pipeline.judge.math.forms.number_words import in_ordinal
from pipeline.judge.math.latex import clean

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


_CONDITION = re.compile(
    r"\s*,?\s*(?=‹(?:for|where|with|when(?:ever)?|if|provided|given|such that|assuming|"
    r"as long as)\b|\\forall\b|,\s*\(?\s*[a-zA-Z](?:\s*,\s*[a-z])*\s*(?:\\in\b|‹(?:is|are|an?|any|"
    r"integer|constant)\b))")
_BOUND = re.compile(r"\s*,\s*(?=([a-z])\s*(?:<|>|\\(?:le|ge|ne)\b)[^,<>=]*$)")


def split_condition(text: str) -> tuple[str, str]:
    """A cleaned answer and what it holds for: "(n, 1)" and "for all n, m"; "" for no condition."""
    match = _CONDITION.search(text)
    if match is None and (bound := _BOUND.search(text)):
        before = text[:bound.start()]
        alone = re.match(rf"\s*{bound[1]}\s*(?:=|\\)", before) or \
            re.search(r"[<>]|\\(?:le|ge|ne)\b", before)
        if re.search(rf"(?<![A-Za-z\\]){bound[1]}(?![A-Za-z])", before) and not alone:
            match = bound
    if match is None or match.start() == 0 or _depth(text[:match.start()]):
        return text, ""
    if re.search(r",[^,<>]*[A-Za-z)]\s*=", text[match.end():]):
        return text, ""  # of one part only: another equation follows
    return text[:match.start()].strip(), text[match.end():].strip(" ,")


def _depth(text: str) -> int:
    return sum((char in "([{⦃⟦") - (char in ")]}⦄⟧") for char in text)


def without_remark(text: str) -> str:
    """A cleaned gold up to the words that say what it is ("x = 1 is the only solution")."""
    return _REMARK.sub("", text)


_SAID = {"dne": "does not exist", "doesn t exist": "does not exist", "oui": "yes", "ja": "yes",
         "sí": "yes", "да": "yes", "sim": "yes", "sì": "yes", "non": "no", "nein": "no",
         "нет": "no", "não": "no", "keine lösung": "no solution", "no solutions": "no solution",
         "pas de solution": "no solution", "sin solución": "no solution",
         "there is no solution": "no solution", "there are no solutions": "no solution"}
"""One saying for several, also of other languages."""

def words(text: str) -> str:
    """Letters and digits only, no articles: how texts are compared; symbols keep their case."""
    plain = [part.casefold() if len(part) > 2 or part.casefold() == "no" else part
             for part in re.sub(r"\\[A-Za-z]+|[^\w]", " ", text).split()]
    bare = [word for word in plain if word not in ("a", "an", "the")]
    if ordinal := in_ordinal(bare):
        return ordinal
    return _SAID.get(" ".join(bare), " ".join(bare or plain))


_ONE, _LOOSE = re.compile(r"\{([A-Za-z0-9])\}"), re.compile(r"(?<!\d)\s+|\s+(?!\d)")


@lru_cache(maxsize=50_000)
def key(text: str) -> str:
    """`text` cleaned, without spaces and braces that TeX would ignore: equal keys, equal answers"""
    return _LOOSE.sub("", _ONE.sub(r"\1", clean(text)))


_OFFERED = re.compile(r"\b([^\W\d_]{3,})(?: or |/)([^\W\d_]{3,})\b")
_NAME = re.compile(r"(?<=[^\s.!?:] )[A-Z][a-z]{2,}\b")
_QUALIFIED = re.compile(r"\d|\b(?:if|when|unless|for|or|only|but|neither|nor|not|no|never|cannot)\b"
                        r"|n['’]t\b", re.I)
"""What makes a sentence say more than which one it is."""


def chosen(gold: str, answer: str, statement: str) -> bool:
    """Whether `answer` is the one alternative of the problem that the sentence `gold` names.

    Alternatives are "odd or even" in the statement, and its proper names if it asks who.
    """
    said = words(clean(answer))
    if not statement or not said.isalpha() or _QUALIFIED.search(re.sub(r"\$[^$]*\$", "", gold)):
        return False
    offered = {word.casefold() for pair in _OFFERED.findall(statement) for word in pair}
    named = {name.casefold() for name in _NAME.findall(statement)} \
        if re.search(r"\b(?:who|whom)\b", statement, re.I) else set()
    held = set(re.findall(r"[^\W\d_]+", gold.casefold()))
    return any(said in ones and held & ones == {said} for ones in (offered, named))
