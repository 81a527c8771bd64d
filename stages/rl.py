"""rl: refine the student by GRPO with verifiable rewards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.rl import RlJob
from pipeline.prompts import chats, prompt_path
from pipeline.rl.difficulty import check_band, check_phases, phase_trainers
from pipeline.rl.user_reward import own_files
from pipeline.serving.vllm_server import has_vllm
from pipeline.stage import Counts, Stage


def needs(experiment: Any) -> tuple[str, ...]:
    start = {"sft": ("sft",), "base": ()}.get(experiment.rl.start, ())
    by_teacher = experiment.rl.difficulty and not experiment.rl.difficulty_samples
    return ("prepare", "student", *start, *(("filter",) if by_teacher else ()))


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write model/, log.jsonl with every step's curves, and best/ and alarms.jsonl if any."""
    job = job_of(experiment, inputs, out)
    counts = {**_refined(job, experiment.runtime.launch), "problems": len(job.rows)}
    best = out / "best" / "heldout.json"
    if job.rl.keep == "best" and best.is_file():
        counts["handed_on"] = json.loads(best.read_text(encoding="utf-8"))
    return counts


def summary(counts: Counts) -> str:
    """Steps and seconds, and which model goes on where that is not the last."""
    best = counts.get("handed_on")
    which = f"; handed on as it was after step {best['step']}, {best['accuracy']:.1%} of " \
            f"{best['problems']} held-out problems right" if best else ""
    return f"{counts['steps']:,} steps in {counts['train_seconds']} s{which}"


def job_of(experiment: Any, inputs: Mapping[str, Path], out: Path) -> RlJob:
    """The refinement of the problems inside the band, from the start that the config names."""
    from pipeline.student.tiny import resolve

    config, runtime = experiment.rl, experiment.runtime
    start = {"sft": lambda: resolve(inputs["sft"]), "base": lambda: resolve(inputs["student"])}
    model = start.get(config.start, lambda: config.start)()
    rows = _asked(experiment, inputs["prepare"] / "problems.parquet")
    if config.difficulty:
        rows = _within_band(experiment, inputs, rows, model, out)
    held_out = _asked(experiment, inputs["prepare"] / "heldout.parquet") \
        if config.evaluate_every else []
    return RlJob(rl=config, model=model, tokenizer=inputs["student"] / "tokenizer", rows=rows,
                 held_out=held_out[:config.evaluate_problems], engine=runtime.engine(),
                 judge_workers=runtime.judge_workers, out=out, seed=experiment.seed)


def _refined(job: RlJob, options: Mapping[str, Any]) -> Counts:
    """Run `job` in this process, or where phases, vLLM or several GPUs are in it, in others.

    Each phase gets a process of its own: a trainer and its vLLM engine give their memory back only
    when their process ends.
    """
    from pipeline.serving.processes import gpu_count
    from pipeline.serving.vllm_server import rollout_server
    from pipeline.train.launch import launch

    config, module = job.rl, "pipeline.rl.phases"
    if config.server is not None:
        with rollout_server(job.model, config.server, config.server_gpus,
                            job.out / "vllm.log") as (keys, left):
            served = config.model_copy(update={"trainer": {**config.trainer, **keys}})
            job = job.model_copy(update={"rl": served})
            return launch(job, module, options, left)
    if not (options or config.phases or config.trainer.get("use_vllm") or gpu_count() > 1):
        from pipeline.rl.phases import run as refine

        return refine(job)
    counts: Counts = {}
    for last in range(len(config.phases) or 1):
        counts = launch(job.model_copy(update={"last": last}), module, options)
    return counts


def _asked(experiment: Any, path: Path) -> list[dict[str, Any]]:
    """The problems of a table with their prompts; without a gold there is no reward."""
    from pipeline import tables
    from pipeline.judge import has_gold

    problems = list(filter(has_gold, tables.read(tables.Problem, path).to_dicts()))
    asked = chats(experiment.generate.prompt, problems)
    return [{"prompt": asked[row["problem_id"]], **row} for row in problems]


def _within_band(experiment: Any, inputs: Mapping[str, Path], rows: list[dict[str, Any]],
                 model: str, out: Path) -> list[dict[str, Any]]:
    """The problems inside the difficulty band, by the teacher's or the start model's scores."""
    from pipeline.config.evaluate import StudentSampling
    from pipeline.judge import JudgePool
    from pipeline.rl.difficulty import student_scores, teacher_scores, within_band
    from pipeline.rl.run import arguments

    config = experiment.rl
    given = phase_trainers(config.trainer, config.phases)[0]
    args = arguments(given, out, experiment.seed)
    if config.difficulty_samples:
        sampling = StudentSampling(temperature=args.temperature, top_p=args.top_p,
                                   max_tokens=args.max_completion_length)
        with JudgePool(experiment.runtime.judge_workers) as pool:
            scores = student_scores(model, inputs["student"] / "tokenizer", rows,
                                    config.difficulty_samples, sampling, pool, experiment.seed,
                                    out / "difficulty.parquet", experiment.runtime.engine())
    else:
        scores = teacher_scores(inputs["filter"] / "judged.parquet")
    return within_band(rows, config.difficulty, scores,
                  args.generation_batch_size // args.num_generations)


def check(experiment: Any) -> None:
    from pipeline.errors import UserError
    from pipeline.judge.verdict import make_policy
    from pipeline.rl.rewards import reward_functions
    from pipeline.rl.run import arguments
    from pipeline.serving.engine_group import check_engines
    from pipeline.train.arguments import lora_config
    from pipeline.train.launch import check_options

    config = experiment.rl
    make_policy(config.policy)
    reward_functions({name: 1.0 for name in config.rewards if name != "process"}, None, False, 1)
    check_options(experiment.runtime.launch)
    lora_config(config.lora, "rl.lora")
    if (config.server is None) == bool(config.server_gpus):
        raise UserError("rl.server (options of vllm serve, {} for none) and rl.server_gpus (its "
                        "GPUs, e.g. 1) go together")
    if config.server is not None and config.phases:
        raise UserError("rl.server takes the weights of one trainer, so it has no rl.phases; "
                        "remove one of them, or sample with rl.trainer.use_vllm alone")
    if config.start not in ("sft", "base") and not (Path(config.start) / "config.json").is_file():
        raise UserError(f"rl.start={config.start!r} is neither sft, base nor a checkpoint folder")
    if ("process" in config.rewards) != (config.process is not None):
        raise UserError("rl.rewards.process and rl.process (the model that scores) go together")
    if config.difficulty:
        check_band(config.difficulty)
    if config.keep == "best" and not config.evaluate_every:
        raise UserError("rl.keep=best needs rl.evaluate_every: the steps between two evaluations")
    if config.evaluate_every and not experiment.prepare.held_out:
        raise UserError("rl.evaluate_every needs held-out problems; raise prepare.held_out")
    check_phases(config.trainer, config.phases)
    for given in phase_trainers(config.trainer, config.phases):
        args = arguments(given, Path("unused"), experiment.seed)
        check_engines(experiment.runtime.engines, args, "rl")
        if (args.use_vllm or config.server is not None) and not has_vllm():
            raise UserError("rl samples by vLLM, which is not installed; run pip install "
                            "'.[vllm]' in limbeck's checkout, or set rl.trainer.use_vllm=false "
                            "(and no rl.server)")


STAGE = Stage(name="rl", run=run, check=check, needs=needs, resumable=True, version=4,
              files=lambda e: (prompt_path(e.generate.prompt), *own_files(e.rl.rewards)),
              summary=summary)
