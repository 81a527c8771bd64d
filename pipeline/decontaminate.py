"""Which training problems are, or hold, a problem of an evaluation set; each hit with its text.

Compared after normalisation (case, Unicode forms, LaTeX layout and synonyms, drawings left out).
Three ways in, the surest first: the whole text is the same (exact); eight words in a row are
shared, as in open-r1, or the whole of an evaluation problem of fewer words (ngram); the sequence
of words is similar and the numbers are the same (fuzzy).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.shingles import Words, chunks, runs, words

NGRAM = 8
"""Words in a row, signs of arithmetic not counted."""
SHORTEST_RUN = 4
"""An evaluation problem of fewer words must be the whole training problem."""
COMMON = 3
"""Phrasing: a run in so many evaluation or training problems, unless it covers half of one."""
FUZZY = 0.8
"""Least similarity of two word sequences (difflib ratio) that counts as a hit."""
_NOISE = ("left", "right", "displaystyle", "text", "mathrm", "mathbf", "quad", "big", "limits")
_SAME = {"dfrac": "frac", "tfrac": "frac", "times": "*", "cdot": "*", "×": "*", "·": "*",
         "−": "-", "–": "-", "div": "/", "÷": "/", "leq": "le", "≤": "le", "geq": "ge", "≥": "ge",
         "degrees": "circ", "°": "circ", "π": "pi", "√": "sqrt", "percent": "%"}
OPERATORS = tuple("+-*/=<>^!%|")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LOW = np.uint64(0xFFFFF)
_SYMBOL = re.compile("([×·−–÷≤≥°π√])")


class Hit(NamedTuple):
    """Training problem `row` meets evaluation problem `against` in `matched`; score 0 to 1."""

    row: int
    against: str
    method: str
    score: float
    matched: str


_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)


def _fold(text: str) -> str:
    text = _DRAWING.sub(" ", text) if "[asy]" in text else text
    if text.isascii():
        return text
    return _SYMBOL.sub(r" \1 ", unicodedata.normalize("NFKC", text).lower())


def normal_words(texts: Sequence[str]) -> Words:
    """The words of `texts` with synonyms unified and layout commands left out."""
    found = words([_fold(text) for text in texts])
    hashes = found.hashes.copy()
    names, meant = _hashes(tuple(_SAME)), _hashes(tuple(_SAME.values()))
    order = np.argsort(names)
    at = np.minimum(np.searchsorted(names[order], hashes), len(names) - 1)
    known = names[order][at] == hashes
    hashes[known] = meant[order][at[known]]
    raised, degrees = words(["^", "circ"]).hashes
    degree = np.append((hashes[:-1] == raised) & (hashes[1:] == degrees), False)[:len(hashes)]
    return _where(replace(found, hashes=hashes), ~np.isin(hashes, _hashes(_NOISE)) & ~degree)


@lru_cache(maxsize=4)
def _hashes(some: tuple[str, ...]) -> np.ndarray:
    return words(some).hashes


def _without(found: Words, some: tuple[str, ...]) -> Words:
    return _where(found, ~np.isin(found.hashes, _hashes(some)))


def _where(found: Words, keep: np.ndarray) -> Words:
    before = np.concatenate((np.zeros(1, np.int64), np.cumsum(keep)))
    return Words(found.blob, found.hashes[keep], found.starts[keep], found.ends[keep],
                 before[found.offsets])


def _spans(found: Words) -> list[np.ndarray]:
    return [found.hashes[a:b] for a, b in pairwise(found.offsets)]


class Evaluation:
    """Evaluation problems, normalised once: `texts` maps a name to its problem's text."""

    def __init__(self, texts: Mapping[str, str]):
        found = normal_words(list(texts.values()))
        self.exact: dict[bytes, str] = {}
        for name, span in zip(texts, _spans(found), strict=True):
            if len(span):
                self.exact.setdefault(span.tobytes(), name)
        self.names = list(self.exact.values())
        self.texts = [texts[name] for name in self.names]
        self.words = found if len(self.names) == len(texts) else normal_words(self.texts)
        plain = _without(self.words, OPERATORS)
        self.counts = np.diff(plain.offsets)
        self.indices = [_Index(plain, NGRAM)]
        whole = np.diff(self.words.offsets)
        short = np.where((self.counts < NGRAM) & (whole >= SHORTEST_RUN), whole, 0)
        self.indices += [_Index(self.words, n, np.flatnonzero(short == n))
                         for n in sorted({int(n) for n in short if n}, reverse=True)]

    @cached_property
    def lists(self) -> list[tuple[list[int], set[int]]]:
        """The words of each problem, in order and as a set."""
        return [(span.tolist(), set(span.tolist())) for span in _spans(self.words)]

    @cached_property
    def by_numbers(self) -> dict[tuple[str, ...], list[int]]:
        """The problems in which just these numbers stand."""
        out: dict[tuple[str, ...], list[int]] = {}
        for row, text in enumerate(self.texts):
            out.setdefault(_numbers(text), []).append(row)
        return out


