"""A problem as it is compared: two rules, for the same text and for the same problem.

`as_typed` decides silently that a problem is there twice, so nothing that may tell two apart is
left out: "left" is no LaTeX command there, a drawing counts. `normal_words`, for likeness that is
reported, sees through typesetting: LaTeX layout and synonyms do not count, nor do drawings. Case
and punctuation count in neither, the signs of arithmetic in both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from pipeline.shingles import Words, words

_NOISE = ("left", "right", "displaystyle", "text", "mathrm", "mathbf", "quad", "big", "limits")
_SAME = {"dfrac": "frac", "tfrac": "frac", "times": "*", "cdot": "*", "×": "*", "·": "*",
         "−": "-", "–": "-", "div": "/", "÷": "/", "leq": "le", "≤": "le", "geq": "ge", "≥": "ge",
         "degrees": "circ", "°": "circ", "π": "pi", "√": "sqrt", "percent": "%"}
OPERATORS = tuple("+-*/=<>^!%|")
_SYMBOL = re.compile("([×·−–÷≤≥°π√])")
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_PUNCTUATION = re.compile(rf"[^\w{re.escape(''.join(OPERATORS))}]+")


def as_typed(text: str) -> str:
    """`text` with one space for each stretch of space and punctuation, whatever its case."""
    return _PUNCTUATION.sub(" ", text.casefold()).strip()


def _fold(text: str) -> str:
    text = _DRAWING.sub(" ", text) if "[asy]" in text else text
    if text.isascii():
        return text
    return _SYMBOL.sub(r" \1 ", unicodedata.normalize("NFKC", text).lower())


def normal_words(texts: Sequence[str]) -> Words:
    """The words of `texts` with synonyms unified and layout commands left out."""
    found = words([_fold(text) for text in texts])
    hashes = found.hashes.copy()
    names, meant = hashes_of(tuple(_SAME)), hashes_of(tuple(_SAME.values()))
    order = np.argsort(names)
    at = np.minimum(np.searchsorted(names[order], hashes), len(names) - 1)
    known = names[order][at] == hashes
    hashes[known] = meant[order][at[known]]
    raised, degrees = words(["^", "circ"]).hashes
    degree = np.append((hashes[:-1] == raised) & (hashes[1:] == degrees), False)[:len(hashes)]
    return _where(replace(found, hashes=hashes), ~np.isin(hashes, hashes_of(_NOISE)) & ~degree)


@lru_cache(maxsize=8)
def hashes_of(some: tuple[str, ...]) -> np.ndarray:
    """The hash of each of these words."""
    return words(some).hashes


def without(found: Words, some: tuple[str, ...]) -> Words:
    """`found` less the words in `some`."""
    return _where(found, ~np.isin(found.hashes, hashes_of(some)))


def _where(found: Words, keep: np.ndarray) -> Words:
    before = np.concatenate((np.zeros(1, np.int64), np.cumsum(keep)))
    return Words(found.blob, found.hashes[keep], found.starts[keep], found.ends[keep],
                 before[found.offsets])


def spans(found: Words) -> list[np.ndarray]:
    """The word hashes of each text."""
    return [found.hashes[a:b] for a, b in pairwise(found.offsets)]
