"""Answers in words: how they are compared, and when a phrase stands for a sentence."""

from __future__ import annotations

import re

from pipeline.verify.extract import is_prose
from pipeline.verify.latex import clean

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


def words(text: str) -> str:
    """Letters and digits only, lower case: how texts are compared."""
    return " ".join(re.sub(r"\\[A-Za-z]+|[^\w]", " ", text).casefold().split())


def key(text: str) -> str:
    """`text` cleaned, without spaces and braces that TeX would ignore: equal keys, equal answers"""
    return re.sub(r"\s+|\\cdot\b", "", re.sub(r"\{([A-Za-z0-9])\}", r"\1", clean(text)))