class _Index:
    """`n`-word runs for look-up: all there are, or those that are the whole of `problems`."""

    def __init__(self, found: Words, n: int, problems: np.ndarray | None = None):
        self.n, self.whole = n, problems is not None
        first = found.offsets[problems] if problems is not None else None
        self.openers = np.unique(found.hashes[first]) if first is not None else None
        hashes, starts = runs(found, n, first)
        order = np.argsort(hashes, kind="stable")
        hashes, owner = hashes[order], _row_of(found, starts[order])
        new = np.append(True, (np.diff(hashes) > 0) | (np.diff(owner) > 0))[:len(hashes)]
        self.values, at, self.times = np.unique(hashes[new], return_index=True, return_counts=True)
        self.owners = owner[new][at]
        self.table = np.zeros(1 << 20, bool)
        self.table[(self.values & _LOW).astype(np.int64)] = True

    def look_up(self, found: Words) -> np.ndarray:
        """int64 [hits, 3]: row of `found`, first word of the run, its place in `values`."""
        some = np.flatnonzero(np.isin(found.hashes, self.openers)) if self.openers is not None \
            else None
        hashes, starts = runs(found, self.n, some)
        maybe = np.flatnonzero(self.table[(hashes & _LOW).astype(np.int64)])
        at = np.minimum(np.searchsorted(self.values, hashes[maybe]), max(len(self.values) - 1, 0))
        real = self.values[at] == hashes[maybe] if len(self.values) else np.zeros(0, bool)
        start = starts[maybe[real]]
        rows = _row_of(found, start)
        return np.stack((rows, start - found.offsets[rows], at[real]), axis=1)


def _row_of(found: Words, word: np.ndarray) -> np.ndarray:
    return np.searchsorted(found.offsets, word, side="right") - 1


def contamination(problems: Sequence[str], evaluation: Evaluation,
                  fuzzy: float = FUZZY, share: float = 0.0) -> list[Hit]:
    """At most one hit, the surest, for each of `problems`, in order of their rows.

    `share` is how much of an evaluation problem shared words must cover; 0 takes any eight.
    `fuzzy` is the least similarity of the third way; above 1 it is left out.
    """
    exact: list[Hit] = []
    alike: list[Hit] = []
    met: list[list[np.ndarray]] = [[] for _ in evaluation.indices]
    for first, chunk in chunks(problems):
        found = normal_words(chunk)
        plain = _without(found, OPERATORS)
        exact += _exact(found, evaluation, chunk, first)
        alike += _fuzzy(chunk, found, evaluation, fuzzy, first)
        for index, collected in zip(evaluation.indices, met, strict=True):
            hits = index.look_up(found if index.whole else plain)
            collected.append(hits + np.array([first, 0, 0]))
    shared = [hit for index, collected in zip(evaluation.indices, met, strict=True) if collected
              for hit in _shared(np.concatenate(collected), index, problems, evaluation.names,
                                 evaluation.counts)]
    best: dict[int, Hit] = {}
    for hit in (*exact, *(hit for hit in shared if hit.score >= share),
                *sorted(alike, key=lambda hit: -hit.score)):
        best.setdefault(hit.row, hit)
    return [best[row] for row in sorted(best)]


