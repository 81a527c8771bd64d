"""Which training problems are, or contain, a problem of an evaluation set.

Normalised words are compared in three ways, the surest first: equal texts (exact); eight words in a
row, as in open-r1, or all words of a shorter evaluation problem (ngram); similar words and equal
numbers (fuzzy).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pipeline.curate.normalise import OPERATORS, comparable_words, hashes_of, spans, without
from pipeline.curate.words import Words, chunks, runs

NGRAM = 8
"""Words in a row, without signs of arithmetic."""
SHORTEST_RUN = 4
"""An evaluation problem of fewer words must equal the training problem."""
COMMON_RUN = 3
"""A run in this many evaluation problems is phrasing and identifies none of them; one in this many
training problems counts only if NEARLY_ALL of an evaluation problem is shared."""
NEARLY_ALL = 0.9
FUZZY = 0.8
"""Similarity of two word sequences (difflib ratio) from which they count as a hit."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LOW_BITS = 0xFFFFF


class Hit(NamedTuple):
    """Training problem `row` shares `matched` with evaluation problem `against`; score 0 to 1."""

    row: int
    against: str
    method: str
    score: float
    matched: str


class Evaluation:
    """Evaluation problems, normalised once; `texts` maps names to texts."""

    def __init__(self, texts: Mapping[str, str]):
        found = comparable_words(list(texts.values()))
        self.exact: dict[bytes, str] = {}
        for name, span in zip(texts, spans(found), strict=True):
            if len(span):
                self.exact.setdefault(span.tobytes(), name)
        self.names = list(self.exact.values())
        self.texts = [texts[name] for name in self.names]
        self.words = found if len(self.names) == len(texts) else comparable_words(self.texts)
        plain = without(self.words, OPERATORS)
        self.counts = np.diff(plain.offsets)
        self.indices = [_Index(plain, NGRAM)]
        lengths = np.diff(self.words.offsets)
        short = np.where((self.counts < NGRAM) & (lengths >= SHORTEST_RUN), lengths, 0)
        self.indices += [_Index(self.words, n, np.flatnonzero(short == n))
                         for n in sorted({int(n) for n in short if n}, reverse=True)]

    @cached_property
    def lists(self) -> list[tuple[list[int], set[int]]]:
        """The words of each problem, in order and as a set."""
        return [(span.tolist(), set(span.tolist())) for span in spans(self.words)]

    @cached_property
    def by_numbers(self) -> dict[tuple[str, ...], list[int]]:
        """The problems with exactly these numbers in this order."""
        out: dict[tuple[str, ...], list[int]] = {}
        for row, text in enumerate(self.texts):
            out.setdefault(_numbers(text), []).append(row)
        return out


class _Index:
    """`n`-word runs for look-up: all of them, or only those that are all of one of `problems`."""

    def __init__(self, found: Words, n: int, problems: np.ndarray | None = None):
        self.n, self.entire = n, problems is not None
        first = found.offsets[problems] if problems is not None else None
        self.first_words = np.unique(found.hashes[first]) if first is not None else None
        hashes, starts = runs(found, n, first)
        order = np.argsort(hashes, kind="stable")
        hashes, owner = hashes[order], _row_of(found, starts[order])
        new = np.append(True, (np.diff(hashes) > 0) | (np.diff(owner) > 0))[:len(hashes)]
        value, first_at, times = np.unique(hashes[new], return_index=True, return_counts=True)
        distinctive = times < COMMON_RUN
        self.values, self.times = value[distinctive], times[distinctive]
        self.at = first_at[distinctive]
        self.owners = owner[new]
        self.table = np.zeros(1 << 20, bool)
        self.table[(self.values & np.uint64(_LOW_BITS)).astype(np.int64)] = True

    def look_up(self, found: Words) -> np.ndarray:
        """int64 [hits, 3]: row of `found`, first word of the run, its place in `values`."""
        candidates = None
        if self.first_words is not None:
            candidates = np.flatnonzero(np.isin(found.hashes, self.first_words))
        hashes, starts = runs(found, self.n, candidates)
        maybe = np.flatnonzero(self.table[(hashes & np.uint64(_LOW_BITS)).astype(np.int64)])
        at = np.minimum(np.searchsorted(self.values, hashes[maybe]), max(len(self.values) - 1, 0))
        real = self.values[at] == hashes[maybe] if len(self.values) else np.zeros(0, bool)
        start = starts[maybe[real]]
        rows = _row_of(found, start)
        return np.stack((rows, start - found.offsets[rows], at[real]), axis=1)


def _row_of(found: Words, word: np.ndarray) -> np.ndarray:
    return np.searchsorted(found.offsets, word, side="right") - 1


