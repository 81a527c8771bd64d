"""What the stages of a recipe compute on GPUs, counted from their config and what is made."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import tables
from pipeline.cluster.gpu_hours import FULL_SIZE, Gpus, Work, hours, parameters_of
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.problems.chats import teacher_chats
from pipeline.stage import Plan
from pipeline.teacher.ask import running_teacher
from pipeline.teacher.estimate import PRIOR_TOKENS, Estimate, estimate
from pipeline.teacher.request_table import RequestTable
from pipeline.teacher.store import TraceStore
from stages.graph import plans
from stages.make import make, step_plan

PROMPT_TOKENS = 150
"""Tokens of a problem with its template."""
KEPT = 0.6
"""Share of traces that filter keeps."""
FILLED = 0.5
"""Mean length of a completion as a share of its limit."""
BENCHMARK_PROBLEMS = 500
MEASURED_SIZE = 1.1 * FULL_SIZE
"""Parameters up to which rates were measured, on one to four GPUs that each held the model."""


@dataclass(frozen=True)
class Known:
    """What is known before a recipe runs: counts of prepare, tokens of a trace, student's size."""

    problems: int
    held_out: int
    trace_tokens: float
    student: float


def student_size(plans: Iterable[Plan], billions: float | None) -> float:
    """Parameters of the student: given, or by the first model among `plans` that tells."""
    if billions:
        return billions * 1e9
    models = list(dict.fromkeys(plan.experiment.student.model for plan in plans))
    for model in models:
        try:
            return parameters_of(model)[0]
        except UserError:
            continue
    raise UserError(f"neither a name nor a folder says how large the student {models[0]!r} is; "
                    "give --student-billions")


def works_of(plans: dict[str, Plan], known: Known) -> list[tuple[str, Work]]:
    """The GPU work of each of `plans` that is not made, by name."""
    makers = {"generate": _generate, "logits": _logits, "sft": _sft, "rl": _rl,
              "evaluate": _evaluate}
    todo = [(name, plan) for name, plan in plans.items()
            if plan.manifest is None and plan.stage.name in makers]
    found = [(name, makers[plan.stage.name](plan, known)) for name, plan in todo]
    return [(name, work) for name, work in found if work is not None]


def _rows(plan: Plan, known: Known) -> tuple[float, tuple[str, ...]]:
    """Tokens of the rows that `plan` reads, and what of it is assumed."""
    pack = plan.inputs["pack"]
    if made := pack.manifest:
        return float(made["counts"]["tokens"]), ()
    if made := pack.inputs["filter"].manifest:
        return made["counts"]["kept"] * (known.trace_tokens + PROMPT_TOKENS), ()
    traces = known.problems * plan.experiment.generate.samples
    return traces * KEPT * (known.trace_tokens + PROMPT_TOKENS), (f"{KEPT:.0%} of traces kept",)


def _generate(plan: Plan, known: Known) -> Work | None:
    config = plan.experiment.generate
    if config.teacher.type not in ("vllm", "transformers"):
        return None
    sampled = known.problems * config.samples * known.trace_tokens
    return Work("generate", _size(config.teacher.model, known), sampled=sampled)


def _size(model: str, known: Known) -> float:
    """Parameters of a teacher; an artifact of the recipe is as large as its student."""
    try:
        return parameters_of(model)[0]
    except UserError:
        return known.student


def _logits(plan: Plan, known: Known) -> Work:
    rows, assumed = _rows(plan, known)
    return Work("logits", _size(plan.experiment.logits.teacher, known), scored=rows,
                assumed=assumed)


def _sft(plan: Plan, known: Known) -> Work:
    from pipeline.sft.trainer import arguments

    experiment = plan.experiment
    rows, assumed = _rows(plan, known)
    args = arguments(experiment.sft, Path("unused"), experiment.seed)
    limited = args.max_steps * _batch(args, experiment) * (known.trace_tokens + PROMPT_TOKENS)
    tokens = limited if args.max_steps > 0 else rows * args.num_train_epochs
    if experiment.sft.method.type != "on_policy":
        return Work("sft", known.student, trained=tokens, assumed=assumed)
    # The teacher's pass over each answer, in tokens of the student's size.
    teacher = _size(experiment.sft.method.teacher, known) / known.student
    return Work("sft", known.student, trained=tokens, sampled=tokens, scored=tokens * teacher,
                assumed=assumed)


def _rl(plan: Plan, known: Known) -> Work:
    from pipeline.rl.schedule import grpo_config, phase_settings

    experiment = plan.experiment
    sampled = prompts = before = 0.0
    for settings in phase_settings(experiment.rl):
        args = grpo_config(settings, Path("unused"), experiment.seed)
        batch = _batch(args, experiment)
        whole = args.num_train_epochs * known.problems * args.num_generations / batch
        end = args.max_steps if args.max_steps > 0 else whole
        completions = (end - before) * batch
        sampled += completions * FILLED * args.max_completion_length
        prompts += completions * PROMPT_TOKENS
        before = end
    return Work("rl", known.student, trained=sampled + prompts, scored=sampled + prompts,
                sampled=sampled,
                assumed=(f"completions fill {FILLED:.0%} of max_completion_length",))


def _batch(args: Any, experiment: Experiment) -> int:
    """Rows of an optimizer step over all processes."""
    return (args.per_device_train_batch_size * args.gradient_accumulation_steps
            * int(experiment.runtime.launch.get("num_processes", 1)))