def _exact(found: Words, evaluation: Evaluation, texts: Sequence[str], first: int) -> list[Hit]:
    named = [evaluation.exact.get(span.tobytes()) for span in _spans(found)]
    return [Hit(first + row, name, "exact", 1.0, texts[row])
            for row, name in enumerate(named) if name]


def _shared(hits: np.ndarray, index: _Index, problems: Sequence[str], names: Sequence[str],
            counts: np.ndarray) -> list[Hit]:
    """One hit a training problem: its longest shared stretch, phrasing left out."""
    rows_of = np.bincount(np.unique(hits[:, [0, 2]], axis=0)[:, 1], minlength=len(index.values))
    rare = (rows_of < COMMON) & (index.times < COMMON)
    found: dict[int, tuple[int, int, int]] = {}
    for rows in np.split(hits, np.flatnonzero(np.diff(hits[:, 0])) + 1) if len(hits) else []:
        stretch = max(_stretches(rows, index, rare), key=lambda stretch: stretch[0])
        covers = index.whole or 2 * stretch[0] >= counts[stretch[2]]
        if covers or rare[rows[:, 2]].any():
            found[int(rows[0, 0])] = stretch
    held = normal_words([problems[row] for row in found])
    held = held if index.whole else _without(held, OPERATORS)
    out = []
    for start, (row, (size, first, owner)) in zip(held.offsets, found.items(), strict=False):
        share = 1.0 if index.whole else min(1.0, size / counts[owner])
        text = held.text(start + first, start + first + size - 1)
        out.append(Hit(row, names[owner], "ngram", share, text))
    return out


def _stretches(rows: np.ndarray, index: _Index, rare: np.ndarray) -> list[tuple[int, int, int]]:
    """(words, first word, evaluation problem) of runs that follow each other without a gap."""
    out = []
    for part in np.split(rows, np.flatnonzero(np.diff(rows[:, 1]) != 1) + 1):
        known = part[rare[part[:, 2]], 2]
        owner = index.owners[known[0] if len(known) else part[0, 2]]
        out.append((len(part) - 1 + index.n, int(part[0, 1]), int(owner)))
    return out


def _fuzzy(texts: Sequence[str], found: Words, evaluation: Evaluation, least: float,
           first: int) -> list[Hit]:
    """Texts with the same numbers whose words, in order, are alike (difflib's ratio).

    In a short problem a sign is as telling as a number.
    """
    if least > 1:
        return []
    signs = set(_hashes(OPERATORS).tolist())
    hits = []
    for row, (text, span) in enumerate(zip(texts, _spans(found), strict=True)):
        mine = span.tolist()
        for other in evaluation.by_numbers.get(_numbers(text), ()):
            yours, bag = evaluation.lists[other]
            size = least * (len(mine) + len(yours)) / 2
            if min(len(mine), len(yours)) < size or sum(map(bag.__contains__, mine)) < size or (
                    evaluation.counts[other] < NGRAM and _differ(mine, yours, signs)):
                continue
            match = SequenceMatcher(None, mine, yours, False)
            if (score := match.ratio()) >= least:
                run = match.find_longest_match()
                start = int(found.offsets[row]) + run.a
                hits.append(Hit(first + row, evaluation.names[other], "fuzzy", score,
                                found.text(start, start + run.size - 1)))
    return hits


def _differ(one: list[int], two: list[int], signs: set[int]) -> bool:
    return sorted(filter(signs.__contains__, one)) != sorted(filter(signs.__contains__, two))


def _numbers(text: str) -> tuple[str, ...]:
    return tuple(sorted(_NUMBER.findall(text)))
