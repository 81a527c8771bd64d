"""Tables larger than memory: read in batches, written in row groups, both checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.errors import UserError

ROWS = 4096
PAGE = 512
"""Rows decoded at once; a few pages of long texts are tens of megabytes."""


def count(path: Path) -> int:
    """Rows of the Parquet file `path`, from its footer."""
    return int(_open(path).metadata.num_rows)


def batches(schema: Any, path: Path, rows: int = ROWS) -> Iterator[pl.DataFrame]:
    """`path` (written to `schema`) in frames of nearly equal size, at most `rows` each.

    Equal, so that no tiny last batch has a rate of anything that means little. Page checksums
    and the schema are verified batch by batch; keys are only unique within a batch.
    """
    import pyarrow as pa

    total = count(path)
    size = max(1, -(-total // max(1, -(-total // rows))))
    held: list[pl.DataFrame] = []
    try:
        for batch in _open(path).iter_batches(min(size, PAGE), use_threads=False):
            held.append(schema.validate(pl.from_arrow(pa.Table.from_batches([batch])), cast=True))
            if sum(map(len, held)) >= size:
                whole = pl.concat(held)
                yield whole[:size]
                held = [whole[size:]] if len(whole) > size else []
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its folder to remake it") \
            from None
    if held:
        yield pl.concat(held)


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without pre_buffer=False a whole row group is fetched, and some writers make only one.
        return pq.ParquetFile(path, page_checksum_verification=True, buffer_size=1 << 20,
                              pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable Parquet file ({error}); delete its folder and "
                        "run the stage that made it again") from None


class Writer:
    """Appends frames of one schema to a Parquet file, a row group each."""

    def __init__(self, schema: Any, path: Path):
        self.schema, self.path = schema, path
        self.file: Any = None

    def write(self, frame: pl.DataFrame) -> None:
        """Check `frame` and append it."""
        import pyarrow.parquet as pq

        table = self.schema.validate(frame, cast=True).to_arrow()
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = pq.ParquetWriter(self.path, table.schema, compression="zstd",
                                         write_page_checksum=True)
        self.file.write_table(table.cast(self.file.schema), row_group_size=1024)


@contextmanager
def writer(schema: Any, path: Path) -> Iterator[Writer]:
    """A Writer to `path`; an empty table where nothing was written."""
    out = Writer(schema, path)
    try:
        yield out
        if out.file is None:
            out.write(schema.create_empty())
    finally:
        if out.file is not None:
            out.file.close()
