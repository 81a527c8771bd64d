"""Refinement by GRPO (DeepSeekMath, arXiv 2402.03300): phases of TRL's GRPOTrainer.

An interrupted phase goes on from its last checkpoint; a finished one is not trained again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from pipeline.config.rl import Phase, RlJob
from pipeline.judge import JudgePool
from pipeline.judge.verdict import RL_POLICY, make_policy
from pipeline.rl.alarms import AlarmLogger
from pipeline.rl.dynamic_sampling import DynamicSamplingTrainer
from pipeline.rl.early_stop import EndPhaseOnTruncation, StopOnZeroReward, deciding
from pipeline.rl.heldout import HeldOut, swap
from pipeline.rl.judge_reward import all_weights, of_its_sources
from pipeline.rl.rewards import RewardContext, reward_functions, with_reflection
from pipeline.rl.schedule import grpo_config, phase_settings
from pipeline.serving.processes import is_first
from pipeline.student.decode import keep_freed_memory
from pipeline.student.template import end_of_turn_ids, opens_thinking
from pipeline.student.tokenizer import load_tokenizer
from pipeline.teacher.llm_judge import scorers
from pipeline.train.arguments import lora_config
from pipeline.train.fit import fit, load_student
from pipeline.train.guard import Clock, Guard
from pipeline.train.launch import worker_main
from pipeline.train.log import read_log, write_lines

TENTH = 0.1
"""Of a second, to which a phase's train_seconds are rounded."""


def train(job: RlJob, pool: JudgePool | None = None) -> dict[str, Any]:
    """Train `job`'s model phase by phase, judged by `pool` or one of its own.

    Without phases everything is written to `out`; with them each has a folder `phase-N`, and
    log.jsonl holds all lines with steps counted on. The same job with a later `last` goes on from
    there. Returns steps and train_seconds.
    """
    if pool is None:
        with JudgePool(job.judge_workers) as own_pool:
            own_pool.start()    # while the models load
            return train(job, own_pool)
    phases, schedule = job.rl.phases, phase_settings(job.rl)
    until = len(schedule) if job.last is None else job.last + 1
    model, done = job.model, list[dict[str, Any]]()
    for index, settings in enumerate(schedule[:until]):
        steps_before = sum(counts["steps"] for counts in done)
        left = _minutes_left(job.rl.minutes, done)
        if left == 0:
            break
        # With one seed every phase would begin with the same problems.
        turn = job.model_copy(update={"model": model, "seed": job.seed + index,
                                      "rl": job.rl.model_copy(update={"minutes": left})})
        if not phases:
            done.append(train_phase(turn, pool, Phase(), settings, job.out))
        elif settings["max_steps"] > steps_before:
            settings["max_steps"] -= steps_before
            folder = job.out / f"phase-{index}"
            done.append(train_phase(turn, pool, phases[index], settings, folder, steps_before))
            model = str(folder / "model")
            if is_first():
                _join_logs(job.out, done)
    if is_first() and until == len(schedule):
        _place_result(job, len(done) - 1)
    return {name: round(sum(counts[name] for counts in done), 1)
            for name in ("steps", "train_seconds")}


def _minutes_left(limit: float | None, done: Sequence[Mapping[str, Any]]) -> float | None:
    """What the phases that are `done` left of `limit`; None without one."""
    if limit is None or not done:
        return limit
    left = 60 * limit - sum(counts["train_seconds"] for counts in done)
    return left / 60 if left > TENTH else 0.0


def train_phase(job: RlJob, pool: JudgePool, phase: Phase, settings: Mapping[str, Any],
                folder: Path, steps_before: int = 0) -> dict[str, Any]:
    """Train one phase of `job`, which holds its model and seed, and return its counts.

    A finished phase returns those of its phase.json.
    """
    record = folder / "phase.json"
    if record.is_file():
        return json.loads(record.read_text("utf-8"))
    folder.mkdir(exist_ok=True)
    trainer, guard = make_trainer(job, pool, phase, settings, folder, steps_before)
    counts = fit(trainer, guard, folder, trainer.processing_class)
    if is_first() and job.rl.phases:
        write_lines(record, [counts])
    return counts


