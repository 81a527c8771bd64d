"""The teacher's distribution at every trained token, stored as compact Parquet columns.

A shard holds, for each of its token rows, the outcomes of all trained tokens one after another:
`counts` (outcomes a token, uint8), `ids` (int32), `logps` (uint8) and `rest` (uint8, log mass of
everything else, a token). `row` and `check` tie it to the row it was scored for. The dense
KL(teacher, student) exceeds that over the stored outcomes by exactly rest * KL between the two
tails, so what is lost is bounded by the mass that is not stored.

A log-probability -x is stored as the nearest of 64 sqrt(x): steps of 0.03 at probability 0.37 and
of 0.1 at 1e-4, where they weigh less; by the second-order term, sum p step^2 / 24, that costs
under 1e-4 nats a token. 255 stands for 1e-7 and less.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
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
    """One row's distributions: `ids`, `logps` [n, K] likeliest first, `rest` [n] (log masses)."""

    ids: np.ndarray
    logps: np.ndarray
    rest: np.ndarray


Scorer = Callable[[Sequence[tuple[np.ndarray, np.ndarray]]], list[TopKLogprobs]]
"""Scores samples given as (token ids, places of their trained tokens); K may be up to top_k."""


def check_of(ids: np.ndarray, labels: np.ndarray) -> int:
    """What ties a stored row to a token row: its ids and which of them are trained."""
    return zlib.crc32(labels.astype(np.int64).tobytes(), zlib.crc32(ids.astype(np.int64).tobytes()))


def score_rows(rows: Rows, scorer: Scorer, mass: float, shard_rows: int, out: Path,
               facts: dict[str, Any], advance: Callable[[int], None]) -> dict[str, Any]:
    """Score every row not scored yet; shards of `shard_rows` rows go to `out`. Returns counts."""
    for start in range(0, len(rows), shard_rows):
        path = out / f"shard-{start // shard_rows:05d}.parquet"
        chosen = range(start, min(start + shard_rows, len(rows)))
        if not path.is_file():
            _write(path, [_row(rows, i, part, mass)
                          for i, part in _score(rows, chosen, scorer)], facts)
        advance(len(chosen))
    return _summary(rows, out)


def _score(rows: Rows, chosen: Iterable[int],
           scorer: Scorer) -> list[tuple[int, list[TopKLogprobs]]]:
    """(row, its samples' distributions) for rows `chosen`; every sample is scored alone."""
    owners, samples = [], []
    for i in chosen:
        for start, end in pairwise(np.cumsum([0, *rows.lengths[i]])):
            owners.append(i)
            samples.append((rows.ids[i][start:end],
                            np.flatnonzero(rows.labels[i][start:end] != IGNORED)))
    grouped: dict[int, list[TopKLogprobs]] = {}
    for i, scored in zip(owners, scorer(samples), strict=True):
        grouped.setdefault(i, []).append(scored)
    return list(grouped.items())


def _row(rows: Rows, i: int, parts: list[TopKLogprobs], mass: float) -> dict[str, Any]:
    """One row of the table: each token's outcomes until they hold `mass`."""
    trimmed = [trim(part, mass) for part in parts]
    counts, ids, logps, rest = (np.concatenate(column) for column in zip(*trimmed, strict=True))
    return {"row": i, "check": check_of(rows.ids[i], rows.labels[i]), "counts": counts,
            "ids": ids, "logps": encode(logps), "rest": encode(rest)}


def encode(logps: np.ndarray) -> np.ndarray:
    """Log-probabilities as the bytes that are stored."""
    return np.clip(np.rint(64 * np.sqrt(-np.minimum(logps, 0.0))), 0, 255).astype(np.uint8)


def decode(codes: np.ndarray) -> np.ndarray:
    """The log-probabilities bytes stand for, float32."""
    return -np.square(codes.astype(np.float32) / 64)


def trim(scored: TopKLogprobs, mass: float) -> tuple[np.ndarray, ...]:
    """(counts [n], ids, logps of the outcomes kept, rest [n]); what is dropped joins the rest."""
    p = np.exp(scored.logps.astype(np.float64))
    before = np.cumsum(p, 1) - p
    keep = (before < mass) & (scored.logps > -math.inf)
    dropped = np.where(keep, 0.0, p).sum(1) + np.exp(scored.rest.astype(np.float64))
    with np.errstate(divide="ignore"):
        rest = np.log(dropped)
    return keep.sum(1).astype(np.uint8), scored.ids[keep], scored.logps[keep], rest