def _evaluate(plan: Plan, known: Known) -> Work:
    config = plan.experiment.evaluate
    sizes = [known.held_out if name == "heldout" else BENCHMARK_PROBLEMS
             for name in config.benchmarks]
    problems = sum(min(size, config.limit or size) for size in sizes)
    models = sum(model != "teacher" for model in plan.experiment.compared())
    tokens = min(known.trace_tokens, config.sampling.max_tokens)
    said = () if set(config.benchmarks) == {"heldout"} else \
        (f"{BENCHMARK_PROBLEMS} problems a benchmark",)
    return Work("evaluate", known.student, sampled=models * problems * config.samples * tokens,
                assumed=("students write as much as their teacher", *said))


@dataclass(frozen=True)
class Given:
    """What a user says of a recipe whose problems are not loaded yet; None: look."""

    problems: int | None = None
    trace_tokens: float | None = None
    student_billions: float | None = None


def show_estimate(experiment: Experiment, step: str | None, pilot: int, gpus: Gpus | None,
                  given: Given, as_json: bool) -> None:
    """Print what generate will take and, on `gpus`, every stage that is not made."""
    if given.problems and pilot:
        raise UserError("--pilot asks real problems; leave out --problems or --pilot")
    if not given.problems:
        make(experiment, f"{step}.prepare" if step else "prepare")
    generate = step_plan(experiment, "generate", step)
    asked = _estimate_teacher(generate, pilot, given)
    rows = []
    if gpus is not None:
        gpus.peak()
        chain = plans(experiment, f"{step}.rl" if step else "report")
        tokens = asked.completion_tokens / asked.missing if asked and asked.missing \
            else given.trace_tokens or PRIOR_TOKENS
        known = Known(*_counts(generate, given), tokens,
                      student_size(chain.values(), given.student_billions))
        rows = rows_of(works_of(chain, known), gpus)
    if as_json:
        print(json.dumps({"generate": asked and asdict(asked), "gpus": gpus and asdict(gpus),
                          "stages": rows}, indent=1))
        return
    teacher = generate.experiment.generate.teacher
    source = f"{teacher.traces} is read" if teacher.type == "file" else \
        f"{teacher.model} is sampled on this machine"
    print("\n".join(asked.lines() if asked else
                    [f"{source}, no endpoint is asked: no tokens, no dollars"]))
    if gpus is not None:
        print(f"\non {gpus.count} {gpus.kind}, stages that are not made:")
        print("\n".join(lines(rows, gpus)))


def _counts(generate: Plan, given: Given) -> tuple[int, int]:
    """Problems taught and held out."""
    made = generate.inputs["prepare"].manifest
    if given.problems or made is None:
        return given.problems or 0, generate.experiment.prepare.held_out
    return made["counts"]["problems"], made["counts"]["held_out"]


def _estimate_teacher(generate: Plan, pilot: int, given: Given) -> Estimate | None:
    """Tokens, dollars and hours of the traces to ask for; None if they come from no endpoint."""
    config, runtime = generate.experiment.generate, generate.experiment.runtime
    if config.teacher.type in ("file", "transformers"):
        return None
    requests = RequestTable.of(_chats(generate, given), config.samples)
    there = running_teacher(config.teacher, runtime) if pilot else nullcontext(runtime.teacher)
    with TraceStore(runtime.traces) as store, there as address:
        asked = estimate(requests, teacher=config.teacher, sampling=config.sampling,
                         runtime=address, store=store, pilot=pilot,
                         trace_tokens=given.trace_tokens)
    return asked.times(given.problems or 1)


def _chats(generate: Plan, given: Given) -> dict[str, list[dict[str, str]]]:
    """Return what the teacher is asked, or one usual prompt if problems are only counted."""
    if given.problems:
        return {"": [{"role": "user", "content": "word" * PROMPT_TOKENS}]}
    config = generate.experiment.generate
    prepared = generate.inputs["prepare"].fetched()
    problems = tables.read(tables.Problem, prepared / "problems.parquet")
    problems = problems.filter(~problems["source"].is_in(list(config.imports)))
    return teacher_chats(config, problems.iter_rows(named=True))


def rows_of(works: list[tuple[str, Work]], gpus: Gpus) -> list[dict[str, Any]]:
    """Hours, dollars, tokens and assumptions of each."""
    def usd(work: Work) -> float | None:
        return None if gpus.usd is None else round(hours(work, gpus) * gpus.count * gpus.usd, 2)

    def assumed(work: Work) -> list[str]:
        rates = (work.trained and not gpus.train_rate) or (work.sampled and not gpus.sample_rate)
        larger = rates and work.parameters > MEASURED_SIZE
        return [*work.assumed, *(["rates of a larger model than was measured"] if larger else [])]

    return [{"stage": name, "hours": round(hours(work, gpus), 4), "usd": usd(work),
             "trained_tokens": round(work.trained), "scored_tokens": round(work.scored),
             "sampled_tokens": round(work.sampled), "assumed": assumed(work)}
            for name, work in works]


def lines(rows: list[dict[str, Any]], gpus: Gpus) -> list[str]:
    """Write `rows` as text, a line each, and their sum."""
    total = {"stage": "all", "hours": sum(row["hours"] for row in rows), "assumed": [],
             "usd": None if gpus.usd is None else sum(row["usd"] for row in rows)}
    return [f"{row['stage']:12} {row['hours']:9.2f} h" + _rest(row) for row in [*rows, total]]


def _rest(row: dict[str, Any]) -> str:
    tokens = [f"{row[f'{kind}_tokens']:,} tokens {kind}"
              for kind in ("trained", "scored", "sampled") if row.get(f"{kind}_tokens")]
    usd = "" if row["usd"] is None else f"  ${row['usd']:,.2f}"
    said = f"  (assumed: {'; '.join(row['assumed'])})" if row["assumed"] else ""
    return f"{usd}  {', '.join(tokens)}{said}"
