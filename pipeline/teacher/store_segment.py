"""One Parquet file of the trace store, written once; a change of any byte is detected.

Its name is STEM-FOOTER-FILE.parquet, with the CRC32 of its footer and of the whole file, since
Parquet's own checksums cover neither the footer nor page headers.
"""

from __future__ import annotations

import io
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError


def write(folder: Path, stem: str, frame: pl.DataFrame) -> None:
    """Write, sync and rename. Raises OSError if the disk refuses it and leaves nothing behind."""
    sink = io.BytesIO()
    pq.write_table(frame.to_arrow(), sink, compression="zstd", write_page_checksum=True)
    data = sink.getvalue()
    size = int.from_bytes(data[-8:-4], "little") + 8
    name = f"{stem}-{zlib.crc32(data[-size:]):08x}-{zlib.crc32(data):08x}.parquet"
    # Of this process alone, lest two that fold a dead writer's journal write one file.
    partial = folder / f"{stem}.{os.getpid()}.{secrets.token_hex(4)}.partial"
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / name)
    finally:
        partial.unlink(missing_ok=True)


def row_count(path: Path) -> int:
    """The number of rows, which its footer says."""
    with _read_errors(path):
        return int(pq.read_metadata(path).num_rows)


def read_columns(path: Path, names: list[str]) -> pl.DataFrame:
    """Read some columns, verifying the footer and their page checksums."""
    with _read_errors(path):
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            size = int.from_bytes(file.read(4), "little") + 8
            file.seek(-size, os.SEEK_END)
            _check(path, file.read(), path.stem.rsplit("-", 2)[1])
        return _polars(pq.read_table(path, columns=names, page_checksum_verification=True))


def read_segment(path: Path) -> pl.DataFrame:
    """Read a segment, verifying every byte."""
    with _read_errors(path):
        # Memory of Arrow's own. Its threads let go of Python's with the interpreter's lock, and
        # that aborts or hangs a process which ends meanwhile (apache/arrow#34314, #50482).
        with pa.OSFile(str(path)) as file:
            data = file.read_buffer()
        _check(path, data, path.stem.rsplit("-", 2)[2])
        return _polars(pq.read_table(pa.BufferReader(data), page_checksum_verification=True))


def _check(path: Path, data: bytes | pa.Buffer, crc: str) -> None:
    if f"{zlib.crc32(data):08x}" != crc:
        raise UserError(f"{path} is damaged; restore it from a backup, or delete it to ask the "
                        "teacher for its traces again")


def _polars(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it from a backup, or delete it "
                        "to ask the teacher for its traces again") from None
