"""A light index over a large table of traces: its words, keys and features, made once and kept.

Rare words keep the rows that hold them, common ones a bit a row. A search for whole words is then
exact without reading a text. Made in a process of its own: `python -m pipeline.view.word_index`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.curate.features import FEATURES, add_features
from pipeline.curate.reviews import trace_key
from pipeline.serving.processes import die_with_parent

PARTS = 64
COMMON = 32
"""A word that more than one row in COMMON holds is kept as a bit a row."""
PAIR = np.dtype([("word", np.uint32), ("row", np.uint32)])
_SPLIT = bytes(byte if byte >= 128 or chr(byte).isalnum() else 32 for byte in range(256))
_TABLE = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in _SPLIT)


def words_in(text: str) -> set[bytes]:
    """The distinct words of a text: runs of letters and digits, lower-cased where ASCII."""
    # Three times as fast as curate.words, which keeps places and hashes.
    return set(text.encode("utf-8", "replace").translate(_TABLE).split())


def _code(word: bytes) -> int:
    return int.from_bytes(blake2b(word, digest_size=8).digest(), "little")


class WordIndex:
    """The index in `folder`, read from the disk as it is needed."""

    def __init__(self, folder: Path) -> None:
        self.hashes, self.places, self.ends, self.total = (
            np.load(folder / f"{name}.npy") for name in ("hashes", "places", "ends", "total"))
        self.rows = np.load(folder / "rows.npy", mmap_mode="r")
        self.bits = np.load(folder / "bits.npy", mmap_mode="r")

    def rows_with(self, text: str) -> np.ndarray:
        """Which rows hold every word of `text`: bool [rows]."""
        found = np.ones(int(self.total), bool)
        for word in words_in(text):
            code = np.uint64(_code(word))
            at = int(np.searchsorted(self.hashes, code))
            if at == len(self.hashes) or self.hashes[at] != code:
                return np.zeros(len(found), bool)
            found &= self._rows_of(int(self.places[at]))
        return found

    def _rows_of(self, place: int) -> np.ndarray:
        if place < 0:
            return np.unpackbits(self.bits[-place - 1], count=int(self.total)).astype(bool)
        found = np.zeros(int(self.total), bool)
        found[self.rows[self.ends[place]:self.ends[place + 1]]] = True
        return found


def build(table: Path, problems: dict[str, str], out: Path) -> None:
    """Index the Parquet file `table` into the folder `out`; prints the rows done."""
    partial = _fresh(out)
    files = [(partial / f"pairs-{part}").open("wb") for part in range(PARTS)]
    known: dict[bytes, int] = {}
    keys: list[str] = []
    for batch in _batches(table):
        pairs = _pairs(batch, len(keys), known)
        for part, file in enumerate(files):
            file.write(pairs[pairs["word"] % PARTS == part].tobytes())
        keys += [trace_key(problems.get(name) or name, thinking, answer) for name, thinking, answer
                 in batch.select("problem_id", "thinking", "answer").iter_rows()]
        print(json.dumps({"words": len(keys)}), flush=True)
    for file in files:
        file.close()
    pl.DataFrame({"key": keys}, schema={"key": pl.String}).write_parquet(partial / "keys.parquet")
    _merge(partial, len(keys), np.array([_code(word) for word in known], np.uint64))
    _place(partial, out)


def _fresh(out: Path) -> Path:
    """An empty folder to build `out` in; another process may be building it too."""
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    return partial


def _place(partial: Path, out: Path) -> None:
    try:
        partial.replace(out)
    except OSError:             # another process was first, with the same
        shutil.rmtree(partial, ignore_errors=True)


def build_features(table: Path, languages: list[str], out: Path) -> None:
    """Write every feature of the traces of `table` as a column of `out`; prints the rows done."""
    found, rows = [], 0
    for batch in _batches(table):
        if "completion_tokens" not in batch.columns:
            batch = batch.with_columns(completion_tokens=pl.lit(None, pl.Int64))
        found.append(add_features(batch, FEATURES, *languages).select(list(FEATURES)))
        rows += len(batch)
        print(json.dumps({"features": rows}), flush=True)
    partial = out.with_suffix(f".{os.getpid()}.partial")
    pl.concat(found).write_parquet(partial)
    partial.replace(out)


def _batches(table: Path) -> Iterator[pl.DataFrame]:
    """The texts of a table in frames of some hundred rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without pre_buffer=False a whole row group is fetched, and some writers make only one.
    with pq.ParquetFile(table, pre_buffer=False, buffer_size=1 << 20) as file:
        names = [name for name in ("problem_id", "thinking", "answer", "completion_tokens")
                 if name in file.schema_arrow.names]
        for batch in file.iter_batches(512, columns=names, use_threads=False):
            frame: Any = pl.from_arrow(pa.Table.from_batches([batch]))
            yield frame


def _pairs(batch: pl.DataFrame, first: int, known: dict[bytes, int]) -> np.ndarray:
    """The (word, row) pairs of a frame whose first row is `first`; new words are added to `known`.
    """
    found = []
    for row, (thinking, answer) in enumerate(batch.select("thinking", "answer").iter_rows(), first):
        said = words_in(f"{thinking or ''}\n{answer or ''}")
        pairs = np.empty(len(said), PAIR)
        pairs["word"] = [known.setdefault(word, len(known)) for word in said]
        pairs["row"] = row
        found.append(pairs)
    return np.concatenate(found) if found else np.empty(0, PAIR)


def _merge(folder: Path, rows: int, codes: np.ndarray) -> None:
    """Turn the pairs, part by part, into the rows of each word; word w has the hash codes[w]."""
    places = np.zeros(len(codes), np.int64)
    lengths, bits = [0], []
    with (folder / "rows.raw").open("wb") as rare:
        for part in range(PARTS):
            path = folder / f"pairs-{part}"
            pairs = np.fromfile(path, PAIR)
            path.unlink()
            if not len(pairs):
                continue
            pairs = pairs[np.argsort(pairs["word"], kind="stable")]        # rows stay in order
            found, starts = np.unique(pairs["word"], return_index=True)
            for word, start, stop in zip(found, starts, [*starts[1:], len(pairs)], strict=True):
                held = pairs["row"][start:stop]
                if len(held) * COMMON > rows > 4096:
                    marked = np.zeros(rows, bool)
                    marked[held] = True
                    bits.append(np.packbits(marked))
                    places[word] = -len(bits)
                else:
                    places[word] = len(lengths) - 1
                    lengths.append(len(held))
                    rare.write(held.tobytes())
    order = np.argsort(codes)
    np.save(folder / "hashes.npy", codes[order])
    np.save(folder / "places.npy", places[order])
    np.save(folder / "ends.npy", np.cumsum(lengths, dtype=np.int64))
    np.save(folder / "rows.npy", np.fromfile(folder / "rows.raw", np.uint32))
    (folder / "rows.raw").unlink()
    np.save(folder / "bits.npy", np.array(bits, np.uint8).reshape(len(bits), (rows + 7) // 8))
    np.save(folder / "total.npy", np.int64(rows))


if __name__ == "__main__":
    die_with_parent()
    os.nice(10)
    task = json.loads(sys.stdin.read())
    where, given = Path(task["out"]), Path(task["table"])
    if not (where / "words").is_dir():
        build(given, task["problems"], where / "words")
    if not (where / "features.parquet").is_file():
        build_features(given, task["languages"], where / "features.parquet")