def make_trainer(job: RlJob, pool: JudgePool, phase: Phase, settings: Mapping[str, Any],
                 folder: Path, steps_before: int) -> tuple[DynamicSamplingTrainer, Guard]:
    """The trainer of one phase and its guard, ready to train."""
    keep_freed_memory()
    config, tokenizer = job.rl, load_tokenizer(job.tokenizer)
    args = grpo_config(settings, folder, job.seed)
    rewards = _rewards(job, RewardContext(
        pool, opens_thinking(tokenizer), args.max_completion_length, config.language,
        config.languages, config.process, eos_token_ids=end_of_turn_ids(tokenizer, job.model),
        policy=make_policy(config.policy, RL_POLICY)))
    args.reward_weights = [weight for weight, _ in rewards.values()]
    lora = lora_config(config.lora, "rl.lora", job.model)
    guard = Guard("rl", folder / "log.jsonl", zero_loss_is_wrong=False)
    trainer = DynamicSamplingTrainer(
        model=load_student(job.model, args, config.layers), args=args, processing_class=tokenizer,
        reward_funcs=_named_functions(rewards, config.language, *config.languages),
        train_dataset=Dataset.from_list(job.rows),
        callbacks=[
            guard, StopOnZeroReward(config.patience, deciding(
                {name: weight for name, (weight, _) in rewards.items()})),
            Clock(config.minutes, config.schedule), EndPhaseOnTruncation(phase, folder),
            AlarmLogger(config.alarms, folder, job.out, steps_before)],
        peft_config=lora, engine=job.engine, difficulty=config.difficulty or "",
        refill_rounds=config.dynamic_sampling, keep_completions=config.keep_completions,
        overlap=config.overlap)
    if config.evaluate_every:
        best = job.out / "best"
        if trainer.is_world_process_zero():
            swap(best)      # of a run that was killed before it
        trainer.add_callback(HeldOut(trainer, job.held_out, pool, config.evaluate_every, best,
                                     steps_before))     # after Clock, so that it sees the end
    return trainer, guard


def _rewards(job: RlJob, context: RewardContext) -> dict[str, tuple[float, Any]]:
    """The reward functions of all sources by name, each asked of its own problems alone."""
    config = job.rl
    # Another process of this training may be writing what its judge said.
    found = scorers(config.judges, job.judge_runtimes, job.traces)
    judges = {name: (config.judges[name], score) for name, (score, _) in found.items()}
    weights = all_weights(config)
    made = reward_functions(weights, replace(context, judges=judges))
    return {name: (weight, of_its_sources(key, function, config))
            for key, (name, (weight, function)) in zip(weights, made.items(), strict=True)}


def _named_functions(rewards: Mapping[str, tuple[float, Any]], *languages: str) -> list[Any]:
    """The reward functions under the names that TRL logs; the first logs reflections too."""
    functions = [function for _, function in rewards.values()]
    functions[0] = with_reflection(functions[0], *languages)
    for name, function in zip(rewards, functions, strict=True):
        function.__name__ = name
    return functions


def _place_result(job: RlJob, index: int) -> None:
    """Put the model of phase `index`, the last one, or the best model in out/model."""
    last = job.out / f"phase-{index}" / "model"
    if job.rl.phases and last.is_dir():
        shutil.rmtree(job.out / "model", ignore_errors=True)
        last.rename(job.out / "model")
    if job.rl.keep == "best" and (job.out / "best").is_dir():
        shutil.rmtree(job.out / "model", ignore_errors=True)
        shutil.copytree(job.out / "best", job.out / "model")


def _join_logs(out: Path, done: Sequence[Mapping[str, Any]]) -> None:
    """Write out/log.jsonl: each phase's lines with `phase`, steps and tokens counted on."""
    lines, steps, tokens = list[dict[str, Any]](), 0, 0.0
    for index, counts in enumerate(done):
        for row in read_log(out / f"phase-{index}"):
            counted = {"num_tokens": row["num_tokens"] + tokens} if "num_tokens" in row else {}
            lines.append({**row, **counted, "step": row["step"] + steps, "phase": index})
        steps += counts["steps"]
        tokens = max((line.get("num_tokens", 0.0) for line in lines), default=0.0)
    write_lines(out / "log.jsonl", lines)


if __name__ == "__main__":
    worker_main(RlJob, train)
