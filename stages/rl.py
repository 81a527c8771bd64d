"""rl: refine the student by GRPO with verifiable rewards."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import tables
from pipeline.cluster.ray_launch import check_launch, machines, spans_cluster
from pipeline.cluster.rollout_node import RolloutServer
from pipeline.config.evaluate import StudentSampling
from pipeline.config.experiment import Experiment, Runtime
from pipeline.config.rl import LocalPrm, Prm, RlJob
from pipeline.config.trainer_keys import check_engine_keys
from pipeline.curate.language_share import check_languages
from pipeline.errors import LackingError, UserError
from pipeline.judge import JudgePool, has_gold
from pipeline.judge.models.scoring import check_judges
from pipeline.judge.verdict import make_policy
from pipeline.problems.chats import student_chats
from pipeline.prompts import asking_length
from pipeline.rl.difficulty import check_band, student_scores, teacher_scores, within_band
from pipeline.rl.judge_reward import all_weights, is_rewarded
from pipeline.rl.rewards import REWARDS, check_rewards
from pipeline.rl.schedule import check_phases, grpo_config, phase_settings
from pipeline.serving.vllm_server import check_vllm, gpus_of, rollout_server
from pipeline.stage import Counts, is_artifact
from pipeline.student.models import check_folder
from pipeline.student.positions import sampling_beyond, say
from pipeline.student.template import prompt_ids
from pipeline.student.tiny import resolve
from pipeline.student.tokenizer import load_tokenizer
from pipeline.train.arguments import (
    check_layers,
    check_schedule,
    check_whole_layers,
    lora_config,
)
from pipeline.train.launch import check_options, launch, needs_processes


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write model/, log.jsonl with every step's curves, and best/ and alarms.jsonl if any."""
    job = job_of(experiment, inputs, out)
    say("rl", _beyond(job))
    counts = {**_refined(job, experiment.runtime), "problems": len(job.rows)}
    best = out / "best" / "heldout.json"
    if job.rl.keep == "best" and best.is_file():
        counts["handed_on"] = json.loads(best.read_text(encoding="utf-8"))
    return counts


def summary(counts: Counts) -> str:
    """State steps and seconds, and which model is handed on if not the last."""
    best = counts.get("handed_on")
    which = f"; handed on as it was after step {best['step']}, {best['accuracy']:.1%} of " \
            f"{best['problems']} held-out problems right" if best else ""
    return f"{counts['steps']:,} steps in {counts['train_seconds']} s{which}"


