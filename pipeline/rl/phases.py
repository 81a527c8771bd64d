"""Refinement in phases, each a trainer run that can go on where it was interrupted."""

from __future__ import annotations

import json
import shutil
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pipeline.config.rl import Phase, RlJob
from pipeline.judge.verdict import RL_POLICY, make_policy
from pipeline.rl.alarms import crossings
from pipeline.rl.difficulty import phase_trainers
from pipeline.rl.heldout import HeldOut, swap
from pipeline.rl.rewards import reward_functions
from pipeline.rl.run import arguments, train
from pipeline.serving.processes import is_first
from pipeline.student.template import end_ids, opens_thinking
from pipeline.student.tokenizer import load_tokenizer
from pipeline.train.guard import Clock
from pipeline.train.launch import worker_main
from pipeline.train.log import read_lines, read_log

CUT_OFF = "completions/clipped_ratio"


class EndPhaseOnTruncation(TrainerCallback):
    """Ends a phase whose completions are cut off too often; reads what went before in its log."""

    def __init__(self, phase: Phase, folder: Path):
        self.limit, self.folder = phase.until_cut_off or 1.0, folder
        self.seen: deque[float] = deque(maxlen=phase.cut_off_steps)

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen.extend(row[CUT_OFF] for row in read_log(self.folder) if CUT_OFF in row)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if CUT_OFF not in (logs or {}):
            return
        self.seen.append(logs[CUT_OFF])
        share = sum(self.seen) / len(self.seen)
        if len(self.seen) == self.seen.maxlen and share > self.limit:
            control.should_training_stop = True
            control.should_save = False  # a run that went on from here would train a step more


