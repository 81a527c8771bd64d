"""Near-duplicates by MinHash (Broder 1997) and banded locality-sensitive hashing.

Word hashes are computed in bulk, since building shingles in Python would dominate; the signatures
are rensa's R-MinHash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from pipeline.curate.words import chunks, mix, ngrams, words

PERMUTATIONS = 128
RECALL = 0.99
"""Probability that a pair exactly at the threshold is compared."""

Sign: TypeAlias = "Callable[[Iterable[Sequence[str]]], np.ndarray]"
"""Makes the signatures of the texts in several lists, in order."""


def signatures(texts: Sequence[str], n: int = 5) -> np.ndarray:
    """MinHash signatures of the sets of `n`-word runs: uint32 [texts, PERMUTATIONS]."""
    from rensa import RMinHash

    parts = [np.zeros((0, PERMUTATIONS), np.uint32)]
    for _, chunk in chunks(texts):
        hashes, _, offsets = ngrams(words(chunk), n)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets.astype(np.uint64), PERMUTATIONS, 1)
        parts.append(np.array(matrix.to_rows(), np.uint32).reshape(-1, PERMUTATIONS))
    return np.concatenate(parts)


def signatures_of_all(parts: Iterable[Sequence[str]]) -> np.ndarray:
    """Return the signatures of the texts of all `parts`, made in this process."""
    return np.concatenate([signatures([]), *map(signatures, parts)])


def rows_per_band(threshold: float) -> int:
    """The largest band (in signature rows) that gives RECALL at `threshold`."""
    wide = [rows for rows in range(1, 33)
            if 1 - (1 - threshold ** rows) ** (PERMUTATIONS // rows) >= RECALL]
    return max(wide, default=1)


def _bands(signature: np.ndarray, rows: int) -> np.ndarray:
    """uint64 keys [bands, texts]."""
    keys = []
    for start in range(0, PERMUTATIONS - rows + 1, rows):
        key = np.zeros(len(signature), np.uint64)
        for column in range(start, start + rows):
            key = mix(key + signature[:, column])
        keys.append(key)
    return np.array(keys)


def similarity(signature: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of the texts in each pair of rows: float64 [pairs]."""
    out = np.empty(len(pairs))
    for start in range(0, len(pairs), 1 << 16):
        part = pairs[start:start + (1 << 16)]
        out[start:start + len(part)] = (signature[part[:, 0]] == signature[part[:, 1]]).mean(axis=1)
    return out


def _candidates(signature: np.ndarray, rows: int) -> np.ndarray:
    """Pairs (earlier, later): each text with the first and the previous one of its bucket.

    That keeps the number of pairs linear in large buckets; other bands find what one misses.
    """
    found = [np.zeros((0, 2), np.int64)]
    for key in _bands(signature, rows):
        order = np.argsort(key, kind="stable")
        same = np.flatnonzero(key[order][1:] == key[order][:-1]) + 1
        is_start = np.ones(len(order), bool)
        is_start[same] = False
        leader = np.maximum.accumulate(np.where(is_start, np.arange(len(order)), 0))
        found.append(np.stack((order[leader[same]], order[same]), axis=1))
        found.append(np.stack((order[same - 1], order[same]), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def near_duplicates(signature: np.ndarray, threshold: float) -> np.ndarray:
    """For each text the index of the earlier kept text that it nearly repeats, else -1."""
    pairs = _candidates(signature, rows_per_band(threshold))
    close = pairs[similarity(signature, pairs) >= threshold]
    of = np.full(len(signature), -1, np.int64)
    for first, later in close[np.lexsort((close[:, 0], close[:, 1]))]:
        if of[first] < 0 and of[later] < 0:
            of[later] = first
    return of
