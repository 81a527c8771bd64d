"""Asks the experiment's teacher: starts a local one if needed, shows progress, counts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.config.experiment import Experiment, Runtime
from pipeline.config.teacher import JudgeRuntime, LLMJudgeConfig, Teacher, TeacherRuntime
from pipeline.errors import UserError
from pipeline.progress import progress
from pipeline.stage import model_identity

if TYPE_CHECKING:
    from pipeline.teacher.outcome import Outcome
    from pipeline.teacher.request import Request

SUMMED_COLUMNS = ("prompt_tokens", "completion_tokens", "cost_usd")


def ask_teacher(experiment: Experiment, requests: Sequence[Request],
                write_batch: Callable[[pl.DataFrame], None],
                problems: pl.DataFrame | None = None) -> dict[str, Any]:
    """Get a trace for each request, asking only for those that the trace store lacks.

    `write_batch` gets tables.Trace frames of some thousand rows; returns their counts. With
    `problems` (tables.Problem) the share accepted so far is shown. Raises UserError if no trace
    came at all.
    """
    from pipeline.teacher import Outcome, TraceStore, generate
    from pipeline.teacher.batch import generate_in_batches

    config, runtime = experiment.generate, experiment.runtime
    with TraceStore(runtime.traces) as store:
        left = store.missing(requests, config.teacher, config.sampling)
        missing = len(left)
        outcome = Outcome(reused=len(requests) - missing)
        if missing and runtime.cluster and not (
                runtime.teacher.batch or config.teacher.type == "transformers"):
            with progress("asking the teacher", missing) as advance:
                # By name: that module's processes start local teachers by this one.
                outcome = import_module("pipeline.teacher.on_cluster").generate(
                    requests, teacher=config.teacher, sampling=config.sampling,
                    runtime=runtime.teacher, store=store, cluster=runtime.cluster,
                    on_progress=advance)
        elif missing:
            with (running_teacher(config.teacher, runtime) as address,
                  progress("asking the teacher", missing) as advance,
                  _accept_rate(problems, left, runtime.teacher) as options):
                ask: Any = generate_in_batches if runtime.teacher.batch else generate
                if config.teacher.type == "transformers":
                    # By name: the folder of students stands after this one, and imports it.
                    ask = import_module("pipeline.student.as_teacher").generate
                outcome = ask(requests, teacher=config.teacher, sampling=config.sampling,
                              runtime=address, store=store, on_progress=advance, **options)
        if cut := store.longer(requests, config.teacher, config.sampling):
            outcome.notes.append(f"{cut:,} traces were asked under a higher limit; they are cut to "
                                 "generate.sampling.max_tokens and count as truncated")
        sums: Counter[str] = Counter()
        for traces in store.stream(requests, config.teacher, config.sampling):
            write_batch(traces)
            sums.update(_sums(traces))
    print_problems(outcome, "generate")
    if not sums["traces"]:
        raise UserError("the teacher gave no trace at all: "
                        f"{outcome.stopped or dict(outcome.reasons)}")
    return _counts(sums, outcome)


@contextmanager
def _accept_rate(problems: pl.DataFrame | None, left: Sequence[Request],
                 runtime: TeacherRuntime) -> Iterator[dict[str, Any]]:
    """Yield options of `generate` that show the share accepted so far, {} if it cannot be known."""
    if problems is None or runtime.batch or not runtime.quick_judge:
        yield {}
        return
    from pipeline.judge import Problem, has_gold
    from pipeline.judge.kinds import kind_of
    from pipeline.teacher.accept_rate import AcceptRate
    from pipeline.teacher.request import canonical_json

    chats = {request.problem_id: request.messages for request in left}
    judged = [Problem.from_row(row) for row in problems.filter(
        pl.col("problem_id").is_in(list(chats))).iter_rows(named=True) if has_gold(row)]
    known = {canonical_json(chats[problem.problem_id]): problem for problem in judged
             if kind_of(problem).live}
    with AcceptRate(known) as judge:
        yield {"accept_rate": judge}


@contextmanager
def running_teacher(teacher: Teacher, runtime: Runtime,
                    **options: Any) -> Iterator[TeacherRuntime]:
    """Start a local server if needed; yields runtime.teacher with base_url set.

    `options` are those of vllm_servers (on_exit, start).
    """
    if teacher.type == "transformers":
        yield runtime.teacher
        return
    if teacher.type == "openai" or runtime.teacher.base_url:
        if not runtime.teacher.base_url:
            raise UserError("no address for the teacher: set runtime.teacher.base_url, e.g. "
                            "https://api.deepseek.com/v1")
        yield runtime.teacher
        return
    if teacher.type == "solver":
        from pipeline.teacher.solver import serve

        with serve(options=teacher.options) as address:
            yield runtime.teacher.model_copy(update={"base_url": address})
        return
    from pipeline.serving.vllm_server import vllm_servers

    assert teacher.type == "vllm"            # traces of a file are imported, not asked for
    with vllm_servers(teacher.model, {**_names(teacher.model), **teacher.vllm}, teacher.servers,
                      log=runtime.traces / "vllm.log", **options) as (first, *others):
        yield runtime.teacher.model_copy(update={"base_url": first, "mirrors": others})


@contextmanager
def running_judge(model: LLMJudgeConfig, runtime: JudgeRuntime, traces: Path,
                  share: float = 1.0) -> Iterator[JudgeRuntime]:
    """Serve a judge that is a model of this machine; yields `runtime` with its base_url.

    `share` is its part of the GPU memory that vLLM takes.
    """
    if runtime.base_url or not model.is_local():
        yield runtime
        return
    from pipeline.serving.vllm_server import vllm_server

    options = {**_names(model.model), "gpu_memory_utilization": round(0.9 * share, 3),
               **runtime.vllm}
    with vllm_server(model.model, options, log=traces / "judge.log") as address:
        yield runtime.model_copy(update={"base_url": address})


def _names(model: str) -> dict[str, Any]:
    # The first name is what its replies call it; it is asked by the second.
    return {"served_model_name": [model_identity(model), model]}


def print_problems(outcome: Outcome, who: str) -> None:
    """Print what went wrong or is worth knowing, a line each."""
    if outcome.stopped:
        print(f"{who}: stopped early: {outcome.stopped}", file=sys.stderr)
    for reason, count in outcome.reasons.most_common(3):
        print(f"{who}: {count:,} failed: {reason}", file=sys.stderr)
    for note in outcome.notes:
        print(f"{who}: {note}", file=sys.stderr)


def _sums(traces: pl.DataFrame) -> dict[str, Any]:
    return {"traces": len(traces), "cut_off": int((traces["finish_reason"] == "length").sum()),
            **{name: traces[name].sum() for name in SUMMED_COLUMNS}}


def _counts(sums: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """The counts of the manifest; tokens and dollars are of all traces, asked now or before."""
    return {"traces": sums["traces"], "asked": outcome.asked, "reused": outcome.reused,
            "failed": outcome.failed, "reasons": dict(outcome.reasons),
            "retries": outcome.retries, "stopped": outcome.stopped,
            "cut_off": sums["cut_off"], **{name: sums[name] for name in SUMMED_COLUMNS},
            "spent_now_usd": outcome.cost_usd, "unsure_usd": outcome.unsure_usd,
            "asking_seconds": round(outcome.seconds, 2)}
