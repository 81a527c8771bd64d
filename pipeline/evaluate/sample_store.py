"""Keeps what a model answered to a benchmark, so that no model is sampled twice on it.

A file holds all samples of one model to one benchmark. It is known by a digest of the model's
artifact, the chats (problems and prompt), the sampling and the seed, whatever experiment asks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.completion import Completion, Messages

Chats = Mapping[str, Messages]
Sample = tuple[str, int, Completion, int, float]
"""Problem id, index, completion, tokens and dollars."""


class SampleStore:
    """The samples of one model, sampled as `facts` say, in `folder`."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, dict(facts)

    def has(self, chats: Chats, samples: int) -> bool:
        """Whether `samples` of each chat are kept."""
        return self._path(chats, samples).is_file()

    def put(self, chats: Chats, groups: Sequence[Sequence[tuple[Completion, int]]]) -> None:
        """Keep the samples of each chat; the file appears whole."""
        rows = [{"problem_id": name, "sample": index, **asdict(completion), "tokens": tokens}
                for name, group in zip(chats, groups, strict=True)
                for index, (completion, tokens) in enumerate(group)]
        path = self._path(chats, len(groups[0]) if groups else 0)
        self.folder.mkdir(parents=True, exist_ok=True)
        tables.write_whole(pl.DataFrame(rows, infer_schema_length=None), path)

    def join(self, chats: Chats, parts: Iterable[Chats], samples: int) -> None:
        """Keep what is kept of `parts`, which are `chats` together, as one file in their order."""
        files = [self._path(part, samples) for part in parts]
        place = {name: number for number, name in enumerate(chats)}
        rows = pl.concat([pl.scan_parquet(file) for file in files], how="diagonal_relaxed")
        rows = rows.sort(pl.col("problem_id").replace_strict(place), "sample")
        if (path := self._path(chats, samples)) not in files:
            tables.write_whole(rows.collect(), path)
            for file in files:
                file.unlink(missing_ok=True)

    def get(self, chats: Chats, samples: int) -> list[Sample]:
        """Return the samples of `chats`, which must be kept."""
        return list(self._rows(self._path(chats, samples)))

    def _rows(self, path: Path) -> Iterator[Sample]:
        for row in pl.read_parquet(path).iter_rows(named=True):
            name, index, tokens = row.pop("problem_id"), row.pop("sample"), row.pop("tokens")
            yield name, index, Completion(**row), tokens, 0.0

    def _path(self, chats: Chats, samples: int) -> Path:
        text = json.dumps([self.facts, samples, list(chats.items())], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.parquet"
