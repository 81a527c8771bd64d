"""The difficulty band: which problems the student is asked, by their pass rate.

DAPO and Skywork-OR1 drop the problems that are always or never solved before training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import tables
from pipeline.errors import UserError
from pipeline.expression import check_expression, compile_expression


def check_band(expression: str) -> None:
    """Raise UserError unless `expression` is a truth value over pass_rate and samples."""
    import polars as pl

    check_expression(expression, {"pass_rate": pl.Float64, "samples": pl.Int64})


def outside_band(expression: str, scores: Mapping[str, Sequence[float | None]]) -> set[str]:
    """The problems whose judged `scores` lie outside the band; without any they count as inside."""
    import polars as pl

    table = pl.DataFrame({"name": list(scores), "score": [list(s) for s in scores.values()]},
                         schema={"name": pl.String, "score": pl.List(pl.Float64)})
    judged = pl.col("score").list.drop_nulls()
    table = table.select("name", pass_rate=judged.list.mean(), samples=judged.list.len())
    in_band = compile_expression(expression, ["pass_rate", "samples"])
    known = table.filter(pl.col("samples") > 0)
    return set(known.filter(~in_band.fill_null(True))["name"])


def teacher_scores(judged: Path) -> dict[str, list[float | None]]:
    """{problem_id: scores of its traces} in the filter stage's judged.parquet."""
    import polars as pl

    table = pl.read_parquet(judged, columns=["problem_id", "score"])
    return dict(table.group_by("problem_id").agg("score").iter_rows())


def student_scores(model: str, tokenizer_folder: Path, rows: Sequence[Mapping[str, Any]],
                   samples: int, sampling: Any, pool: Any, seed: int, path: Path,
                   engine: Mapping[str, Any] | None = None) -> dict[str, list[float | None]]:
    """{problem_id: scores} of `samples` completions of `model` a problem, cached in file `path`.

    `engine` holds options of vllm.LLM.
    """
    import polars as pl

    from pipeline.judge import Problem
    from pipeline.student.sample import sample

    if not path.is_file():
        sampled = sample(model, str(tokenizer_folder), [row["prompt"] for row in rows], samples,
                         sampling, seed, engine)
        problems = [Problem.from_row(dict(row)) for row in rows for _ in range(samples)]
        verdicts = pool.judge_many([completion for group in sampled for completion, _ in group],
                                   problems)
        table = pl.DataFrame({"problem_id": [problem.problem_id for problem in problems],
                              "score": [verdict.score for verdict in verdicts]},
                             schema={"problem_id": pl.String, "score": pl.Float64})
        tables.write_whole(table, path)
    return teacher_scores(path)


def within_band(rows: Sequence[dict[str, Any]], expression: str,
                scores: Mapping[str, Sequence[float | None]],
                minimum: int) -> list[dict[str, Any]]:
    """The `rows` whose problem is inside the band; raises UserError if fewer than `minimum`."""
    outside = outside_band(expression, scores)
    kept = [row for row in rows if row["problem_id"] not in outside]
    if len(kept) < minimum:
        raise UserError(f"rl.difficulty={expression!r} keeps {len(kept):,} of {len(rows):,} "
                        f"problems, but one generation needs {minimum:,}; widen the band, or take "
                        "more problems")
    return kept
