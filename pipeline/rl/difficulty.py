"""What the student is asked, and when: phases of training, and problems inside a difficulty band.

Phases follow DeepScaleR (context 8k, 16k, 24k as completions begin to be cut off); the band drops
what is always or never solved, as DAPO and Skywork-OR1 do before training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.rl import Phase
from pipeline.errors import UserError
from pipeline.expression import check_expression, compile_expression


def phase_trainers(trainer: Mapping[str, Any], phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """GRPOConfig keys of each phase with the global step of its end as `max_steps`."""
    if not phases:
        return [dict(trainer)]
    total = trainer.get("max_steps", -1)
    ends = [*(phase.until_step or total for phase in phases[:-1]), total]
    return [{**trainer, **phase.trainer, "max_steps": end}
            for phase, end in zip(phases, ends, strict=True)]


def check_phases(trainer: Mapping[str, Any], phases: Sequence[Phase]) -> None:
    """Raise a UserError where the phases do not follow each other to rl.trainer.max_steps."""
    if not phases:
        return
    if any("max_steps" in phase.trainer for phase in phases):
        raise UserError("rl.phases: a phase ends at until_step, not at trainer.max_steps")
    if trainer.get("max_steps", -1) < 1:
        raise UserError("rl.phases needs rl.trainer.max_steps: the step where the last phase ends")
    for index, phase in enumerate(phases[:-1]):
        if phase.until_step is None and phase.until_cut_off is None:
            raise UserError(f"rl.phases[{index}] never ends; give until_step or until_cut_off")
    if phases[-1].until_step is not None or phases[-1].until_cut_off is not None:
        raise UserError("the last of rl.phases ends at rl.trainer.max_steps; leave out its until_*")
    ends = [p.until_step for p in phases if p.until_step is not None] + [trainer["max_steps"]]
    if sorted(set(ends)) != ends:
        raise UserError(f"rl.phases: until_step must rise and end before rl.trainer.max_steps, "
                        f"not {', '.join(map(str, ends))}")


def check_band(expression: str) -> None:
    """Raise a UserError where `expression` is no truth value over pass_rate and samples."""
    import polars as pl

    check_expression(expression, {"pass_rate": pl.Float64, "samples": pl.Int64})


def outside_band(expression: str, scores: Mapping[str, Sequence[float | None]]) -> set[str]:
    """The problems whose judged `scores` lie outside; nothing judged is nothing known: inside."""
    import polars as pl

    table = pl.DataFrame({"name": list(scores), "score": [list(s) for s in scores.values()]},
                         schema={"name": pl.String, "score": pl.List(pl.Float64)})
    judged = pl.col("score").list.drop_nulls()
    table = table.select("name", pass_rate=judged.list.mean(), samples=judged.list.len())
    inside = compile_expression(expression, ["pass_rate", "samples"])
    known = table.filter(pl.col("samples") > 0)
    return set(known.filter(~inside.fill_null(True))["name"])


def teacher_scores(judged: Path) -> dict[str, list[float | None]]:
    """{problem_id: scores of its traces} in the filter stage's judged.parquet."""
    import polars as pl

    table = pl.read_parquet(judged, columns=["problem_id", "score"])
    return dict(table.group_by("problem_id").agg("score").iter_rows())


def student_scores(model: str, tokenizer_folder: Path, rows: Sequence[Mapping[str, Any]],
                   samples: int, sampling: Any, pool: Any, seed: int,
                   kept: Path, engine: Mapping[str, Any] | None = None,
                   ) -> dict[str, list[float | None]]:
    """{problem_id: scores} of `samples` completions of `model` a problem, kept in file `kept`.

    `engine` holds options of vllm.LLM.
    """
    import polars as pl

    from pipeline.judge import Problem
    from pipeline.student.sample import sample

    if not kept.is_file():
        drawn = sample(model, str(tokenizer_folder), [row["prompt"] for row in rows], samples,
                       sampling, seed, engine)
        asked = [row for row in rows for _ in range(samples)]
        verdicts = pool.judge_many([completion for group in drawn for completion, _ in group],
                                   [Problem.from_row(dict(row)) for row in asked])
        table = pl.DataFrame({"problem_id": [row["problem_id"] for row in asked],
                              "score": [v.score for v in verdicts]},
                             schema={"problem_id": pl.String, "score": pl.Float64})
        table.write_parquet(kept.with_suffix(".partial"))
        kept.with_suffix(".partial").replace(kept)
    return teacher_scores(kept)


def within_band(rows: Sequence[dict[str, Any]], expression: str,
           scores: Mapping[str, Sequence[float | None]], least: int) -> list[dict[str, Any]]:
    """The `rows` whose problem is inside the band; a UserError where fewer than `least` are."""
    outside = outside_band(expression, scores)
    left = [row for row in rows if row["problem_id"] not in outside]
    if len(left) < least:
        raise UserError(f"rl.difficulty={expression!r} leaves {len(left):,} of {len(rows):,} "
                        f"problems and one generation needs {least:,}; widen the band, or take "
                        "more problems")
    return left
