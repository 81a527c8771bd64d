"""rl: refine the student by GRPO with verifiable rewards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.process import Prm
from pipeline.prompts import chats, prompt_path
from pipeline.stage import Counts, Stage


class RlConfig(Config):
    """Where refinement starts and what it rewards."""

    start: str = "sft"
    """`sft` (the sft stage's student), `base` (the student before training) or a checkpoint."""
    rewards: dict[str, float] = Field(default={"accuracy": 1.0, "format": 0.1}, min_length=1)
    """Weight of each reward: accuracy, format, r1_format, language, overlong, repetition,
    process."""
    language: Literal["en", "de", "fr", "es", "zh", "ru", "ar", "ja", "ko", "el", "he", "hi",
                      "th"] = "en"
    """What the reward `language` wants the thinking to be in; told apart by script."""
    process: Prm | None = Field(default=None, discriminator="type")
    """The process reward model behind the reward `process`."""
    keep_completions: int = Field(default=0, ge=0)
    """Every so many steps the step's completions are kept with their rewards and advantages, in
    checkpoints/completions/*.parquet; 0 keeps none."""
    patience: int = Field(default=20, ge=1)
    """Steps without a single right completion after which the run stops."""
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
        rewards = reward_functions(config.rewards, pool, opens_thinking(tokenizer), longest,
                                   config.language, config.process, tokenizer.eos_token_id)
        return train(model, tokenizer, rows, rewards, dict(config.trainer), out,
                     experiment.seed, config.patience, config.keep_completions)


def check(experiment: Any) -> None:
    from pipeline.errors import UserError
    from pipeline.rl import arguments

    start = experiment.rl.start
    if start not in ("sft", "base") and not (Path(start) / "config.json").is_file():
        raise UserError(f"rl.start={start!r} is neither sft, base nor a checkpoint folder")
    if ("process" in experiment.rl.rewards) != (experiment.rl.process is not None):
        raise UserError("rl.rewards.process and rl.process (the model that scores) go together")
    arguments(dict(experiment.rl.trainer), Path("unused"), experiment.seed)


STAGE = Stage(name="rl", run=run, check=check, needs=needs, resumable=True, version=2,
              files=lambda e: (prompt_path(e.generate.prompt),),
              summary=lambda c: f"{c['steps']:,} steps in {c['train_seconds']} s")
