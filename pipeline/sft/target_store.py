"""Stores the teacher's distribution at every trained token as compact Parquet columns.

A row has the outcomes of its trained tokens one after another: `counts` (outcomes of each token),
`ids`, `logps` and `rest` (log mass of all other outcomes of each token); `row` and `check` tie it
to the token row that was scored. The dense KL(teacher, student) exceeds that of the stored outcomes
by exactly rest * KL between the tails, so the mass not stored bounds the loss.
"""

from __future__ import annotations

import json
import math
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.errors import UserError
from pipeline.sft.divergence import TopK
from pipeline.student.token_rows import IGNORED, Rows

SCHEMA = pa.schema([("row", pa.int64()), ("check", pa.int64()), ("counts", pa.list_(pa.uint8())),
                    ("ids", pa.list_(pa.int32())), ("logps", pa.list_(pa.uint8())),
                    ("rest", pa.list_(pa.uint8()))])


@dataclass(frozen=True)
class TopKLogprobs:
    """One sample's distributions: `ids`, `logps` [n, K] likeliest first, `tail_logprob` [n]."""

    ids: np.ndarray
    logps: np.ndarray
    tail_logprob: np.ndarray


def tail_logprobs(logps: np.ndarray) -> np.ndarray:
    """Return the log mass [n] that outcomes `logps` [n, K] leave to all others, at least 1e-9."""
    return np.log(np.clip(1 - np.exp(logps.astype(np.float64)).sum(1), 1e-9, 1))


Scorer = Callable[[Sequence[tuple[np.ndarray, np.ndarray]]], list[TopKLogprobs]]
"""Scores samples given as (token ids, positions of their trained tokens); K is at most top_k."""


def row_checksum(ids: np.ndarray, labels: np.ndarray) -> int:
    """Compute the checksum of a token row's ids and labels, which ties its targets to it."""
    return zlib.crc32(labels.astype(np.int64).tobytes(), zlib.crc32(ids.astype(np.int64).tobytes()))


def shards(count: int, shard_rows: int) -> list[range]:
    """Return the numbers of the rows of each shard, of `count` rows."""
    return [range(start, min(start + shard_rows, count)) for start in range(0, count, shard_rows)]


def score_rows(rows: Rows, scorer: Scorer, mass: float, shard_rows: int, out: Path,
               metadata: dict[str, Any], advance: Callable[[int], None]) -> dict[str, Any]:
    """Score the rows not scored yet into shards of `shard_rows` rows in `out`; returns counts."""
    sums = []
    for chosen in shards(len(rows), shard_rows):
        path = out / f"shard-{chosen.start // shard_rows:05d}.parquet"
        sums.append(score_shard(rows.part(chosen), chosen.start, lambda: scorer, mass, path,
                                metadata))
        advance(len(chosen))
    return summary(sums)


def score_shard(rows: Rows, first: int, scorer: Callable[[], Scorer], mass: float, path: Path,
                metadata: dict[str, Any]) -> dict[str, float]:
    """Score `rows`, numbered from `first`, and write their shard unless its file exists.

    Returns the shard's sums for `summary`, as read from the file.
    """
    if not path.is_file():
        scored = _score(rows, range(len(rows)), scorer())
        _write(path, [{**_row(rows, i, samples, mass), "row": first + i}
                      for i, samples in scored], metadata)
    return _sums(rows, first, path)


def _score(rows: Rows, chosen: Iterable[int],
           scorer: Scorer) -> list[tuple[int, list[TopKLogprobs]]]:
    """Return (row, its samples' distributions) for rows `chosen`; each sample is scored alone."""
    row_of_sample, samples = [], []
    for i in chosen:
        for start, end in pairwise(np.cumsum([0, *rows.lengths[i]])):
            row_of_sample.append(i)
            samples.append((rows.ids[i][start:end],
                            np.flatnonzero(rows.labels[i][start:end] != IGNORED)))
    grouped: dict[int, list[TopKLogprobs]] = {}
    for i, scored in zip(row_of_sample, scorer(samples), strict=True):
        grouped.setdefault(i, []).append(scored)
    return list(grouped.items())


def _row(rows: Rows, i: int, samples: list[TopKLogprobs], mass: float) -> dict[str, Any]:
    """Return one row of the table, with each token's outcomes until they reach `mass`."""
    trimmed = [trim(sample, mass) for sample in samples]
    counts, ids, logps, tail = (np.concatenate(column) for column in zip(*trimmed, strict=True))
    return {"row": i, "check": row_checksum(rows.ids[i], rows.labels[i]), "counts": counts,
            "ids": ids, "logps": encode(logps), "rest": encode(tail)}


def encode(logps: np.ndarray) -> np.ndarray:
    """Round log-probabilities to bytes: -x is the nearest of 64 sqrt(x), 255 is 1e-7 and less."""
    # Steps of 0.03 at probability 0.37 and of 0.1 at 1e-4, where they matter less; by the
    # second-order term, sum p step^2 / 24, this costs under 1e-4 nats a token.
    return np.clip(np.rint(64 * np.sqrt(-np.minimum(logps, 0.0))), 0, 255).astype(np.uint8)


DECODED = -np.square(np.arange(256, dtype=np.float32) / 64)
"""The log-probability that each stored byte stands for."""


