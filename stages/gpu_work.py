"""What each stage of an experiment computes, counted from its config and from what is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.gpu_hours import Gpus, Work, hours, parameters_of
from pipeline.config.experiment import Experiment
from pipeline.stage import Plan

PROMPT_TOKENS = 150
"""Tokens of a problem with its template."""
KEPT = 0.6
"""Share of traces that filter keeps: R1-sized teachers solve so much of mixed mathematics."""
FILLED = 0.5
"""Mean length of a completion as a share of its limit."""
BENCHMARK_PROBLEMS = 500


@dataclass(frozen=True)
class Known:
    """What is known of an experiment before it runs."""

    problems: int
    held_out: int
    trace_tokens: float
    student: float
    """Parameters of the student."""


def known_of(plans: Mapping[str, Plan], trace_tokens: float, student: float) -> Known:
    """Read the counts of the finished prepare among `plans`."""
    counts = (plans["prepare"].manifest or {})["counts"]
    return Known(counts["problems"], counts["held_out"], trace_tokens, student)


def work_of(experiment: Experiment, plans: Mapping[str, Plan], known: Known) -> list[Work]:
    """The GPU work of each stage among `plans` that is not made."""
    makers = {"generate": _generate, "logits": _logits, "sft": _sft, "rl": _rl,
              "evaluate": _evaluate}
    rows, assumed = _rows(experiment, plans, known)
    return [work for name, make in makers.items()
            if name in plans and plans[name].manifest is None
            and (work := make(experiment, known, rows, assumed)) is not None]


def _rows(experiment: Experiment, plans: Mapping[str, Plan], known: Known
          ) -> tuple[float, tuple[str, ...]]:
    """Tokens of the packed rows, and what of it is assumed."""
    if "pack" in plans and (made := plans["pack"].manifest):
        return float(made["counts"]["tokens"]), ()
    traces = known.problems * experiment.generate.samples
    share, assumed = KEPT, (f"{KEPT:.0%} of traces are kept",)
    if "filter" in plans and (made := plans["filter"].manifest):
        traces, share, assumed = made["counts"]["kept"], 1.0, ()
    return traces * share * (known.trace_tokens + PROMPT_TOKENS), assumed


def _generate(experiment: Experiment, known: Known, rows: float, assumed: tuple) -> Work | None:
    teacher = experiment.generate.teacher
    if teacher.type not in ("vllm", "transformers"):
        return None
    sampled = known.problems * experiment.generate.samples * known.trace_tokens
    return Work("generate", parameters_of(teacher.model)[0], sampled=sampled)


def _logits(experiment: Experiment, known: Known, rows: float, assumed: tuple) -> Work:
    return Work("logits", parameters_of(experiment.logits.teacher)[0], scored=rows,
                assumed=assumed)


def _sft(experiment: Experiment, known: Known, rows: float, assumed: tuple) -> Work:
    from pipeline.sft.trainer import arguments

    args = arguments(experiment.sft, Path("unused"), experiment.seed)
    row = known.trace_tokens + PROMPT_TOKENS
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps \
        * _processes(experiment)
    tokens = rows * args.num_train_epochs if args.max_steps < 1 else args.max_steps * batch * row
    if experiment.sft.method.type != "on_policy":
        return Work("sft", known.student, trained=tokens, assumed=assumed)
    # The teacher's pass over each answer, in tokens of the student's size.
    teacher = parameters_of(experiment.sft.method.teacher)[0]
    return Work("sft", known.student, trained=tokens, sampled=tokens,
                scored=tokens * teacher / known.student, assumed=assumed)


def _rl(experiment: Experiment, known: Known, rows: float, assumed: tuple) -> Work:
    from pipeline.rl.schedule import grpo_config, phase_settings

    sampled = prompts = before = 0.0
    for settings in phase_settings(experiment.rl):
        args = grpo_config(settings, Path("unused"), experiment.seed)
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps \
            * _processes(experiment)
        whole = args.num_train_epochs * known.problems * args.num_generations / batch
        end = args.max_steps if args.max_steps > 0 else whole
        completions = (end - before) * batch
        sampled += completions * FILLED * args.max_completion_length
        prompts += completions * PROMPT_TOKENS
        before = end
    return Work("rl", known.student, trained=sampled + prompts, scored=sampled + prompts,
                sampled=sampled,
                assumed=(f"completions fill {FILLED:.0%} of max_completion_length",))


def _evaluate(experiment: Experiment, known: Known, rows: float, assumed: tuple) -> Work:
    config = experiment.evaluate
    sizes = [known.held_out if name == "heldout" else BENCHMARK_PROBLEMS
             for name in config.benchmarks]
    problems = sum(min(size, config.limit or size) for size in sizes)
    models = sum(model != "teacher" for model in config.models)
    tokens = min(known.trace_tokens, config.sampling.max_tokens)
    said = () if set(config.benchmarks) == {"heldout"} else \
        (f"{BENCHMARK_PROBLEMS} problems in a benchmark",)
    return Work("evaluate", known.student, sampled=models * problems * config.samples * tokens,
                assumed=("a student writes as much as its teacher", *said))


def _processes(experiment: Experiment) -> int:
    return int(experiment.runtime.launch.get("num_processes", 1))


def as_rows(works: list[Work], gpus: Gpus) -> list[dict[str, Any]]:
    """Hours and dollars of each stage, with its tokens and what is assumed."""
    return [{"stage": one.stage, "trained_tokens": round(one.trained),
             "scored_tokens": round(one.scored), "sampled_tokens": round(one.sampled),
             "hours": round(hours(one, gpus), 4),
             "usd": None if gpus.usd is None else round(hours(one, gpus) * gpus.count * gpus.usd, 2),
             "assumed": list(one.assumed)} for one in works]


def lines(rows: list[dict[str, Any]], gpus: Gpus, step: str = "") -> list[str]:
    """The rows as text, and their sum."""
    name = f"{step}." if step else ""
    out = []
    for row in rows:
        tokens = ", ".join(f"{row[f'{kind}_tokens']:,} {kind}"
                           for kind in ("trained", "scored", "sampled") if row[f"{kind}_tokens"])
        usd = "" if row["usd"] is None else f"  ${row['usd']:,.2f}"
        said = f"  (assumed: {'; '.join(row['assumed'])})" if row["assumed"] else ""
        out.append(f"{name}{row['stage']:8} {row['hours']:8.2f} h on {gpus.count} {gpus.kind}"
                   f"{usd}  {tokens} tokens{said}")
    return out
