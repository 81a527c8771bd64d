"""generate: ask the teacher for traces, paying for each only once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from pipeline import tables
from pipeline.cluster.ray_nodes import check_cluster
from pipeline.config.experiment import Experiment
from pipeline.config.generate import GenerateConfig
from pipeline.config.teacher import (
    FileTeacher,
    Sampling,
    Teacher,
    TransformersTeacher,
    VllmTeacher,
)
from pipeline.errors import LackingError, UserError
from pipeline.problems.chats import teacher_chat, teacher_chats
from pipeline.problems.files import is_small
from pipeline.problems.sources import is_file
from pipeline.stage import Counts
from pipeline.student.models import check_folder, check_sampling
from pipeline.teacher.ask import ask_teacher
from pipeline.teacher.budget import check_budget
from pipeline.teacher.from_file import check_columns, import_traces
from pipeline.teacher.request_table import RequestTable
from pipeline.teacher.tally import TraceTally

ASK_REMEDY = ("ask a model that thinks, or see with `limbeck probe` where the endpoint puts it (a "
              "reasoning parser, or generate.teacher.opened)")
IMPORT_REMEDY = ("set generate.teacher.thinking_column if it stands in a column of its own, or "
                 "generate.teacher.opened if its opening mark was part of the prompt")


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write traces.parquet: one row for every sample the teacher gave."""
    config = experiment.generate
    problems = tables.read(tables.Problem, inputs["prepare"] / "problems.parquet")
    sources = problems.select("problem_id", "source")
    with tables.writer(tables.Trace, out / "traces.parquet") as file:
        tally = TraceTally(lambda traces: file.write(traces.drop("source", strict=False).join(
            sources, on="problem_id", how="left", maintain_order="left")))
        found = [import_traces(teacher, problems.filter(problems["source"] == name),
                               config.samples, tally) for name, teacher in config.imports.items()]
        left = problems.filter(~problems["source"].is_in(list(config.imports)))
        if isinstance(config.teacher, FileTeacher) and len(left):
            found.append(import_traces(config.teacher, left, config.samples, tally))
        elif len(left):
            found.append(_asked(experiment, left, tally))
    tally.report(IMPORT_REMEDY if isinstance(config.teacher, FileTeacher) else ASK_REMEDY)
    return found[0] if len(found) == 1 else _sum(found)


def _asked(experiment: Experiment, problems: pl.DataFrame, tally: TraceTally) -> Counts:
    """Ask the teacher, and refuse to go on if too many traces are missing."""
    config = experiment.generate
    requests = RequestTable(problems["problem_id"], teacher_chat(config, problems), config.samples)
    counts = ask_teacher(experiment, requests, tally, problems)
    _refuse_gaps(counts["traces"], len(requests), config.max_missing, counts["stopped"])
    return counts


def _sum(found: list[Counts]) -> Counts:
    """The counts of several teachers together; what is no number is the last one's."""
    return {key: sum(counts.get(key) or 0 for counts in found)
            if isinstance(value, int | float) and not isinstance(value, bool) else value
            for counts in found for key, value in counts.items()}


def _check_prompts(config: GenerateConfig) -> None:
    """Refuse prompts that cannot be made, and those of the teacher's own that none would see."""
    own = [name for name in ("system", "examples", "hint") if getattr(config, name) is not None]
    if own and config.teacher.type == "file":
        raise UserError(f"generate.{own[0]} is for a teacher that is asked, and generate.teacher "
                        "is a file of traces; unset it")
    row = {"problem_id": "", "problem": "1 + 1", "answer": "2", "source": ""}
    teacher_chats(config, [row, *({**row, "source": name} for name in config.prompts)])


def _refuse_gaps(given: int, wanted: int, allowed: float, stopped: str | None) -> None:
    if wanted - given > allowed * wanted:
        raise UserError(f"{wanted - given:,} of {wanted:,} traces are missing"
                        f"{f' ({stopped})' if stopped else ''}; the {given:,} that came are kept "
                        "and the same command asks only for the rest (generate.max_missing "
                        "lets a run go on with gaps)")


def check(experiment: Experiment) -> None:
    """Refuse a prompt that leaves out the problem, a budget without prices, columns not there."""
    config, problems = experiment.generate, experiment.prepare.problems
    _check_prompts(config)
    check_cluster(experiment.runtime)
    if config.teacher.type == "solver" and is_file(problems) and not config.imports:
        raise LackingError(f"the embedded teacher solves countdown alone, not {problems}; name "
                           "another, e.g. generate.teacher='{type: openai, model: NAME}' with "
                           "runtime.teacher.base_url")
    for teacher in (config.teacher, *config.imports.values()):
        if isinstance(teacher, TransformersTeacher):
            check_sampling(config.sampling)
            check_folder("generate.teacher.model", teacher.model)
        elif not isinstance(teacher, FileTeacher):
            check_budget(teacher, experiment.runtime.teacher, config.sampling)
            _check_room(teacher, config.sampling)
        elif is_file(teacher.traces) and is_small(teacher.traces):
            check_columns(teacher)


def _check_room(teacher: Teacher, sampling: Sampling) -> None:
    room = teacher.vllm.get("max_model_len") if isinstance(teacher, VllmTeacher) else None
    if isinstance(room, int) and sampling.max_tokens and sampling.max_tokens >= room:
        raise UserError(f"generate.sampling.max_tokens is {sampling.max_tokens}, and "
                        f"generate.teacher.vllm.max_model_len={room} holds prompt and answer; "
                        "raise it, or lower max_tokens")


def summary(counts: Counts) -> str:
    money = f", ${counts['cost_usd']:.2f}" if counts["cost_usd"] else ""
    unsure = counts.get("unsure_usd", 0.0)
    if unsure != 0.0:
        more = "an unknown amount" if unsure is None else f"up to ${unsure:.2f}"
        money += f", {more} more for what came without a bill"
    return (f"{counts['traces']:,} traces ({counts['asked']:,} asked, {counts['reused']:,} reused, "
            f"{counts['failed']:,} failed, {counts['cut_off']:,} cut off{money})")
