"""Normalises problems for comparison, strictly (same_text_key) or loosely (comparable_words).

`same_text_key` drops duplicates silently, so it keeps all that may tell two problems apart:
drawings, LaTeX commands, every sign that may be mathematics. `comparable_words`, for similarity
that is reported, ignores LaTeX layout, synonyms and drawings. Both ignore case and punctuation and
keep signs of arithmetic.
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

_LAYOUT_COMMANDS = ("left", "right", "displaystyle", "text", "mathrm", "mathbf", "quad", "big",
                    "limits")
_SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "times": "*", "cdot": "*", "×": "*", "·": "*", "−": "-",
    "–": "-", "div": "/", "÷": "/", "leq": "le", "≤": "le", "geq": "ge", "≥": "ge",
    "degrees": "circ", "°": "circ", "π": "pi", "√": "sqrt", "percent": "%"}
OPERATORS = tuple("+-*/=<>^!%|")
_SYMBOL = re.compile("([×·−–÷≤≥°π√])")
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}")
_MARKS = re.compile(r"""(?:\\[()\[\]]|(?<!\d)[.,:]|[.,:](?!\d)|'(?!['(])|[\s;?"“”„‘’«»`´¿¡…$\\~&#"""
                    r"""@。，、；：？\u00ad\u200b-\u200f\u2060\ufeff])++""")
"""Space, TeX delimiters and punctuation, but not the "." of 1.5 or the "'" of f'(x)."""


def same_text_key(text: str) -> str:
    """`text` with one space for each stretch of space and punctuation, its words in lower case.

    A single letter is a name and keeps its case.
    """
    return _MARKS.sub(" ", _WORD.sub(lambda word: word[0].casefold(), text)).strip()


def _fold(text: str) -> str:
    text = _DRAWING.sub(" ", text) if "[asy]" in text else text
    if text.isascii():
        return text
    return _SYMBOL.sub(r" \1 ", unicodedata.normalize("NFKC", text).lower())


def comparable_words(texts: Sequence[str]) -> Words:
    """The words of `texts` with synonyms unified and without layout commands."""
    found = words([_fold(text) for text in texts])
    hashes = found.hashes.copy()
    names, meant = hashes_of(tuple(_SYNONYMS)), hashes_of(tuple(_SYNONYMS.values()))
    order = np.argsort(names)
    at = np.minimum(np.searchsorted(names[order], hashes), len(names) - 1)
    known = names[order][at] == hashes
    hashes[known] = meant[order][at[known]]
    raised, degrees = words(["^", "circ"]).hashes
    degree = np.append((hashes[:-1] == raised) & (hashes[1:] == degrees), False)[:len(hashes)]
    keep = ~np.isin(hashes, hashes_of(_LAYOUT_COMMANDS)) & ~degree
    return _filtered(replace(found, hashes=hashes), keep)


@lru_cache(maxsize=8)
def hashes_of(names: tuple[str, ...]) -> np.ndarray:
    """The hash of each of these words."""
    return words(names).hashes


def without(found: Words, excluded: tuple[str, ...]) -> Words:
    """`found` without the words in `excluded`."""
    return _filtered(found, ~np.isin(found.hashes, hashes_of(excluded)))


def _filtered(found: Words, keep: np.ndarray) -> Words:
    before = np.concatenate((np.zeros(1, np.int64), np.cumsum(keep)))
    return Words(found.blob, found.hashes[keep], found.starts[keep], found.ends[keep],
                 before[found.offsets])


def spans(found: Words) -> list[np.ndarray]:
    """The word hashes of each text."""
    return [found.hashes[a:b] for a, b in pairwise(found.offsets)]
