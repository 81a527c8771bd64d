"""A problem as it is compared: two rules, for the same text and for the same problem.

`as_typed` decides silently that a problem is there twice, so nothing that may tell two apart is
left out: "left" is no LaTeX command there, a drawing counts, and so does every sign that may be
mathematics, brackets among them. `normal_words`, for likeness that is reported, sees through
typesetting: LaTeX layout and synonyms do not count, nor do drawings. The case of words and the
marks of a sentence count in neither, the signs of arithmetic in both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from pipeline.curate.words import Words, words

_NOISE = ("left", "right", "displaystyle", "text", "mathrm", "mathbf", "quad", "big", "limits")
_SAME = {"dfrac": "frac", "tfrac": "frac", "times": "*", "cdot": "*", "×": "*", "·": "*",
         "−": "-", "–": "-", "div": "/", "÷": "/", "leq": "le", "≤": "le", "geq": "ge", "≥": "ge",
         "degrees": "circ", "°": "circ", "π": "pi", "√": "sqrt", "percent": "%"}
OPERATORS = tuple("+-*/=<>^!%|")
_SYMBOL = re.compile("([×·−–÷≤≥°π√])")
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}")
_MARKS = re.compile(r"""(?:\\[()\[\]]|(?<!\d)[.,:]|[.,:](?!\d)|'(?!['(])|[\s;?"“”„‘’«»`´¿¡…$\\~&#"""
                    r"""@。，、；：？\u00ad\u200b-\u200f\u2060\ufeff])++""")
"""Space, TeX's delimiters and a sentence's marks, but not the "." of 1.5 or the "'" of f'(x)."""


def same_text_key(text: str) -> str:
    """`text` with one space for each stretch of space and marks, whatever the case of its words.

    A letter alone is a name, of which a and A are two.
    """
    return _MARKS.sub(" ", _WORD.sub(lambda word: word[0].casefold(), text)).strip()


def _fold(text: str) -> str:
    text = _DRAWING.sub(" ", text) if "[asy]" in text else text
    if text.isascii():
        return text
    return _SYMBOL.sub(r" \1 ", unicodedata.normalize("NFKC", text).lower())


def comparable_words(texts: Sequence[str]) -> Words:
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
