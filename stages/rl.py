"""rl: refine the student by GRPO with verifiable rewards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import Config
from pipeline.prompts import chats, prompt_path
from pipeline.stage import Counts, Stage


class RlConfig(Config):
    """Where refinement starts and what it rewards."""

    start: str = "sft"
    """`sft` (the sft stage's student), `base` (the student before training) or a checkpoint."""
    rewards: dict[str, float] = Field(default={"accuracy": 1.0, "format": 0.1}, min_length=1)
    """Weight of each reward: accuracy, format, language, overlong, repetition."""
    patience: int = Field(default=20, ge=1)
    """Steps without a single right completion after which the run stops."""
    minutes: float | None = Field(default=None, gt=0)
    """Training ends after so many minutes, or at the trainer's own end, whichever is first."""
    trainer: dict[str, Any] = {}
    """Handed to TRL's GRPOConfig under its own names (learning_rate, num_generations, ...)."""


def needs(experiment: Any) -> tuple[str, ...]:
    start = {"sft": ("sft",), "base": ()}.get(experiment.rl.start, ())
    return ("prepare", "student", *start)


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write model/, log.jsonl with every step's curves."""
    from pipeline import records
    from pipeline.chat import load_tokenizer, opens_thinking
    from pipeline.rl import arguments, reward_functions, train
    from pipeline.student import resolve
    from pipeline.verify import JudgePool

    config = experiment.rl
    start = {"sft": lambda: resolve(inputs["sft"]), "base": lambda: resolve(inputs["student"])}
    model = start.get(config.start, lambda: config.start)()
    problems = records.read(records.Problem, inputs["prepare"] / "problems.parquet")
    asked = chats(experiment.generate.prompt, problems.iter_rows(named=True))
    rows = [{"prompt": asked[row["problem_id"]], **row} for row in problems.iter_rows(named=True)]
    tokenizer = load_tokenizer(inputs["student"] / "tokenizer")
    with JudgePool(experiment.runtime.judge_workers) as pool:
        longest = arguments(dict(config.trainer), out, experiment.seed).max_completion_length
        rewards = reward_functions(config.rewards, pool, opens_thinking(tokenizer), longest)
        return train(model, tokenizer, rows, rewards, dict(config.trainer), out,
                     experiment.seed, config.patience, config.minutes, experiment.runtime.vllm)


def check(experiment: Any) -> None:
    from pipeline.errors import UserError
    from pipeline.rl import arguments

    start = experiment.rl.start
    if start not in ("sft", "base") and not (Path(start) / "config.json").is_file():
        raise UserError(f"rl.start={start!r} is neither sft, base nor a checkpoint folder")
    arguments(dict(experiment.rl.trainer), Path("unused"), experiment.seed)


STAGE = Stage(name="rl", run=run, check=check, needs=needs, resumable=True,
              files=lambda e: (prompt_path(e.generate.prompt),),
              summary=lambda c: f"{c['steps']:,} steps in {c['train_seconds']} s")
