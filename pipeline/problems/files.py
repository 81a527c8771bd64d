"""Reads rows of files as people have them: JSON, CSV, Parquet, Arrow, compressed, in folders."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.problems.json_rows import json_rows

SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = {".parquet", ".arrow", ".feather"}
SUFFIXES = {".jsonl", ".ndjson", ".json", *SEPARATORS, *TABLES}
OPENERS: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open,
                                               b"\xfd7zXZ": lzma.open}
COMPRESSIONS = {".gz", ".bz2", ".xz"}
FOREIGN = {b"PK\x03\x04": "is a zip archive or an Excel workbook; unpack it, or save it as CSV",
           b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it, or compress it by gzip",
           b"version https://git-lfs": "is a Git LFS pointer, not the data; run `git lfs pull`",
           b"<!doctype html": "is a web page, not the data; download the raw file",
           b"<html": "is a web page, not the data; download the raw file"}
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
SMALL = 4 << 20
"""Bytes of files that even `limbeck plan` may read."""
SAVED = ("dataset_dict.json", "state.json")
"""One of these is in a folder that datasets' save_to_disk wrote."""
SPLITS = ("train", "test", "validation", "valid", "val", "dev")


def data_suffix(path: Path) -> str:
    """The suffix that says what a file holds, whether it is compressed or not."""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix


def files_of(name: str | Path) -> list[Path]:
    """The files that a path, a pattern or a folder names. Raises UserError if there are none."""
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if data_suffix(file) in SUFFIXES
                       and file.is_file())
    elif set("*?[") & set(str(name)) and not path.exists():
        pattern = str(path.relative_to(path.anchor))
        found = sorted(file for file in Path(path.anchor).glob(pattern) if file.is_file())
    else:
        return [path]
    if not found:
        raise UserError(f"{name} names no file; give a JSONL, JSON, CSV or Parquet file, a "
                        "pattern, or a folder of such")
    return found


def is_small(name: str) -> bool:
    """Whether the local files that `name` stands for are read in a moment."""
    return sum(path.stat().st_size for path in files_of(name) if path.is_file()) <= SMALL


def is_saved(path: Path) -> bool:
    """Whether datasets' save_to_disk wrote this folder."""
    return any((path / name).is_file() for name in SAVED)


def read_rows(source: Path | str, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a file, of all files of a pattern or folder, or of "-" (JSONL from stdin).

    In a folder whose files are named by split only those of `split` are read. Fields of CSV rows
    are strings.
    """
    if str(source) == "-":
        with open(0, encoding="utf-8-sig", closefd=False) as lines, _troubles("standard input"):
            return json_rows(lines, "standard input")
    files, folder = files_of(source), Path(source).expanduser()
    if folder.is_dir():
        files = _of_split([file for file in files if "dataset_info" not in file.name], split,
                          folder)
    return [row for path in files for row in _rows_of(path)]


def _of_split(files: list[Path], split: str | None, folder: Path) -> list[Path]:
    """Those of `files` whose name or subfolder says `split`, all if none says any split."""
    def says(path: Path, name: str) -> bool:
        return name in re.split(r"[^a-z]+", str(path.relative_to(folder)).lower())

    named = [file for file in files if any(says(file, name) for name in SPLITS)]
    if split is None or not named:
        return files
    wanted = [file for file in files if says(file, split)]
    if not wanted:
        names = ", ".join(file.name for file in named[:5])
        raise UserError(f"{folder} has no file of the split {split!r}, only {names}; name one "
                        "file, or set split")
    return wanted


def _rows_of(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a JSONL, JSON, CSV or Parquet file, or - "
                        "for standard input")
    with path.open("rb") as raw:
        head = raw.read(64)
    for start, trouble in FOREIGN.items():
        if head.lstrip().lower().startswith(start.lower()):
            raise UserError(f"{path} {trouble}")
    if head.startswith(b"PAR1") or data_suffix(path) in TABLES:
        return _table(path)
    opener = next((found for start, found in OPENERS.items() if head.startswith(start)), None)
    with _troubles(str(path)), (opener(path) if opener else path.open("rb")) as data:
        buffered = io.BufferedReader(data)
        lines = io.TextIOWrapper(buffered, encoding=_encoding(buffered.peek(64)), newline="")
        if separator := SEPARATORS.get(data_suffix(path)):
            return list(_read_csv(lines, str(path), separator))
        return json_rows(lines, str(path))


def _encoding(head: bytes) -> str:
    """UTF-8, or UTF-16 or 32 if a mark or, in ASCII text without one, the zeros say so."""
    for mark, encoding in BOMS.items():
        if head.startswith(mark):
            return encoding
    even, odd = head[:64:2].count(0), head[1:64:2].count(0)
    return "utf-16-le" if odd > 8 > even else "utf-16-be" if even > 8 > odd else "utf-8"


@contextmanager
def _troubles(name: str) -> Iterator[None]:
    """Turn what is wrong with the bytes of a file into one sentence."""
    try:
        yield
    except UnicodeDecodeError as error:
        before = error.object[max(error.start - 20, 0):error.start].decode("utf-8", "replace")
        raise UserError(f"{name} is not in UTF-8 (byte 0x{error.object[error.start]:02x} after "
                        f"{before!r}); if it is in Windows-1252, as Excel saves CSV, run `iconv "
                        f"-f CP1252 -t UTF-8 FILE > NEW`") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{name} is damaged ({error}); download or compress it again") from None


def _table(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file, or of Arrow's file or stream format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = "Parquet" if data_suffix(path) == ".parquet" else "Arrow"
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == b"PAR1" or kind == "Parquet":
            return list(pq.read_table(path).to_pylist())
        with pa.memory_map(str(path)) as data:
            reader = pa.ipc.open_file(data) if magic == b"ARRO" else pa.ipc.open_stream(data)
            return list(reader.read_all().to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable {kind} file: {error}") from None


def _read_csv(lines: Iterable[str], name: str, usual: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)       # a long trace has more than the 128 KiB of its default
    lines = iter(lines)
    first = next(lines, "")
    rows = csv.DictReader(chain([first], lines), strict=True, delimiter=_separator(first, usual))
    try:
        for row in rows:
            if None in row:
                raise ValueError("it has more fields than the first line has names")
            yield row
    except UnicodeDecodeError:
        raise
    except (csv.Error, ValueError) as error:
        raise UserError(f"{name}:{rows.line_num} is not CSV in UTF-8: {error}") from None


def _separator(names: str, usual: str) -> str:
    """What separates the names in a CSV file's first line: the usual sign if it is there."""
    bare = re.sub(r'"[^"]*"', "", names)
    return usual if usual in bare else max((usual, ";", "\t", ",", "|"), key=bare.count)
