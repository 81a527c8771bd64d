"""generate: ask the teacher for traces, paying for each only once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.teacher import FileTeacher
from pipeline.errors import UserError
from pipeline.problems.files import is_small
from pipeline.problems.sources import is_file
from pipeline.prompts import chats, messages
from pipeline.stage import Counts
from pipeline.teacher.ask import ask_teacher
from pipeline.teacher.budget import check_budget
from pipeline.teacher.from_file import check_columns, import_traces
from pipeline.teacher.tally import TraceTally

ASK_REMEDY = ("ask a model that thinks, or see with `limbeck probe` where the endpoint puts it (a "
              "reasoning parser, or generate.teacher.opened)")
IMPORT_REMEDY = ("set generate.teacher.thinking_column if it stands in a column of its own, or "
                 "generate.teacher.opened if its opening mark was part of the prompt")


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write traces.parquet: one row for every sample the teacher gave."""
    config = experiment.generate
    problems = tables.read(tables.Problem, inputs["prepare"] / "problems.parquet")
    with tables.writer(tables.Trace, out / "traces.parquet") as file:
        tally = TraceTally(file.write)
        if isinstance(config.teacher, FileTeacher):
            counts = import_traces(config.teacher, problems, config.samples, tally)
            tally.report(IMPORT_REMEDY)
            return counts
        asked = chats(config.prompt, problems.iter_rows(named=True))
        counts = ask_teacher(experiment, asked, config.samples, tally, problems)
    tally.report(ASK_REMEDY)
    _refuse_gaps(counts["traces"], len(asked) * config.samples, config.max_missing,
                 counts["stopped"])
    return counts


def _refuse_gaps(given: int, wanted: int, allowed: float, stopped: str | None) -> None:
    if wanted - given > allowed * wanted:
        raise UserError(f"{wanted - given:,} of {wanted:,} traces are missing"
                        f"{f' ({stopped})' if stopped else ''}; the {given:,} that came are kept "
                        "and the same command asks only for the rest (generate.max_missing "
                        "lets a run go on with gaps)")


def check(experiment: Experiment) -> None:
    """Refuse a prompt that leaves out the problem, a budget without prices, columns not there."""
    config = experiment.generate
    messages(config.prompt, "1+1?")
    if not isinstance(config.teacher, FileTeacher):
        check_budget(config.teacher, experiment.runtime.teacher, config.sampling)
    elif is_file(config.teacher.traces) and is_small(config.teacher.traces):
        check_columns(config.teacher)


def summary(counts: Counts) -> str:
    money = f", ${counts['cost_usd']:.2f}" if counts["cost_usd"] else ""
    unsure = counts.get("unsure_usd", 0.0)
    if unsure != 0.0:
        more = "an unknown amount" if unsure is None else f"up to ${unsure:.2f}"
        money += f", {more} more for what came without a bill"
    return (f"{counts['traces']:,} traces ({counts['asked']:,} asked, {counts['reused']:,} reused, "
            f"{counts['failed']:,} failed, {counts['cut_off']:,} cut off{money})")