def contamination(problems: Sequence[str], evaluation: Evaluation,
                  fuzzy: float = FUZZY, share: float = 0.0) -> list[Hit]:
    """The surest hit, if any, of each of `problems`, in the order of rows.

    `share` is the part of an evaluation problem that shared words must cover; 0 accepts any eight.
    `fuzzy` is the similarity from which fuzzy hits count; above 1 there are none.
    """
    exact: list[Hit] = []
    similar: list[Hit] = []
    found_by_index: list[list[np.ndarray]] = [[] for _ in evaluation.indices]
    for first, chunk in chunks(problems):
        found = comparable_words(chunk)
        plain = without(found, OPERATORS)
        exact += _exact(found, evaluation, chunk, first)
        similar += _fuzzy(chunk, found, evaluation, fuzzy, first)
        for index, collected in zip(evaluation.indices, found_by_index, strict=True):
            hits = index.look_up(found if index.entire else plain)
            collected.append(hits + np.array([first, 0, 0]))
    shared = [hit for index, collected in zip(evaluation.indices, found_by_index, strict=True)
              if collected for hit in _shared(np.concatenate(collected), index, problems,
                                              evaluation.names, evaluation.counts)]
    best: dict[int, Hit] = {}
    for hit in (*exact, *(hit for hit in shared if hit.score >= share),
                *sorted(similar, key=lambda hit: -hit.score)):
        best.setdefault(hit.row, hit)
    return [best[row] for row in sorted(best)]


def _exact(found: Words, evaluation: Evaluation, texts: Sequence[str], first: int) -> list[Hit]:
    named = [evaluation.exact.get(span.tobytes()) for span in spans(found)]
    return [Hit(first + row, name, "exact", 1.0, texts[row])
            for row, name in enumerate(named) if name]


def _shared(hits: np.ndarray, index: _Index, problems: Sequence[str], names: Sequence[str],
            counts: np.ndarray) -> list[Hit]:
    """One hit a training problem, with the evaluation problem it shares most words with."""
    best: dict[int, tuple[float, int, int, int]] = {}
    totals: dict[tuple[int, int], list[tuple[int, int, bool]]] = {}
    for row, owner, start, size, rare in _joined_runs(hits, index):
        totals.setdefault((row, owner), []).append((size, start, rare))
    for (row, owner), parts in totals.items():
        words_there = index.n if index.entire else int(counts[owner])
        share = min(1.0, sum(size for size, _, _ in parts) / words_there)
        if share >= NEARLY_ALL or any(rare for _, _, rare in parts):
            size, start, _ = max(parts)
            best[row] = max(best.get(row, (0.0, 0, 0, 0)), (share, size, start, owner))
    matched = comparable_words([problems[row] for row in best])
    matched = matched if index.entire else without(matched, OPERATORS)
    return [Hit(row, names[owner], "ngram", share, matched.text(at + start, at + start + size - 1))
            for at, (row, (share, size, start, owner))
            in zip(matched.offsets.tolist(), best.items(), strict=False)]


def _joined_runs(hits: np.ndarray,
               index: _Index) -> Iterator[tuple[int, int, int, int, bool]]:
    """Join adjacent runs to (row, evaluation problem, first word, words, rare).

    Rare: one of the runs is in fewer than COMMON_RUN training problems.
    """
    if not len(hits):
        return
    places = hits[:, 2]
    times = index.times[places]
    repeated = np.concatenate([np.flatnonzero(times > t) for t in range(times.max())])
    which = np.concatenate([np.full((times > t).sum(), t) for t in range(times.max())])
    owner = index.owners[index.at[places[repeated]] + which]
    rows_of = np.bincount(np.unique(hits[:, [0, 2]], axis=0)[:, 1], minlength=len(index.values))
    row, start, rare = hits[repeated, 0], hits[repeated, 1], rows_of[places[repeated]] < COMMON_RUN
    order = np.lexsort((start, owner, row))
    row, owner, start, rare = row[order], owner[order], start[order], rare[order]
    breaks = (np.diff(row) != 0) | (np.diff(owner) != 0) | (np.diff(start) != 1)
    begins = np.append(0, np.flatnonzero(breaks) + 1)
    sizes = np.diff(np.append(begins, len(row))) - 1 + index.n
    yield from zip(row[begins].tolist(), owner[begins].tolist(), start[begins].tolist(),
                   sizes.tolist(), np.logical_or.reduceat(rare, begins).tolist(), strict=True)


def _fuzzy(texts: Sequence[str], found: Words, evaluation: Evaluation, least: float,
           first: int) -> list[Hit]:
    """Texts with the same numbers in order and similar words in order (difflib's ratio).

    In a short problem signs must agree like numbers.
    """
    if least > 1:
        return []
    signs = set(hashes_of(OPERATORS).tolist())
    hits = []
    for row, (text, span) in enumerate(zip(texts, spans(found), strict=True)):
        mine = span.tolist()
        for other in evaluation.by_numbers.get(_numbers(text), ()):
            theirs, bag = evaluation.lists[other]
            size = least * (len(mine) + len(theirs)) / 2
            if min(len(mine), len(theirs)) < size or sum(map(bag.__contains__, mine)) < size or (
                    evaluation.counts[other] < NGRAM and _signs_differ(mine, theirs, signs)):
                continue
            match = SequenceMatcher(None, mine, theirs, False)
            if (score := match.ratio()) >= least:
                run = match.find_longest_match()
                start = int(found.offsets[row]) + run.a
                hits.append(Hit(first + row, evaluation.names[other], "fuzzy", score,
                                found.text(start, start + run.size - 1)))
    return hits


def _signs_differ(mine: list[int], theirs: list[int], signs: set[int]) -> bool:
    return sorted(filter(signs.__contains__, mine)) != sorted(filter(signs.__contains__, theirs))


def _numbers(text: str) -> tuple[str, ...]:
    return tuple(_NUMBER.findall(text))
