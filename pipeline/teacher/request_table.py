"""Many requests as columns: a million take 24 bytes each, not the kilobyte of as many objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import overload

import polars as pl

from pipeline.completion import Messages
from pipeline.teacher.request import Keys, Request

BLOCK = 10_000
"""Chats that are digested at a time."""
ROW, SAMPLE, KEY = pl.UInt32, pl.Int32, pl.Int128
"""Types of a request's position, its sample's index, and its key (32 hex digits as a number)."""


class RequestTable(Sequence[Request]):
    """`samples` requests for each problem, in order, formed as they are wanted.

    `chat_of` gives the chat of the problem at a position of `ids`. A part of a table holds some of
    its `rows` alone, in any order.
    """

    def __init__(self, ids: pl.Series, chat_of: Callable[[int], Messages], samples: int) -> None:
        self.ids, self.chat_of, self.samples = ids, chat_of, samples
        self.rows = pl.int_range(len(ids) * samples, dtype=ROW, eager=True)
        self._digests: dict[str, pl.Series] = {}

    @classmethod
    def of(cls, chats: Mapping[str, Messages], samples: int) -> RequestTable:
        """The requests for chats by problem id."""
        return cls(pl.Series(list(chats), dtype=pl.String), list(chats.values()).__getitem__,
                   samples)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Request: ...

    @overload
    def __getitem__(self, at: slice) -> RequestTable: ...

    def __getitem__(self, at: int | slice) -> Request | RequestTable:
        if isinstance(at, slice):
            return self._with(self.rows[at])
        problem, sample = divmod(self.rows[at], self.samples)
        return Request(self.ids[problem], sample, self.chat_of(problem))

    def __iter__(self) -> Iterator[Request]:
        last, chat = -1, None
        for row in self.rows:
            problem, sample = divmod(row, self.samples)
            if chat is None or problem != last:      # one object for samples of one problem
                last, chat = problem, self.chat_of(problem)
            yield Request(self.ids[problem], sample, chat)

    def part(self, at: pl.Series) -> RequestTable:
        """The requests at these positions."""
        return self._with(self.rows.gather(at))

    def problem_ids(self, at: pl.Series) -> pl.Series:
        """The problem of each request at these positions."""
        return self.ids.gather(self.rows.gather(at) // self.samples)

    def wanted(self, keys: Keys) -> pl.DataFrame:
        """As wanted_of; each chat is formed and digested once for all parts, then forgotten."""
        if keys.origin not in self._digests:
            self._digests[keys.origin] = self._digested(keys)
        problem = self.rows // self.samples if self.samples > 1 else self.rows
        return pl.DataFrame({
            "row": pl.int_range(len(self), dtype=ROW, eager=True),
            "key": self._digests[keys.origin].gather(problem),
            "sample": (self.rows - problem * self.samples).cast(SAMPLE)})

    def _digested(self, keys: Keys) -> pl.Series:
        parts = [_numbers([keys.digest(self.chat_of(problem)) for problem in
                           range(start, min(start + BLOCK, len(self.ids)))])
                 for start in range(0, len(self.ids), BLOCK)]
        return pl.concat([_numbers([]), *parts])

    def _with(self, rows: pl.Series) -> RequestTable:
        some = RequestTable(self.ids.head(0), self.chat_of, self.samples)
        some.ids, some.rows, some._digests = self.ids, rows, self._digests
        return some


def wanted_of(requests: Sequence[Request], keys: Keys) -> pl.DataFrame:
    """(row, key, sample) of each request; row is its position."""
    if isinstance(requests, RequestTable):
        return requests.wanted(keys)
    digests = [bytes.fromhex(keys.of(request.messages)) for request in requests]
    return pl.DataFrame({
        "row": pl.int_range(len(requests), dtype=ROW, eager=True), "key": _numbers(digests),
        "sample": pl.Series([request.sample for request in requests], dtype=SAMPLE)})


def part_of(requests: Sequence[Request], at: pl.Series) -> Sequence[Request]:
    """The requests at these positions."""
    return requests.part(at) if isinstance(requests, RequestTable) else [requests[i] for i in at]


def problem_ids_of(requests: Sequence[Request], at: pl.Series) -> pl.Series:
    """The problem of each request at these positions."""
    if isinstance(requests, RequestTable):
        return requests.problem_ids(at)
    return pl.Series([requests[i].problem_id for i in at], dtype=pl.String)


def key_numbers(keys: pl.Expr) -> pl.Expr:
    """Keys as numbers; null for what is none of ours."""
    return keys.str.decode("hex", strict=False).bin.reinterpret(dtype=KEY)


def _numbers(digests: list[bytes]) -> pl.Series:
    return pl.Series(digests, dtype=pl.Binary).bin.reinterpret(dtype=KEY)
