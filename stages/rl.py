"""rl: refine the student by GRPO with verifiable rewards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.alarms import Alarms
from pipeline.config import Config
from pipeline.curriculum import Phase, check_band, check_phases, phase_trainers
from pipeline.process import Prm
from pipeline.prompts import chats, prompt_path
from pipeline.stage import Counts, Stage


class RlConfig(Config):
    """Where refinement starts, what it rewards, what it is asked and how it is watched."""

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
    checkpoints/completions/*.parquet (of each phase-N where there are phases); 0 keeps none."""
    patience: int = Field(default=20, ge=1)
    """Steps without a single right completion after which the run stops."""
    minutes: float | None = Field(default=None, gt=0)
    """A phase ends after so many minutes, or at the trainer's own end, whichever is first."""
    phases: list[Phase] = []
    """Trainer runs one after the other, as with a growing context; empty is one run."""
    difficulty: str | None = None
    """Expression over pass_rate and samples, as `0 < pass_rate < 1`: problems outside are not
    asked. Held against the start, and while training against each problem's newest scores."""
    difficulty_samples: int = Field(default=0, ge=0)
    """Samples a problem of the start model that give its pass rate; 0 takes the teacher's."""
    dynamic_sampling: int = Field(default=0, ge=0)
    """Extra generations at most to refill groups whose samples all earned the same (DAPO)."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between two evaluations on held-out problems; 0 is never."""
    evaluate_problems: int = Field(default=128, ge=1)
    """Held-out problems of an evaluation, one sample each."""
    keep: Literal["last", "best"] = "last"
    """The model handed on: the last, or the best on held-out problems."""
    alarms: Alarms = Alarms()
    """Thresholds over which the run says that something looks wrong."""
    trainer: dict[str, Any] = {}
    """Handed to TRL's GRPOConfig under its own names (learning_rate, num_generations, ...)."""


def needs(experiment: Any) -> tuple[str, ...]:
    start = {"sft": ("sft",), "base": ()}.get(experiment.rl.start, ())
    by_teacher = experiment.rl.difficulty and not experiment.rl.difficulty_samples
    return ("prepare", "student", *start, *(("filter",) if by_teacher else ()))


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write model/, log.jsonl with every step's curves, and best/ and alarms.jsonl if any."""
    from pipeline.chat import load_tokenizer, opens_thinking
    from pipeline.phases import Refinement, refine
    from pipeline.student import resolve
    from pipeline.verify import JudgePool

    config = experiment.rl
    start = {"sft": lambda: resolve(inputs["sft"]), "base": lambda: resolve(inputs["student"])}
    model = start.get(config.start, lambda: config.start)()
    rows = _asked(experiment, inputs["prepare"] / "problems.parquet")
    held_out = _asked(experiment, inputs["prepare"] / "heldout.parquet") \
        if config.evaluate_every else []
    tokenizer = load_tokenizer(inputs["student"] / "tokenizer")
    with JudgePool(experiment.runtime.judge_workers) as pool:
        chosen = _inside(experiment, inputs, rows, model, pool, out) if config.difficulty else rows
        job = Refinement(config, tokenizer, chosen, held_out[:config.evaluate_problems], pool,
                         opens_thinking(tokenizer), out, experiment.seed,
                         experiment.runtime.vllm)
        return {**refine(job, model), "problems": len(chosen)}


def _asked(experiment: Any, path: Path) -> list[dict[str, Any]]:
    """The problems of a table with their prompts; without a gold there is no reward."""
    from pipeline import records
    from pipeline.problems import has_gold

    problems = list(filter(has_gold, records.read(records.Problem, path).to_dicts()))
    asked = chats(experiment.generate.prompt, problems)
    return [{"prompt": asked[row["problem_id"]], **row} for row in problems]


def _inside(experiment: Any, inputs: Mapping[str, Path], rows: list[dict[str, Any]], model: str,
            pool: Any, out: Path) -> list[dict[str, Any]]:
    """The problems inside the difficulty band, by the teacher's or the start model's scores."""
    from pipeline.curriculum import inside, student_scores, teacher_scores
    from pipeline.rl import arguments
    from pipeline.sampling import StudentSampling

    config = experiment.rl
    given = phase_trainers(config.trainer, config.phases)[0]
    args = arguments(given, out, experiment.seed)
    if config.difficulty_samples:
        sampling = StudentSampling(temperature=args.temperature, top_p=args.top_p,
                                   max_tokens=args.max_completion_length)
        scores = student_scores(model, inputs["student"] / "tokenizer", rows,
                                config.difficulty_samples, sampling, pool, experiment.seed,
                                out / "difficulty.parquet")
    else:
        scores = teacher_scores(inputs["filter"] / "judged.parquet")
    return inside(rows, config.difficulty, scores,
                  args.generation_batch_size // args.num_generations)


def check(experiment: Any) -> None:
    from pipeline.errors import UserError
    from pipeline.rl import arguments

    config = experiment.rl
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
        arguments(given, Path("unused"), experiment.seed)


STAGE = Stage(name="rl", run=run, check=check, needs=needs, resumable=True, version=2,
              files=lambda e: (prompt_path(e.generate.prompt),),
              summary=lambda c: f"{c['steps']:,} steps in {c['train_seconds']} s")
