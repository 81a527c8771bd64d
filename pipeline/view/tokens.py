"""A trace as the student sees it: each token's text, whether it is trained, and, where the
teacher's distribution is stored, the probability that the teacher gave it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.errors import UserError
from pipeline.view.catalog import Artifact

MOST = 60_000
"""Tokens shown of one row."""


def token_row(problem_id: str, sample: int, pack: Artifact, student: Artifact,
              logits: Artifact | None) -> list[list[Any]]:
    """[text, trained, probability or None] of each token of a packed trace.

    Raises UserError if the trace is in no row, as those that were rejected.
    """
    path = pack.folder / "rows.parquet"
    table = pl.scan_parquet(path).with_row_index("place")
    block = table.collect_schema()["problem_id"] == pl.List
    names = table.select("place", "problem_id", "sample")
    if block:
        names = names.with_columns(piece=pl.int_ranges(pl.col("sample").list.len())).explode(
            "problem_id", "sample", "piece")
    found = names.filter(pl.col("problem_id") == problem_id, pl.col("sample") == sample).collect()
    if not len(found):
        raise UserError("this trace is in no token row: filter or pack left it out")
    place = int(found["place"][0])
    row = pl.scan_parquet(path).slice(place, 1).collect().row(0, named=True)
    ids, mask = row["input_ids"], row["completion_mask"]
    start, end = 0, len(ids)
    if block:
        lengths, piece = row["seq_lengths"], int(found["piece"][0])
        start = sum(lengths[:piece])
        end = start + lengths[piece]
    chances = _chances(logits, place, ids, mask) if logits else {}
    texts = _texts(student.folder / "tokenizer" / "tokenizer.json", tuple(ids[start:end][:MOST]))
    return [[text, mask[at], chances.get(at)] for at, text in enumerate(texts, start)]


@lru_cache(maxsize=4)
def _tokenizer(path: str, changed: int) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)


def _texts(path: Path, ids: tuple[int, ...]) -> list[str]:
    if not path.is_file():
        raise UserError(f"{path} is gone, so tokens cannot be shown; run `limbeck student` again")
    tokenizer = _tokenizer(str(path), path.stat().st_mtime_ns)
    return [tokenizer.decode([one], skip_special_tokens=False) for one in ids]


def chances_of(codes: np.ndarray) -> np.ndarray:
    """The probabilities of stored bytes, as sft.target_store.encode rounds their logarithms."""
    return np.exp(-np.square(codes.astype(np.float32) / 64))


def _chances(logits: Artifact, place: int, ids: list[int], mask: list[int]) -> dict[int, float]:
    """{position: the teacher's probability of the token that stands there}, of trained tokens.

    0 for a token outside the outcomes that were stored.
    """
    shards = pl.scan_parquet(logits.folder / "shard-*.parquet")
    rows = shards.filter(pl.col("row") == place).collect()
    if not len(rows):
        return {}
    row = rows.row(0, named=True)
    counts, outcomes = row["counts"], row["ids"]
    p = chances_of(np.array(row["logps"], np.uint8))
    trained = [at for at, one in enumerate(mask) if one and at]
    out, start = {}, 0
    for at, count in zip(trained, counts, strict=False):
        known = outcomes[start:start + count]
        out[at] = round(float(p[start + known.index(ids[at])]), 4) if ids[at] in known else 0.0
        start += count
    return out
