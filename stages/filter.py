"""filter: judge every trace and say which go on to training; no row is ever dropped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import Config
from pipeline.stage import Counts, Stage


class FilterConfig(Config):
    """Which judged traces the student learns from."""

    keep: str = 'verdict == "correct"'
    """Expression over the columns of the judged table; a trace is kept where it is true."""
    distinct: bool = True
    """Keep only the first of several identical traces of one problem."""
    per_problem: int | None = Field(default=None, ge=1)
    """Most traces kept of one problem, the shortest first."""


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write judged.parquet: every trace with verdict, pass rate, kept and the reason."""
    from pipeline import records
    from pipeline.curate import select
    from pipeline.judging import judge_traces

    problems = records.read(records.Problem, inputs["prepare"] / "problems.parquet")
    traces = records.read(records.Trace, inputs["generate"] / "traces.parquet")
    judged = select(judge_traces(traces, problems, experiment.runtime), experiment.filter)
    records.write(records.Judged, judged, out / "judged.parquet")
    reasons = judged.filter(~judged["kept"])["reason"].value_counts().rows()
    verdicts = judged["verdict"].value_counts().rows()
    return {"traces": len(judged), "kept": int(judged["kept"].sum()),
            "problems_with_a_trace": judged.filter(judged["kept"])["problem_id"].n_unique(),
            "verdicts": dict(verdicts), "rejected": dict(reasons)}


STAGE = Stage(
    name="filter", run=run, needs=lambda e: ("prepare", "generate"),
    summary=lambda c: f"kept {c['kept']:,} of {c['traces']:,} traces "
                      f"({c['kept'] / max(c['traces'], 1):.1%})")
