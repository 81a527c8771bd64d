"""Asks the experiment's teacher: starts a local one where needed, shows progress, counts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import polars as pl

from pipeline.completion import Messages
from pipeline.errors import UserError
from pipeline.progress import progress

SUMMED = ("prompt_tokens", "completion_tokens", "cost_usd")


def ask_teacher(experiment: Any, chats: Mapping[str, Messages], samples: int,
                keep: Callable[[pl.DataFrame], None],
                problems: pl.DataFrame | None = None) -> dict[str, Any]:
    """Counts of `samples` traces for each chat, by problem id; `keep` gets them, some thousand
    at a time (records.Trace).

    Only what the trace store lacks is asked; by the golds of `problems` (a records.Problem frame)
    the share accepted so far is shown. A UserError where the teacher gave nothing at all.
    """
    from pipeline.teacher import Outcome, TraceStore, generate
    from pipeline.teacher.batch import generate_in_batches

    config, runtime = experiment.generate, experiment.runtime
    requests = requests_of(chats, samples)
    with TraceStore(runtime.traces) as store:
        missing = len(store.missing(requests, config.teacher, config.sampling))
        outcome = Outcome(reused=len(requests) - missing)
        if missing:
            with (running_teacher(config.teacher, runtime) as address,
                  progress("asking the teacher", missing) as advance,
                  _quick(problems, chats, runtime.teacher) as more):
                ask = generate_in_batches if runtime.teacher.batch else generate
                outcome = ask(requests, teacher=config.teacher, sampling=config.sampling,
                              runtime=address, store=store, on_progress=advance, **more)
        sums: Counter[str] = Counter()
        for traces in store.stream(requests, config.teacher, config.sampling):
            keep(traces)
            sums.update(_sums(traces))
    explain(outcome, "generate")
    if not sums["traces"]:
        raise UserError("the teacher gave no trace at all: "
                        f"{outcome.stopped or dict(outcome.reasons)}")
    return _counts(sums, outcome)


@contextmanager
def _quick(problems: pl.DataFrame | None, chats: Mapping[str, Messages],
           runtime: Any) -> Iterator[dict[str, Any]]:
    """What `generate` needs to show the share accepted so far, where that is wanted and can be."""
    if problems is None or runtime.batch or not runtime.quick_judge:
        yield {}
        return
    from pipeline.judge import Problem, has_gold
    from pipeline.judge.kinds import kind_of
    from pipeline.teacher.accept_rate import AcceptRate
    from pipeline.teacher.request import dump

    judged = [Problem.from_row(row) for row in problems.iter_rows(named=True) if has_gold(row)]
    known = {dump(chats[problem.problem_id]): problem for problem in judged
             if kind_of(problem).live}
    with AcceptRate(known) as judge:
        yield {"quick": judge}


def requests_of(chats: Mapping[str, Messages], samples: int) -> list[Any]:
    """One Request for each chat and sample."""
    from pipeline.teacher import Request

    return [Request(name, sample, chat) for name, chat in chats.items()
            for sample in range(samples)]


@contextmanager
def running_teacher(teacher: Any, runtime: Any) -> Iterator[Any]:
    """`runtime.teacher` with the address of the teacher, started here where it is local."""
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

    with vllm_servers(teacher.model, teacher.vllm, teacher.servers,
                      log=runtime.traces / "vllm.log") as (first, *others):
        yield runtime.teacher.model_copy(update={"base_url": first, "mirrors": others})


def explain(outcome: Any, who: str) -> None:
    """What went wrong or is worth knowing, a line each."""
    if outcome.stopped:
        print(f"{who}: stopped early: {outcome.stopped}", file=sys.stderr)
    for reason, count in outcome.reasons.most_common(3):
        print(f"{who}: {count:,} failed: {reason}", file=sys.stderr)
    for note in outcome.notes:
        print(f"{who}: {note}", file=sys.stderr)


def _sums(traces: pl.DataFrame) -> dict[str, Any]:
    return {"traces": len(traces), "cut_off": int((traces["finish_reason"] == "length").sum()),
            **{name: traces[name].sum() for name in SUMMED}}


def _counts(sums: Mapping[str, Any], outcome: Any) -> dict[str, Any]:
    """What the manifest keeps; tokens and dollars are of all traces, asked now or before."""
    return {"traces": sums["traces"], "asked": outcome.asked, "reused": outcome.reused,
            "failed": outcome.failed, "reasons": dict(outcome.reasons),
            "retries": outcome.retries, "stopped": outcome.stopped,
            "cut_off": sums["cut_off"], **{name: sums[name] for name in SUMMED},
            "spent_now_usd": outcome.cost_usd, "unsure_usd": outcome.unsure_usd,
            "asking_seconds": round(outcome.seconds, 2)}