class AlarmLogger(TrainerCallback):
    """Says each alarm once in a run, on stderr and in alarms.jsonl of `out`."""

    def __init__(self, limits: Any, folder: Path, out: Path, begin: int):
        self.limits, self.folder, self.begin = limits, folder, begin
        self.path = out / "alarms.jsonl"
        self.log: list[dict[str, float]] = []
        self.rung: list[dict[str, Any]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.log = read_log(self.folder)
        self.rung = [row for row in read_lines(self.path)
                     if row["step"] <= self.begin + state.global_step]
        self._write(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.log.append({k: float(v) for k, v in (logs or {}).items() if v is not None})
        for kind, sentence in crossings(self.log, self.limits).items():
            if kind not in {row["kind"] for row in self.rung}:
                step = self.begin + state.global_step
                self.rung.append({"step": step, "kind": kind, "alarm": sentence})
                self._write(state)
                if state.is_world_process_zero:
                    print(f"rl: step {step}: {sentence}", file=sys.stderr)

    def _write(self, state: Any) -> None:
        if state.is_world_process_zero and (self.rung or self.path.is_file()):
            replace(self.path, "".join(json.dumps(row) + "\n" for row in self.rung))


def replace(path: Path, text: str) -> None:
    """Write `text` so that a process killed at any time leaves the old file or the new."""
    path.with_name(path.name + ".partial").write_text(text, encoding="utf-8")
    path.with_name(path.name + ".partial").replace(path)


def refine(job: RlJob, pool: Any) -> dict[str, Any]:
    """Train `job`'s model phase by phase, judged by `pool`; returns steps and seconds.

    Without phases everything lies in `out`. With them each has a folder `phase-N`, a finished one
    is not trained again, and log.jsonl holds every phase's lines with steps counted on. A job with
    a `last` phase ends after it; the same job with a later one goes on from there.
    """
    phases = job.rl.phases
    turn, made = job, list[dict[str, Any]]()
    given_each = phase_trainers(job.rl.trainer, phases)
    until = len(given_each) if job.last is None else job.last + 1
    for index, given in enumerate(given_each[:until]):
        begin = sum(counts["steps"] for counts in made)
        folder = job.out / f"phase-{index}" if phases else job.out
        # With one seed every phase would begin with the same problems.
        turn = turn.model_copy(update={"seed": job.seed + index})
        if not phases:
            made.append(_run(turn, pool, Phase(), given, folder, 0))
        elif given["max_steps"] > begin:
            given["max_steps"] -= begin
            made.append(_phase(turn, pool, phases[index], given, folder, begin))
            turn = turn.model_copy(update={"model": str(folder / "model")})
            if is_first():
                _join_logs(job.out, made)
    if is_first() and until == len(given_each):
        _finish(job, len(made) - 1)
    return {name: round(sum(counts[name] for counts in made), 1)
            for name in ("steps", "train_seconds")}


def _finish(job: RlJob, index: int) -> None:
    """Put the model that is handed on, of phase `index` or the best, in out/model."""
    last = job.out / f"phase-{index}" / "model"
    if job.rl.phases and last.is_dir():
        shutil.rmtree(job.out / "model", ignore_errors=True)
        last.rename(job.out / "model")
    if job.rl.keep == "best" and (job.out / "best").is_dir():
        shutil.rmtree(job.out / "model", ignore_errors=True)
        shutil.copytree(job.out / "best", job.out / "model")


def _phase(turn: RlJob, pool: Any, phase: Phase, given: Mapping[str, Any], folder: Path,
           begin: int) -> dict[str, Any]:
    """The counts of a phase: of phase.json where it is finished, else of a run."""
    done = folder / "phase.json"
    if done.is_file():
        return json.loads(done.read_text("utf-8"))
    folder.mkdir(exist_ok=True)
    counts = _run(turn, pool, phase, given, folder, begin)
    if is_first():
        replace(done, json.dumps(counts))
    return counts


def _run(turn: RlJob, pool: Any, phase: Phase, given: Mapping[str, Any], folder: Path,
         begin: int) -> dict[str, Any]:
    """Train `turn`, the job with this phase's model and seed; returns its counts."""
    config, tokenizer = turn.rl, load_tokenizer(turn.tokenizer)
    longest = arguments(dict(given), folder, turn.seed).max_completion_length
    rewards = reward_functions(config.rewards, pool, opens_thinking(tokenizer), longest,
                               config.language, config.process, end_ids(tokenizer, turn.model),
                               make_policy(config.policy, RL_POLICY))
    given = {"log_completions": config.keep_completions > 0, **given}
    return train(turn.model, tokenizer, turn.rows, rewards, given, folder, turn.seed,
                 config.patience, partial(_watch, turn, pool, phase, folder, begin), turn.engine,
                 config.lora)


def _watch(job: RlJob, pool: Any, phase: Phase, folder: Path, begin: int, trainer: Any) -> None:
    """Give the trainer what the rl section asks for beyond TRL's own settings."""
    config = job.rl
    trainer.keep_completions = config.keep_completions
    trainer.band, trainer.rounds = config.difficulty or "", config.dynamic_sampling
    trainer.add_callback(Clock(config.minutes))     # before what measures the last step
    if config.evaluate_every:
        held_out = HeldOut(job.held_out, pool, trainer.processing_class, config.evaluate_every,
                           job.out / "best", begin)
        held_out.trainer = trainer
        if trainer.is_world_process_zero():
            swap(job.out / "best")
        trainer.add_callback(held_out)
    if phase.until_cut_off is not None:
        trainer.add_callback(EndPhaseOnTruncation(phase, folder))
    trainer.add_callback(AlarmLogger(config.alarms, folder, job.out, begin))


def _join_logs(out: Path, made: Sequence[Mapping[str, Any]]) -> None:
    """Write out/log.jsonl: each phase's lines with `phase`, steps and tokens counted on."""
    lines, begin, tokens = [], 0, 0.0
    for index, counts in enumerate(made):
        rows = read_log(out / f"phase-{index}")
        for row in rows:
            counted = {"num_tokens": row["num_tokens"] + tokens} if "num_tokens" in row else {}
            lines.append({**row, **counted, "step": row["step"] + begin, "phase": index})
        begin += counts["steps"]
        tokens = max((line.get("num_tokens", 0.0) for line in lines), default=0.0)
    replace(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def run(job: RlJob) -> dict[str, Any]:
    """Refine as `job` says, with a judge of this process's own; returns steps and seconds."""
    from pipeline.judge import JudgePool

    with JudgePool(job.judge_workers) as pool:
        pool.start()    # while the models load, not while a step waits
        return refine(job, pool)


if __name__ == "__main__":
    worker_main(RlJob, run)
