"""The tables between stages, as dataframely schemas checked on write and on read.

One row type a stage: Problem (prepare), Trace (generate), Judged (filter), TokenRow (pack).
A rejected row stays in its table: a verdict or a reason is a column, never a deletion.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl

from pipeline.completion import VERDICTS
from pipeline.errors import UserError


class Problem(dy.Schema):
    """One problem with its gold answer. `meta` is a JSON object the judge of `kind` may need."""

    problem_id = dy.String(primary_key=True)
    problem = dy.String()
    answer = dy.String()
    kind = dy.String()
    source = dy.String()
    split = dy.String()
    meta = dy.String()


class Trace(dy.Schema):
    """One sampled completion of the teacher. Tokens are counts as billed, cost is US dollars."""

    problem_id = dy.String(primary_key=True)
    sample = dy.Int64(primary_key=True)  # type: ignore[assignment]
    thinking = dy.String(nullable=True)
    answer = dy.String(nullable=True)
    finish_reason = dy.String()
    complete = dy.Bool()
    prompt_tokens = dy.Int64()
    completion_tokens = dy.Int64()
    cost_usd = dy.Float64()
    seconds = dy.Float64()
    model = dy.String()
    source = dy.String(nullable=True)


ADDED = ("source", "model_scores", "original_thinking", "original_answer")
"""Columns newer than the first artifacts: null if a file lacks them."""


class Judged(Trace):
    """A trace with its judgement, its problem's pass rate, and whether it is kept for training.

    `model_scores` is what the experiment's `judges` said, as a JSON object by name; `original_*`
    are the texts that filter.rewrite replaced.
    """

    score = dy.Float64(nullable=True)
    verdict = dy.String(check=lambda verdict: verdict.is_in(list(VERDICTS)))
    extracted = dy.String(nullable=True)
    grader = dy.String()
    judge_version = dy.String()
    pass_rate = dy.Float64(nullable=True)
    kept = dy.Bool()
    reason = dy.String()
    model_scores = dy.String(nullable=True)
    original_thinking = dy.String(nullable=True)
    original_answer = dy.String(nullable=True)


class TokenRow(dy.Schema):
    """One training row: token ids of prompt and completion, and a mask that is 1 on loss tokens."""

    problem_id = dy.String()
    sample = dy.Int64()  # type: ignore[assignment]
    input_ids = dy.List(dy.Int64())
    completion_mask = dy.List(dy.Int64())


class Block(TokenRow):
    """Several token rows end to end, with the source and the length of each.

    Position ids start again with every row, as TRL's collator makes them of `seq_lengths`.
    """

    problem_id = dy.List(dy.String())  # type: ignore[assignment]
    sample = dy.List(dy.Int64())  # type: ignore[assignment]
    seq_lengths = dy.List(dy.Int64())


def table_of(schema: type[dy.Schema], rows: list[dict[str, Any]]) -> pl.DataFrame:
    """`rows` as a polars frame with the columns and types of `schema`."""
    types = {name: column.dtype for name, column in schema.columns().items()}
    return pl.DataFrame(rows, schema=types)


def write(schema: type[dy.Schema], table: pl.DataFrame, path: Path) -> None:
    """Check `table` against `schema` and write it to `path` as Parquet with page checksums."""
    import pyarrow.parquet as pq

    checked = _checked(schema, table)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(checked.to_arrow(), path, compression="zstd", write_page_checksum=True)


def write_whole(table: pl.DataFrame, path: Path, **options: Any) -> None:
    """Write `path` as Parquet; a process killed at any time leaves no incomplete file there.

    `options` are polars' write_parquet's.
    """
    # Of its own, because another process may write the same samples at the same time.
    partial = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.partial")
    table.write_parquet(partial, **options)
    partial.replace(path)


def read(schema: type[dy.Schema], path: Path) -> Any:
    """Read `path` written by `write`, verifying page checksums and the schema (a polars frame)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its folder to remake it") \
            from None
    return _checked(schema, pl.from_arrow(table))


def _checked(schema: Any, frame: Any) -> Any:
    """`frame` with the types of `schema`, and null in columns of ADDED that it lacks."""
    absent = [name for name in ADDED if name in schema.columns() and name not in frame.columns]
    return schema.validate(frame.with_columns(pl.lit(None, pl.String).alias(name)
                                              for name in absent), cast=True)


ROWS = 4096
PAGE = 512
"""Rows decoded at once; a few pages of long texts are tens of megabytes."""


def count(path: Path) -> int:
    """Rows of the Parquet file `path`, from its footer."""
    return int(_open(path).metadata.num_rows)


def batches(schema: Any, path: Path, rows: int = ROWS) -> Iterator[pl.DataFrame]:
    """`path` (written to `schema`) in frames of nearly equal size, at most `rows` each.

    Page checksums and the schema are verified batch by batch; keys are unique within a batch only.
    """
    import pyarrow as pa

    # Equal, so that no tiny last batch gives a rate that means little.
    total = count(path)
    size = max(1, -(-total // max(1, -(-total // rows))))
    held: list[pl.DataFrame] = []
    try:
        for batch in _open(path).iter_batches(min(size, PAGE), use_threads=False):
            held.append(_checked(schema, pl.from_arrow(pa.Table.from_batches([batch]))))
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
        raise UserError(f"{path} is not a readable Parquet file ({error}); delete its folder and "
                        "run the stage that made it again") from None


class Writer:
    """Appends frames of one schema to a Parquet file, a row group each."""

    def __init__(self, schema: Any, path: Path):
        self.schema, self.path = schema, path
        self.file: Any = None

    def write(self, frame: pl.DataFrame) -> None:
        """Check `frame` and append it."""
        import pyarrow.parquet as pq

        table = _checked(self.schema, frame).to_arrow()
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = pq.ParquetWriter(self.path, table.schema, compression="zstd",
                                         write_page_checksum=True)
        self.file.write_table(table.cast(self.file.schema), row_group_size=1024)


@contextmanager
def writer(schema: Any, path: Path) -> Iterator[Writer]:
    """Yield a Writer to `path`; writes an empty table if nothing else was."""
    out = Writer(schema, path)
    try:
        yield out
        if out.file is None:
            out.write(schema.create_empty())
    finally:
        if out.file is not None:
            out.file.close()