def _write(path: Path, table: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write one shard whole, with page checksums and `facts` in its metadata."""
    schema = SCHEMA.with_metadata({"limbeck": json.dumps(facts)})
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(table, schema), partial, compression="zstd",
                   compression_level=9,
                   write_page_checksum=True, use_dictionary=["ids.list.element"])
    partial.replace(path)


def _summary(rows: Rows, out: Path) -> dict[str, Any]:
    """Counts over all shards, among them how often the likeliest outcome is the trace's token."""
    targets = TargetStore.read(out, rows)
    tokens = hits = 0
    rest = 0.0
    for i in range(len(rows)):
        found = targets.of_row(i)
        labels = rows.labels[i][rows.labels[i] != IGNORED]
        tokens, hits = tokens + len(labels), hits + int((found.ids[:, 0].numpy() == labels).sum())
        rest += float(found.rest.exp().sum())
    stored = sum(path.stat().st_size for path in out.glob("shard-*.parquet"))
    return {"rows": len(rows), "loss_tokens": tokens, "argmax_share": round(hits / tokens, 4),
            "mean_rest": round(rest / tokens, 6), "bytes_per_token": round(stored / tokens, 1),
            "outcomes_per_token": round(targets.outcomes / tokens, 2)}


class TargetStore:
    """Stored distributions of all rows, tied to the rows they were scored for."""

    def __init__(self, table: pa.Table, facts: dict[str, Any]):
        self.facts = facts
        self.columns = {name: _flat(table, name) for name in ("counts", "ids", "logps", "rest")}
        self.checks = table["check"].to_numpy()

    @classmethod
    def read(cls, folder: Path, rows: Rows) -> TargetStore:
        """Read a logits folder; a UserError where it is broken or was scored for other rows."""
        paths = sorted(folder.glob("shard-*.parquet"))
        try:
            table = pa.concat_tables([pq.read_table(path, page_checksum_verification=True)
                                      for path in paths])
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"the teacher's distributions in {folder} cannot be read ({error}); "
                            "delete the folder and run `limbeck logits` again") from None
        targets = cls(table, json.loads(pq.read_schema(paths[0]).metadata[b"limbeck"]))
        wanted = [check_of(ids, labels) for ids, labels in zip(rows.ids, rows.labels, strict=True)]
        if table["row"].to_pylist() != list(range(len(rows))) or \
                targets.checks.tolist() != wanted:
            raise UserError(f"the teacher's distributions in {folder} belong to other token rows; "
                            "run `limbeck logits` for these")
        return targets

    @property
    def outcomes(self) -> int:
        """Stored outcomes of all tokens together."""
        return len(self.columns["ids"][0])

    def of_row(self, i: int) -> TopK:
        """The distributions of row `i`'s trained tokens; K is the most outcomes any of them has."""
        counts = self._part("counts", i).astype(np.int64)
        filled = np.arange(counts.max())[None] < counts[:, None]
        ids, logps = np.zeros(filled.shape, np.int64), np.full(filled.shape, -np.inf, np.float32)
        ids[filled], logps[filled] = self._part("ids", i), decode(self._part("logps", i))
        rest = decode(self._part("rest", i))
        return TopK(torch.from_numpy(ids), torch.from_numpy(logps),
                    torch.from_numpy(rest)).normalised()

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The distributions of several rows' trained tokens, in order, as batch columns."""
        parts = [self.of_row(i) for i in indices]
        widest = max(part.ids.shape[1] for part in parts)
        widen = [widest - part.ids.shape[1] for part in parts]
        pad = torch.nn.functional.pad
        return {"target_ids": torch.cat([pad(p.ids, (0, w))
                                         for p, w in zip(parts, widen, strict=True)]),
                "target_logps": torch.cat([pad(p.logps, (0, w), value=-math.inf)
                                           for p, w in zip(parts, widen, strict=True)]),
                "target_rest": torch.cat([part.rest for part in parts])}

    def _part(self, column: str, i: int) -> np.ndarray:
        values, ends = self.columns[column]
        return values[ends[i]:ends[i + 1]]


def _flat(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(values, offsets) of a list column."""
    lists = table[column].combine_chunks()
    return lists.values.to_numpy(zero_copy_only=False), lists.offsets.to_numpy()
