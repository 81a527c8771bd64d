"""What is measured, how students are sampled for it, and what the report shows."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from pipeline.config.judges import Judges
from pipeline.config.load import Config
from pipeline.config.problems import NameOrSet


class StudentSampling(Config):
    """How a student is sampled in evaluation."""

    temperature: float = Field(default=0.6, ge=0)
    """0 is greedy; 0.6 is what DeepSeek-R1's card advises."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus of the distribution."""
    max_tokens: int = Field(default=4096, ge=1)
    """Longest completion in tokens; what reaches it counts as truncated."""


MODEL_NAMES = ("untrained", "sft", "rl", "teacher")


def _known(name: str) -> str:
    if name not in MODEL_NAMES and not re.fullmatch(r"[A-Za-z][\w-]*\.(student|sft|rl)", name):
        raise ValueError(f"name {', '.join(MODEL_NAMES)}, or STEP.student, STEP.sft, STEP.rl")
    return name


ModelName = Annotated[str, AfterValidator(_known)]


class EvaluateConfig(Config):
    """What is measured, on what, and how often each problem is sampled."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"prompts", "judges"})

    models: list[ModelName] = Field(default=["untrained", "sft", "rl"], min_length=1)
    """The models compared; `teacher` is asked through the same client as in generate. With steps
    STEP.student, STEP.sft or STEP.rl; by default what each step is made for."""
    benchmarks: list[NameOrSet] = Field(default=["heldout"], min_length=1)
    """`heldout` (prepare's), benchmarks by name (`limbeck benchmarks` lists them: aime24, math500,
    ...), problem files, or hub ids (their test split), or {problems:
    openai/gsm8k, subset: main, problem_column: question, answer_pattern: '#### (.+)'}. The
    stem of a file or hub id names its column, or its whole name where another has the same."""
    samples: Annotated[int, Field(ge=1)] | Literal["r1"] = 4
    """k of avg@k, pass@k and maj@k; `r1`: for benchmarks by name as many as DeepSeek-R1's authors
    drew (64 on AIME and GPQA, 16 on MATH-500, 8 on LiveCodeBench), 4 on any other set."""
    prompts: Literal["own", "lm_eval"] = "own"
    """How benchmarks by name are asked: own (mathematics as in generate.prompt, others with an
    instruction of their own), or as lm-evaluation-harness asks them zero-shot, where it does."""
    judges: Judges = {}
    """Of the experiment's `judges` those that score every completion too: a list of names."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first N problems of each benchmark."""
    sampling: StudentSampling = StudentSampling()
    """How students are sampled."""


class ReportConfig(Config):
    """What the page shows."""

    title: str = "limbeck"
    """Heading of the page."""
