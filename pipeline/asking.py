"""Asks the experiment's teacher: starts a local one where needed, shows progress, counts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import polars as pl

from pipeline.chat import Messages
from pipeline.errors import UserError
from pipeline.progress import progress


def ask_teacher(experiment: Any, chats: Mapping[str, Messages],
                samples: int) -> tuple[pl.DataFrame, dict[str, Any]]:
    """(records.Trace frame, counts) of `samples` traces for each chat, by problem id.

    Only what the trace store lacks is asked. A UserError where the teacher gave nothing at all.
    """
    from pipeline.teacher import Outcome, Request, TraceStore, generate

    config, runtime = experiment.generate, experiment.runtime
    requests = [Request(name, sample, chat) for name, chat in chats.items()
                for sample in range(samples)]
    with TraceStore(runtime.traces) as store:
        missing = len(store.missing(requests, config.teacher, config.sampling))
        outcome = Outcome(reused=len(requests) - missing)
        if missing:
            with (_reached(config.teacher, runtime.teacher) as reached,
                  progress("asking the teacher", missing) as advance):
                outcome = generate(requests, teacher=config.teacher, sampling=config.sampling,
                                   runtime=reached, store=store, on_progress=advance)
        traces = store.collect(requests, config.teacher, config.sampling)
    _explain(outcome)
    if not len(traces):
        raise UserError("the teacher gave no trace at all: "
                        f"{outcome.stopped or dict(outcome.reasons)}")
    return traces, _counts(traces, outcome)


@contextmanager
def _reached(teacher: Any, runtime: Any) -> Iterator[Any]:
    """The runtime with the address of the teacher, which is started here where it is local."""
    if teacher.type == "openai" or runtime.base_url:
        if not runtime.base_url:
            raise UserError("no address for the teacher: set runtime.teacher.base_url, e.g. "
                            "https://api.deepseek.com/v1")
        yield runtime
        return
    if teacher.type == "solver":
        from pipeline.teacher.server import serve

        server = serve(options=teacher.options)
    else:
        from pipeline.serve import vllm_server

        server = vllm_server(teacher.model, teacher.vllm)
    with server as address:
        yield runtime.model_copy(update={"base_url": address})


def _explain(outcome: Any) -> None:
    """What went wrong or is worth knowing, a line each."""
    if outcome.stopped:
        print(f"generate: stopped early: {outcome.stopped}", file=sys.stderr)
    for reason, count in outcome.reasons.most_common(3):
        print(f"generate: {count:,} failed: {reason}", file=sys.stderr)
    for note in outcome.notes:
        print(f"generate: {note}", file=sys.stderr)


def _counts(traces: pl.DataFrame, outcome: Any) -> dict[str, Any]:
    """What the manifest keeps; tokens and dollars are of all traces, asked now or before."""
    return {"traces": len(traces), "asked": outcome.asked, "reused": outcome.reused,
            "failed": outcome.failed, "reasons": dict(outcome.reasons),
            "retries": outcome.retries, "stopped": outcome.stopped,
            "cut_off": int((traces["finish_reason"] == "length").sum()),
            "prompt_tokens": int(traces["prompt_tokens"].sum()),
            "completion_tokens": int(traces["completion_tokens"].sum()),
            "cost_usd": float(traces["cost_usd"].sum()),
            "spent_now_usd": outcome.cost_usd, "asking_seconds": round(outcome.seconds, 2)}
