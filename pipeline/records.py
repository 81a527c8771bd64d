"""The tables between stages, as dataframely schemas checked on write and on read.

One row type a stage: Problem (prepare), Trace (generate), Judged (filter), TokenRow (pack).
A rejected row stays in its table: a verdict or a reason is a column, never a deletion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl

from pipeline.errors import UserError

VERDICTS = ("correct", "wrong", "no_answer", "unclosed_thinking", "several_answers", "cut_off",
            "cannot_judge", "timeout", "error")


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


class Judged(Trace):
    """A trace with its judgement, its problem's pass rate, and whether it goes on to training."""

    score = dy.Float64(nullable=True)
    verdict = dy.String(check=lambda verdict: verdict.is_in(list(VERDICTS)))
    extracted = dy.String(nullable=True)
    grader = dy.String()
    judge_version = dy.String()
    pass_rate = dy.Float64(nullable=True)
    kept = dy.Bool()
    reason = dy.String()


class TokenRow(dy.Schema):
    """One training row: token ids of prompt and completion, and 1 where the loss counts."""

    problem_id = dy.String()
    sample = dy.Int64()  # type: ignore[assignment]
    input_ids = dy.List(dy.Int64())
    completion_mask = dy.List(dy.Int64())


def table_of(schema: type[dy.Schema], rows: list[dict[str, Any]]) -> pl.DataFrame:
    """`rows` as a polars frame with the columns and types of `schema`."""
    types = {name: column.dtype for name, column in schema.columns().items()}
    return pl.DataFrame(rows, schema=types)


def write(schema: type[dy.Schema], table: pl.DataFrame, path: Path) -> None:
    """Check `table` against `schema` and write it to `path` as Parquet with page checksums."""
    import pyarrow.parquet as pq

    checked = schema.validate(table, cast=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(checked.to_arrow(), path, compression="zstd", write_page_checksum=True)


def read(schema: type[dy.Schema], path: Path) -> Any:
    """Read `path` written by `write`, verifying page checksums and the schema (a polars frame)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its folder to remake it") \
            from None
    frame: Any = pl.from_arrow(table)
    return schema.validate(frame, cast=True)