def trim(scored: TopKLogprobs, mass: float) -> tuple[np.ndarray, ...]:
    """Return (counts [n], ids and logps of the outcomes kept, log mass of the others [n])."""
    p = np.exp(scored.logps.astype(np.float64))
    before = np.cumsum(p, 1) - p
    keep = (before < mass) & (scored.logps > -math.inf)
    dropped = np.where(keep, 0.0, p).sum(1) + np.exp(scored.tail_logprob.astype(np.float64))
    with np.errstate(divide="ignore"):
        tail = np.log(dropped)
    return keep.sum(1).astype(np.uint8), scored.ids[keep], scored.logps[keep], tail


def _write(path: Path, table: list[dict[str, Any]], metadata: dict[str, Any]) -> None:
    """Write one shard, with page checksums, and rename it into place."""
    schema = SCHEMA.with_metadata({"limbeck": json.dumps(metadata)})
    # Of its own, because another process may take this one for dead and write the same.
    partial = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.partial")
    pq.write_table(pa.Table.from_pylist(table, schema), partial, compression="zstd",
                   compression_level=9,
                   write_page_checksum=True, use_dictionary=["ids.list.element"])
    partial.replace(path)


def _sums(rows: Rows, first: int, path: Path) -> dict[str, float]:
    """Sums over one shard, also of how often the likeliest outcome is the trace's token."""
    targets = TargetStore.of_files([path], rows, first)
    tokens = hits = 0
    tail = 0.0
    for i in range(len(rows)):
        scored = targets.of_row(i)
        labels = rows.labels[i][rows.labels[i] != IGNORED]
        tokens, hits = tokens + len(labels), hits + int((scored.ids[:, 0].numpy() == labels).sum())
        tail += float(scored.tail_logprob.exp().sum())
    return {"rows": len(rows), "tokens": tokens, "hits": hits, "tail": tail,
            "outcomes": targets.outcomes, "bytes": path.stat().st_size}


def summary(sums: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """Return what the manifest keeps, from the sums over each shard."""
    shards = list(sums)
    rows, tokens, hits, tail, outcomes, stored = (
        sum(one[name] for one in shards)
        for name in ("rows", "tokens", "hits", "tail", "outcomes", "bytes"))
    return {"rows": rows, "loss_tokens": tokens, "argmax_share": round(hits / tokens, 4),
            "mean_rest": round(tail / tokens, 6), "bytes_per_token": round(stored / tokens, 1),
            "outcomes_per_token": round(outcomes / tokens, 2)}


class TargetStore:
    """Stored distributions of all rows, tied to the rows they were scored for."""

    def __init__(self, table: pa.Table, metadata: dict[str, Any]):
        self.metadata = metadata
        self.columns = {name: _flat(table, name) for name in ("counts", "ids", "logps", "rest")}
        self.checksums = table["check"].to_numpy()

    @classmethod
    def read(cls, folder: Path, rows: Rows) -> TargetStore:
        """Read a logits folder; raises UserError if it is damaged or was scored for other rows."""
        return cls.of_files(sorted(folder.glob("shard-*.parquet")), rows)

    @classmethod
    def of_files(cls, paths: Sequence[Path], rows: Rows, first: int = 0) -> TargetStore:
        """Read the shards in `paths`, which hold `rows`, numbered from `first`."""
        folder = paths[0].parent if paths else Path()
        try:
            table = pa.concat_tables([pq.read_table(path, page_checksum_verification=True)
                                      for path in paths])
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"the teacher's distributions in {folder} cannot be read ({error}); "
                            "delete the folder and run `limbeck logits` again") from None
        targets = cls(table, json.loads(pq.read_schema(paths[0]).metadata[b"limbeck"]))
        expected = [row_checksum(ids, labels)
                    for ids, labels in zip(rows.ids, rows.labels, strict=True)]
        if table["row"].to_pylist() != list(range(first, first + len(rows))) or \
                targets.checksums.tolist() != expected:
            raise UserError(f"the teacher's distributions in {folder} belong to other token rows; "
                            "run `limbeck logits` for these")
        return targets

    @property
    def outcomes(self) -> int:
        """Stored outcomes of all tokens."""
        return len(self.columns["ids"][0])

    def of_row(self, i: int) -> TopK:
        """Return the distributions of row `i`'s trained tokens; K is the largest count."""
        return self._of_rows([i])

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the distributions of several rows' trained tokens, in order, as batch columns."""
        top = self._of_rows(indices)
        return {"target_ids": top.ids, "target_logps": top.logps,
                "target_tail_logprob": top.tail_logprob}

    def _of_rows(self, indices: Sequence[int]) -> TopK:
        # All rows at once: one by one they took as long as a third of a training step.
        counts, ids, logps, tail = (np.concatenate([self._values(column, i) for i in indices])
                                    for column in ("counts", "ids", "logps", "rest"))
        filled = np.arange(counts.max())[None] < counts[:, None]
        outcomes, table = np.zeros(filled.shape, np.int64), np.full(filled.shape, -np.inf, "f4")
        outcomes[filled], table[filled] = ids, DECODED[logps]
        return TopK(torch.from_numpy(outcomes), torch.from_numpy(table),
                    torch.from_numpy(DECODED[tail])).normalised()

    def _values(self, column: str, i: int) -> np.ndarray:
        values, ends = self.columns[column]
        return values[ends[i]:ends[i + 1]]


def _flat(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (values, offsets) of a list column."""
    lists = table[column].combine_chunks()
    return lists.values.to_numpy(zero_copy_only=False), lists.offsets.to_numpy()
