"""Texts as arrays of word and n-gram hashes, for duplicates, contamination and repetition.

A word is a run of letters and digits, lower-cased, or one operator sign. Hashes are 64-bit and the
same in every process. Everything is vectorised over about a megabyte of text at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

CHUNK = 1 << 20
_BASE = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_BASE, -1, 1 << 64)
_STEP = 0xD6E8FEB86659FD93
_OPERATORS = b"+-*/=<>^!%|"


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """Each byte's kind: 0 separator, 1 letter, digit or part of a UTF-8 sequence, 2 operator."""
    kinds = np.zeros(256, np.uint8)
    kinds[[byte for byte in range(256) if byte >= 128 or chr(byte).isalnum()]] = 1
    kinds[list(_OPERATORS)] = 2
    return kinds


_LOWER = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in range(256))


@dataclass(frozen=True)
class Words:
    """The words of some texts: text t has words offsets[t] to offsets[t + 1].

    `hashes` is uint64 [words]; `starts` and `ends` are each word's bytes in `blob`.
    """

    blob: bytes
    hashes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray

    def text(self, first: int, last: int) -> str:
        """The text from word `first` to word `last`, both included."""
        return self.blob[self.starts[first]:self.ends[last]].decode("utf-8", "replace")


@lru_cache(maxsize=4)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """_BASE^i and its inverse modulo 2^64 for i < size."""
    out = []
    for factor in (_BASE, _INVERSE):
        powers = np.full(size, factor, np.uint64)
        powers[0] = 1
        out.append(np.multiply.accumulate(powers))
    return out[0], out[1]


def mix(hashes: np.ndarray) -> np.ndarray:
    """Spread the bits of uint64 hashes (the finaliser of splitmix64, Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def words(texts: Sequence[str]) -> Words:
    """The words of `texts`, in order."""
    pieces = [text.encode("utf-8", "replace") for text in texts]
    blob = b"\n".join(pieces) + b"\n"
    data = np.frombuffer(blob.translate(_LOWER), np.uint8)
    kind = _kinds()[data]
    before = np.concatenate((np.zeros(1, np.uint8), kind[:-1]))
    letter, was_letter = kind == 1, before == 1
    starts = np.flatnonzero((letter & ~was_letter) | (kind == 2))
    after = np.concatenate((letter[1:], [False]))
    ends = np.flatnonzero((letter & ~after) | (kind == 2)) + 1
    powers, inverses = _powers(max(2 * CHUNK, 1 << len(blob).bit_length()))
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[:len(data)], out=sums[1:])
    hashes = mix((sums[ends] - sums[starts]) * inverses[starts])
    bounds = np.cumsum([0] + [len(piece) + 1 for piece in pieces])
    return Words(blob, hashes, starts, ends, np.searchsorted(starts, bounds))


def chunks(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (index of the first, texts) of chunks of about CHUNK characters, to bound memory."""
    first, chunk, size = 0, [], 0
    for index, text in enumerate(texts):
        chunk.append(text)
        size += len(text)
        if size >= CHUNK:
            yield first, chunk
            first, chunk, size = index + 1, [], 0
    if chunk:
        yield first, chunk


def ngrams(found: Words, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes, first words, offsets) of the runs of `n` words within a text.

    A text of fewer words is one run of all of them; one without words has none.
    """
    counts = np.diff(found.offsets)
    runs = np.where(counts >= n, counts - n + 1, np.minimum(counts, 1))
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(runs)))
    firsts = np.arange(offsets[-1]) + np.repeat(found.offsets[:-1] - offsets[:-1], runs)
    padded = np.concatenate((found.hashes, np.zeros(n, np.uint64)))
    hashes = _combine([padded[step:step + len(found.hashes)] for step in range(n)])[firsts]
    for run in np.flatnonzero(np.repeat(counts < n, runs)):
        first = firsts[run]
        length = counts[np.searchsorted(found.offsets, first, side="right") - 1]
        hashes[run] = _combine([padded[first + step:first + step + 1] for step in range(length)])[0]
    return mix(hashes), firsts, offsets


def runs(found: Words, n: int,
         starts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, first words) of the runs of exactly `n` words within a text, at `starts` or all."""
    ends = np.repeat(found.offsets[1:], np.diff(found.offsets))
    if starts is None:
        starts = np.flatnonzero(np.arange(len(ends)) + n <= ends)
        padded = np.concatenate((found.hashes, np.zeros(n, np.uint64)))
        hashes = _combine([padded[step:step + len(ends)] for step in range(n)])[starts]
    else:
        starts = starts[starts + n <= ends[starts]]
        hashes = _combine([found.hashes[starts + step] for step in range(n)])
    return mix(hashes), starts


def _combine(columns: list[np.ndarray]) -> np.ndarray:
    hashes = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        hashes = hashes * np.uint64(_STEP) + column
    return hashes


def repetition(texts: Sequence[str], n: int = 20) -> list[float]:
    """Share of each text's n-word runs that occurred before in it; near 1 for a loop."""
    out: list[float] = []
    for _, chunk in chunks(texts):
        hashes, _, offsets = ngrams(words(chunk), n)
        for first, last in pairwise(offsets):
            distinct = len(np.unique(hashes[first:last]))
            out.append(float(1 - distinct / (last - first)) if last > first else 0.0)
    return out
