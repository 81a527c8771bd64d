"""generate: ask the teacher for traces, paying for each only once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.prompts import chats, prompt_path
from pipeline.stage import Counts, Stage
from pipeline.teacher.config import FileTeacher, Sampling, Teacher


class GenerateConfig(Config):
    """Who teaches, and how often each problem is asked."""

    teacher: Teacher = Field(discriminator="type")
    """The teacher: `solver` (embedded), `openai` (any compatible endpoint), `vllm` (local), or
    `file` (traces that exist already)."""
    samples: int = Field(default=4, ge=1)
    """Traces a problem."""
    sampling: Sampling = Sampling()
    """Sampling parameters as sent to the teacher."""
    max_missing: float = Field(default=0.02, ge=0, le=1)
    """Share of traces that may stay missing after failures; above it the stage stops."""
    prompt: str = "boxed"
    """Prompt template: a name in prompts/ or a path; teacher and student see the same."""


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write traces.parquet: one row for every sample the teacher gave."""
    from pipeline import records, stream
    from pipeline.asking import ask_teacher
    from pipeline.given import given_traces

    config = experiment.generate
    problems = records.read(records.Problem, inputs["prepare"] / "problems.parquet")
    with stream.writer(records.Trace, out / "traces.parquet") as file:
        if isinstance(config.teacher, FileTeacher):
            return given_traces(config.teacher, problems, config.samples, file.write)
        asked = chats(config.prompt, problems.iter_rows(named=True))
        counts = ask_teacher(experiment, asked, config.samples, file.write, problems)
    _refuse_gaps(counts["traces"], len(asked) * config.samples, config.max_missing,
                 counts["stopped"])
    return counts


def _refuse_gaps(given: int, wanted: int, allowed: float, stopped: str | None) -> None:
    if wanted - given > allowed * wanted:
        raise UserError(f"{wanted - given:,} of {wanted:,} traces are missing"
                        f"{f' ({stopped})' if stopped else ''}; the {given:,} that came are kept "
                        "and the same command asks only for the rest (generate.max_missing "
                        "lets a run go on with gaps)")


def summary(counts: Counts) -> str:
    money = f", ${counts['cost_usd']:.2f}" if counts["cost_usd"] else ""
    unsure = counts.get("unsure_usd", 0.0)
    if unsure != 0.0:
        more = "an unknown amount" if unsure is None else f"up to ${unsure:.2f}"
        money += f", {more} more for what came without a bill"
    return (f"{counts['traces']:,} traces ({counts['asked']:,} asked, {counts['reused']:,} reused, "
            f"{counts['failed']:,} failed, {counts['cut_off']:,} cut off{money})")


def files(experiment: Any) -> tuple[Path, ...]:
    """The prompt template and, where they are a local file, the traces."""
    from pipeline.problems import is_file

    teacher = experiment.generate.teacher
    own = isinstance(teacher, FileTeacher) and is_file(teacher.traces)
    return (prompt_path(experiment.generate.prompt), *([Path(teacher.traces)] if own else []))


STAGE = Stage(name="generate", run=run, needs=lambda e: ("prepare",), summary=summary, files=files)