def job_of(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> RlJob:
    """The refinement of the problems inside the band, from the start that the config names."""
    runtime = experiment.runtime
    config = runtime.tracked(experiment.rl)
    start = {"sft": lambda: resolve(inputs["sft"]), "base": lambda: resolve(inputs["student"])}
    model = start.get(config.start, lambda: config.start)()
    rows = _asked(experiment, inputs["prepare"] / "problems.parquet")
    if config.difficulty and config.difficulty_samples is not None:
        rows = _within_band(experiment, inputs, rows, config.difficulty, model, out)
    held_out = _asked(experiment, inputs["prepare"] / "heldout.parquet", of_gold=True) \
        if config.evaluate_every else []
    if config.judges and not config.evaluate_every:
        print("rl: a model judges, and without rl.evaluate_every nothing tells whether the student "
              "games it; set it to have held-out accuracy beside the reward", file=sys.stderr)
    return RlJob(judge_runtimes=runtime.for_judges(config.judges), traces=runtime.traces,
                 rl=config, model=model, tokenizer=inputs["student"] / "tokenizer", rows=rows,
                 held_out=held_out[:config.evaluate_problems], engine=runtime.engine(),
                 judge_workers=runtime.judge_workers, out=out, seed=experiment.seed)


def _beyond(job: RlJob) -> str | None:
    """Say that the longest problem and completion do not fit the model, if so."""
    longest = max((row["prompt"] for row in job.rows), key=lambda chat: len(str(chat)))
    settings = phase_settings(job.rl)
    new = max(grpo_config(phase, job.out, job.seed).max_completion_length for phase in settings)
    return sampling_beyond(job.model, len(prompt_ids(load_tokenizer(job.tokenizer), longest)), new,
                           "rl.trainer.max_completion_length",
                           job.rl.trainer.get("model_init_kwargs"))


def _refined(job: RlJob, runtime: Runtime) -> Counts:
    """Run `job` in this process, or in others if it has phases, vLLM or several GPUs.

    Each phase gets a process of its own: a trainer and its vLLM engine give their memory back only
    when their process ends.
    """
    config, module, options = job.rl, "pipeline.rl.phases", runtime.launch
    if config.server is not None:
        if spans_cluster(runtime.cluster, options):
            return launch(job, module, options, cluster=runtime.cluster,
                          server=RolloutServer(job.model, config.server, job.at))
        with rollout_server(job.model, config.server, config.server_gpus,
                            job.out / "vllm.log") as (address, left):
            return launch(job.at(address), module, options, left)
    if not (config.phases or needs_processes(config.trainer, options)):
        from pipeline.rl.phases import train

        return train(job)
    counts: Counts = {}
    for last in range(len(config.phases) or 1):
        counts = launch(job.model_copy(update={"last": last}), module, options,
                        cluster=runtime.cluster)
    return counts


def _asked(experiment: Experiment, path: Path, of_gold: bool = False) -> list[dict[str, Any]]:
    """The problems of a table that some reward says anything of (or have a gold), with prompts."""
    problems = [row for row in tables.read(tables.Problem, path).to_dicts()
                if (has_gold(row) if of_gold else is_rewarded(experiment.rl, row))]
    asked = student_chats(experiment.generate, problems)
    rows = [{"prompt": asked[row["problem_id"]], **row} for row in problems]
    if bounds := experiment.rl.lengths:
        # Drawn by the problem's id, so that no other problem changes it.
        targets = [random.Random(f"{experiment.seed}:{row['problem_id']}").randint(*bounds)
                   for row in rows]
        return [{**row, "prompt": asking_length(row["prompt"], target), "target_tokens": target}
                for row, target in zip(rows, targets, strict=True)]
    return rows


def _within_band(experiment: Experiment, inputs: Mapping[str, Path], rows: list[dict[str, Any]],
                 band: str, model: str, out: Path) -> list[dict[str, Any]]:
    """The problems inside the difficulty band, by the teacher's or the start model's scores."""
    config = experiment.rl
    args = grpo_config(phase_settings(config)[0], out, experiment.seed)
    if config.difficulty_samples:
        sampling = StudentSampling(temperature=args.temperature, top_p=args.top_p,
                                   max_tokens=args.max_completion_length)
        with JudgePool(experiment.runtime.judge_workers) as pool:
            scores = student_scores(model, inputs["student"] / "tokenizer", rows,
                                    config.difficulty_samples, sampling, pool, experiment.seed,
                                    out / "difficulty.parquet", experiment.runtime.engine())
    else:
        scores = teacher_scores(inputs["filter"] / "judged.parquet")
    return within_band(rows, band, scores,
                       args.generation_batch_size // args.num_generations)


def check(experiment: Experiment) -> None:
    """Refuse rewards, phases and a start that cannot be had, and settings that exclude others."""
    config = experiment.rl
    make_policy(config.policy)
    check_rewards(all_weights(config), config.judges)
    if taken := [name for name in config.judges if name in REWARDS]:
        raise UserError(f"judges.{taken[0]} has the name of a reward; rename it")
    check_judges(config.judges, experiment.runtime.for_judges(config.judges), serves=False)
    _check_process(config.process)
    check_layers(config, "rl")
    check_schedule(config, "rl")
    check_whole_layers(config, "rl", experiment.runtime.launch)
    check_launch(experiment.runtime)
    check_engine_keys("runtime.vllm", experiment.runtime.vllm)
    if ("length" in config.rewards) != (config.lengths is not None):
        raise UserError("rl.rewards.length and rl.lengths (the lengths that prompts ask for) go "
                        "together")
    if config.lengths and config.lengths[0] > config.lengths[1]:
        raise UserError(f"rl.lengths={list(config.lengths)}: the shortest comes first")
    _check_server(experiment)
    if config.start not in ("sft", "base") and not is_artifact(config.start) \
            and not (Path(config.start) / "config.json").is_file():
        raise UserError(f"rl.start={config.start!r} is neither sft, base nor a checkpoint folder")
    if ("process" in all_weights(config)) != (config.process is not None):
        raise UserError("rl.rewards.process and rl.process (the model that scores) go together")
    if config.difficulty and config.difficulty_samples is not None:
        check_band(config.difficulty)
    if config.overlap:
        _check_overlap(experiment)
    if config.keep == "best" and not config.evaluate_every:
        raise UserError("rl.keep=best needs rl.evaluate_every: the steps between two evaluations")
    if config.evaluate_every and not experiment.prepare.held_out:
        raise UserError("rl.evaluate_every needs held-out problems; raise prepare.held_out")
    check_languages(config.language, config.languages, "rl.languages")
    check_phases(config)


def _check_server(experiment: Experiment) -> None:
    """Raise UserError if rl.server has no GPUs of its own."""
    config, runtime = experiment.rl, experiment.runtime
    if spans_cluster(runtime.cluster, runtime.launch):
        if config.server_gpus:
            raise UserError(f"rl.server_gpus={config.server_gpus} names GPUs of this machine, and "
                            "on a cluster rl.server gets some that training leaves; remove it and "
                            "give their number, rl.server.tensor_parallel_size")
        gpus_of(config.server or {}, "rl.server")
    elif (config.server is None) == bool(config.server_gpus):
        raise UserError("rl.server (options of vllm serve, {} for none) and rl.server_gpus (its "
                        "GPUs, e.g. 1) go together")
    if config.server is None:
        return
    if config.phases:
        raise UserError("rl.server takes the weights of one trainer, so it has no rl.phases; "
                        "remove one of them, or sample with rl.trainer.use_vllm alone")


def _check_overlap(experiment: Experiment) -> None:
    """Raise UserError unless other processes can sample while this one trains."""
    config, runtime = experiment.rl, experiment.runtime
    colocated = config.trainer.get("use_vllm") and runtime.engines > 1
    if not colocated and config.server is None:
        raise UserError("rl.overlap needs engines in processes of their own; set rl.server, or "
                        "rl.trainer.use_vllm=true and runtime.engines=2 or more")
    processes = int(runtime.launch.get("num_processes") or machines(runtime.launch))
    if config.server is not None and processes > 1:
        raise UserError("rl.overlap with rl.server works with one training process; train in one "
                        "(runtime.launch.num_processes=1 on this machine), or use runtime.engines")
    if config.dynamic_sampling:
        raise UserError("rl.dynamic_sampling waits for each generation, which rl.overlap samples "
                        "ahead; remove one of them")


def _check_process(prm: Prm | None) -> None:
    """Raise UserError if the process reward model's folder is missing, or its key is unset."""
    if isinstance(prm, LocalPrm):
        check_folder("rl.process.model", prm.model)
    elif prm and prm.key_env and not os.environ.get(prm.key_env):
        raise LackingError(f"rl.process.key_env: the environment variable {prm.key_env} is unset; "
                           "set it to the server's key")


def check_fully(experiment: Experiment) -> None:
    """Refuse what TRL, accelerate and peft would."""
    from pipeline.serving.engine_group import check_engines

    config, model = experiment.rl, experiment.student.model
    check_options(experiment.runtime.launch)
    lora_config(config.lora, "rl.lora", None if model == "tiny" else model)
    for settings in phase_settings(config):
        args = grpo_config(settings, Path("unused"), experiment.seed)
        check_engines(experiment.runtime.engines, args, "rl")
        if args.use_vllm or config.server is not None:
            check_vllm("rl", " (and no rl.server)")
