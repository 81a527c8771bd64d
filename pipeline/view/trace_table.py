"""A table of traces that is paged, searched, filtered and sorted without reading its texts.

All columns but the texts are in memory (some 100 bytes a row); a text is read when it is looked
at. Words are found by the index once that is made, before it by reading on from row to row.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.curate.features import FEATURES
from pipeline.curate.reviews import REVIEW_COLUMNS, Line, consensus
from pipeline.curate.select import difficulty
from pipeline.errors import UserError
from pipeline.expression import check_expression, compile_expression, names_in
from pipeline.view.word_index import WordIndex, words_in

TEXTS = {"thinking", "answer", "problem", "gold", "meta", "prompt", "completion", "messages"}
ORDER = "row"


class TraceTable:
    """The traces of one Parquet file, with the problems of `problems` (id: row of Problem)."""

    def __init__(self, path: Path, problems: Mapping[str, dict[str, Any]], cache: Path,
                 *languages: str) -> None:
        self.path, self.problems, self.languages = path, problems, languages or ("en",)
        self.frame = _columns(path, problems)
        stat = path.stat()
        name = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {self.languages}"
        self.cache = cache / hashlib.sha256(name.encode()).hexdigest()[:16]
        self.progress: dict[str, int] = {}
        self.words: WordIndex | None = None
        self.keys: pl.Series | None = None
        self.features: pl.DataFrame | None = None
        self.process: subprocess.Popen[str] | None = None
        self._scans: dict[str, Scan] = {}

    def start_index(self) -> None:
        """Have the index made, or read it if it is there."""
        self._take()
        if self.words is not None and self.features is not None:
            return
        self.cache.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen([sys.executable, "-m", "pipeline.view.word_index"],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        texts = {name: row["problem"] for name, row in self.problems.items()}
        task = {"table": str(self.path), "problems": texts, "languages": self.languages,
                "out": str(self.cache)}
        threading.Thread(target=self._follow, args=(json.dumps(task),), daemon=True).start()

    def _follow(self, task: str) -> None:
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            return
        process.stdin.write(task)
        process.stdin.close()
        for line in process.stdout:
            self.progress |= json.loads(line)
            if self.words is None and "features" in self.progress:
                self._take()
        process.wait()
        self._take()

    def _take(self) -> None:
        """Read what of the index is finished."""
        if self.words is None and (self.cache / "words").is_dir():
            self.keys = pl.read_parquet(self.cache / "words" / "keys.parquet")["key"]
            self.words = WordIndex(self.cache / "words")
        if self.features is None and (self.cache / "features.parquet").is_file():
            self.features = pl.read_parquet(self.cache / "features.parquet")

    def close(self) -> None:
        """Stop making the index."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def query(self, search: str = "", where: str = "", sort: str = ORDER, descending: bool = False,
              said: Mapping[str, Mapping[str, Line]] | None = None, need: int = 1) -> Found:
        """The rows that hold every word of `search` and for which `where` holds, in order.

        Raises UserError if the expression or the column to sort by is not one.
        """
        frame = self.with_reviews(said or {}, need)
        if names_in(where) & set(FEATURES):
            frame = frame.hstack(self._features())
        if where.strip():
            columns = {name: kind for name, kind in frame.schema.items() if name != ORDER}
            check_expression(where, columns)
            frame = frame.filter(compile_expression(where, columns))
        searched = len(self.frame)
        if search.strip():
            hits, searched = self._hits(search.strip())
            frame = frame.filter(pl.Series(hits)[frame[ORDER]])
        return Found(_sorted(frame, sort, descending), searched, len(self.frame))

    def _features(self) -> pl.DataFrame:
        if self.features is None:
            done, total = self.progress.get("features", 0), len(self.frame)
            raise UserError(f"columns that are computed from the texts are made once and kept: "
                            f"{done:,} of {total:,} traces so far; ask again in a while")
        return self.features

    def _hits(self, search: str) -> tuple[np.ndarray, int]:
        """Which rows hold `search`, and how many were looked at."""
        phrase = len(search) > 2 and search[0] == search[-1] == '"'
        if self.words is not None and not phrase:
            return self.words.rows_with(search), len(self.frame)
        scan = self._scans.get(search)
        if scan is None:
            for other in self._scans.values():
                other.stop = True
            among = self.words.rows_with(search) if self.words is not None else None
            scan = self._scans[search] = Scan(self, search.strip('"') if phrase else search,
                                              phrase, among)
        scan.wait(1.2)
        return scan.hits, scan.searched

    def with_reviews(self, said: Mapping[str, Mapping[str, Line]], need: int) -> pl.DataFrame:
        """The frame with REVIEW_COLUMNS, and `key` once that is known."""
        frame = self.frame
        if self.keys is None:
            return frame.with_columns(review=pl.lit(""), reviews=pl.lit(0, pl.Int64))
        frame = frame.with_columns(key=self.keys)
        seen = [(key, consensus(by, need), sum(line["verdict"] is not None for line in by.values()))
                for key, by in said.items()]
        table = pl.DataFrame(seen, schema={"key": pl.String, **REVIEW_COLUMNS}, orient="row")
        return frame.join(table, on="key", how="left", maintain_order="left").with_columns(
            pl.col("review").fill_null(""), pl.col("reviews").fill_null(0))

    def row(self, index: int) -> dict[str, Any]:
        """Row `index` whole. Raises UserError if there is none, or it cannot be read."""
        if not 0 <= index < len(self.frame):
            raise UserError(f"there is no trace {index:,} in {self.path.name}; it has "
                            f"{len(self.frame):,}")
        try:
            return _read_row(self.path, index)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{self.path} cannot be read ({str(error).splitlines()[0]}); its "
                            "folder was deleted or is damaged: make it anew") from None

    def batches(self, among: np.ndarray | None) -> Iterator[tuple[int, pl.DataFrame]]:
        """(first row, texts) of some rows at a time, leaving out row groups without `among`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        groups = _groups(str(self.path), self.path.stat().st_mtime_ns)
        wanted = [number for number, start, rows in groups
                  if among is None or among[start:start + rows].any()]
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20) as file:
            for number in wanted:
                start = groups[number][1]
                for batch in file.iter_batches(256, [number], ["thinking", "answer"],
                                               use_threads=False):
                    frame: Any = pl.from_arrow(pa.Table.from_batches([batch]))
                    yield start, frame
                    start += len(batch)


class Found:
    """Rows found, in order, and how many of how many traces were searched for them."""

    def __init__(self, frame: pl.DataFrame, searched: int, total: int) -> None:
        self.frame, self.searched, self.total = frame, searched, total


class Scan:
    """A search that reads the texts in a thread of its own; its hits grow until it is done."""

    def __init__(self, table: TraceTable, search: str, phrase: bool, among: Any) -> None:
        self.hits = np.zeros(len(table.frame), bool)
        self.searched, self.stop = 0, False
        self.done = threading.Event()
        self._phrase, self._words = search.casefold() if phrase else "", words_in(search)
        threading.Thread(target=self._run, args=(table, among), daemon=True).start()

    def _run(self, table: TraceTable, among: Any) -> None:
        try:
            for start, batch in table.batches(among):
                if self.stop:
                    return
                wanted = range(len(batch)) if among is None else np.flatnonzero(
                    among[start:start + len(batch)])
                for index in wanted:
                    text = "\n".join(filter(None, batch.row(int(index))))
                    self.hits[start + index] = self._phrase in text.casefold() if self._phrase \
                        else self._words <= words_in(text)
                self.searched = start + len(batch)
            self.searched = len(self.hits)
        except (OSError, pl.exceptions.PolarsError):     # deleted meanwhile: what was found stays
            return
        finally:
            self.done.set()

    def wait(self, seconds: float) -> None:
        """Wait until all is searched, but no longer than `seconds`."""
        self.done.wait(seconds)


def _columns(path: Path, problems: Mapping[str, dict[str, Any]]) -> pl.DataFrame:
    """The columns of a table without its texts, with source, kind, tokens and difficulty."""
    try:
        schema = pl.read_parquet_schema(path)
        names = [name for name, kind in schema.items()
                 if name not in TEXTS and not kind.is_nested()]
        frame = pl.read_parquet(path, columns=names)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); delete its folder "
                        "and run the stage that made it again") from None
    if "completion_tokens" in frame.columns:
        frame = frame.with_columns(tokens=pl.col("completion_tokens"))
    if "pass_rate" not in frame.columns and {"score", "problem_id"} <= set(frame.columns):
        group = [name for name in ("model", "benchmark", "problem_id") if name in frame.columns]
        frame = frame.with_columns(pass_rate=pl.col("score").mean().over(group))
    if "pass_rate" in frame.columns:
        frame = frame.with_columns(difficulty=difficulty())
    if problems and "source" not in frame.columns:
        known = pl.DataFrame([{"problem_id": name, "source": str(row.get("source") or ""),
                               "kind": str(row.get("kind") or "")}
                              for name, row in problems.items()])
        frame = frame.join(known, on="problem_id", how="left", maintain_order="left")
    return frame.with_row_index(ORDER).with_columns(pl.col(ORDER).cast(pl.Int64))


def _sorted(frame: pl.DataFrame, sort: str, descending: bool) -> pl.DataFrame:
    if sort == "random":
        return frame.sort(pl.col(ORDER).hash(seed=1))
    if sort not in frame.columns:
        raise UserError(f"there is no column {sort!r} to sort by; there are "
                        f"{', '.join(frame.columns)}, and random")
    return frame.sort(sort, ORDER, descending=[descending, False], nulls_last=True)


def _read_row(path: Path, index: int) -> dict[str, Any]:
    """One row, by decoding its row group alone."""
    group, start = next((number, start) for number, start, rows in _groups(
        str(path), path.stat().st_mtime_ns) if start <= index < start + rows)
    return _group(str(path), path.stat().st_mtime_ns, group).row(index - start, named=True)


@lru_cache(maxsize=64)
def _groups(path: str, changed: int) -> list[tuple[int, int, int]]:
    """(number, first row, rows) of each row group."""
    import pyarrow.parquet as pq

    metadata, out, start = pq.read_metadata(path), [], 0
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        out.append((number, start, rows))
        start += rows
    return out


@lru_cache(maxsize=3)        # neighbours are read one after another
def _group(path: str, changed: int, number: int) -> pl.DataFrame:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        frame: Any = pl.from_arrow(file.read_row_group(number, use_threads=False))
    return frame
