"""Where in a text something is amiss: repeated stretches and words in another script.

Places are counted as a browser counts them, in UTF-16 units.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import numpy as np

from pipeline.curate.scripts import LATIN, SCRIPTS, name_prefixes
from pipeline.curate.words import ngrams, words

RUN = 20
"""Words that must occur again, one after another, to be called a repetition."""
_WORD = re.compile(r"[^\W\d_]+")
_GREEK = ("GREEK",)         # letters of mathematics, in any language
MOST = 200

Span = dict[str, int | str]


def marks(text: str, *languages: str) -> list[Span]:
    """Spans {start, end, kind} of `text`; kind is "repeated" or "script"."""
    found = [*_repeated(text), *_other_script(text, languages or ("en",))][:MOST]
    places = sorted({place for start, end, _ in found for place in (start, end)})
    units = dict(zip(places, _utf16(text, places), strict=True))
    return [{"start": units[start], "end": units[end], "kind": kind}
            for start, end, kind in sorted(found)]


def _repeated(text: str) -> list[tuple[int, int, str]]:
    """Character spans covered by runs of RUN words that occurred before."""
    said = words([text])
    hashes, firsts, _ = ngrams(said, RUN)
    if len(said.hashes) < RUN:
        return []
    _, original = np.unique(hashes, return_index=True)
    again = np.ones(len(hashes), bool)
    again[original] = False
    covered = np.zeros(len(said.hashes) + 1, np.int64)
    np.add.at(covered, firsts[again], 1)
    np.add.at(covered, firsts[again] + RUN, -1)
    inside = np.concatenate(([False], np.cumsum(covered[:-1]) > 0, [False]))
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    bytes_of = [(int(said.starts[start]), int(said.ends[stop - 1]))
                for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    # The hashes stand on bytes, a span on characters.
    blob = text.encode("utf-8", "replace")
    return [(len(blob[:start].decode("utf-8", "ignore")), len(blob[:end].decode("utf-8", "ignore")),
             "repeated") for start, end in bytes_of]


def _other_script(text: str, languages: tuple[str, ...]) -> list[tuple[int, int, str]]:
    if text.isascii():
        return []
    own = [prefix for one in languages for prefix in name_prefixes(SCRIPTS.get(one, LATIN))]
    allowed = (*own, *_GREEK, "LATIN", "MATHEMATICAL", "SUPERSCRIPT",
               "SUBSCRIPT", "DOUBLE-STRUCK", "SCRIPT", "MODIFIER", "MICRO", "FEMININE", "MASCULINE",
               "BLACK-LETTER", "KELVIN", "ANGSTROM", "OHM", "PLANCK")
    foreign = [word.span() for word in _WORD.finditer(text) if not word[0].isascii()
               and not unicodedata.name(word[0][0], "").startswith(allowed)]
    joined: list[tuple[int, int]] = []
    for start, end in foreign:      # one mark for words with only space and signs between
        if joined and not _WORD.search(text, joined[-1][1], start):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return [(start, end, "script") for start, end in joined]


def _utf16(text: str, places: list[int]) -> list[int]:
    """The places of characters as places of UTF-16 units."""
    out, units = [], 0
    for before, place in pairwise([0, *places]):
        units += len(text[before:place].encode("utf-16-le", "surrogatepass")) // 2
        out.append(units)
    return out
