"""Where problems come from and which of them are taught."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from pipeline.config.load import Config

EMBEDDED, GYM = "countdown", "reasoning-gym/"


class Source(Config):
    """Where problems come from and which columns hold what."""

    problems: str = EMBEDDED
    """`countdown` (embedded), `reasoning-gym/TASK` (`limit` of them, 1,000 by default), a JSONL,
    JSON, CSV, TSV, Parquet or Arrow file, a pattern or folder of such, a folder of datasets'
    save_to_disk, or a Hugging Face data set id."""
    options: dict[str, Any] = {}
    """Settings of a reasoning-gym task under its own names, e.g. {max_numbers: 4}."""
    subset: str | None = None
    """Configuration of a hub data set, e.g. `main`."""
    split: str = "train"
    """Split of a hub data set."""
    problem_column: str = "problem"
    """Column with the problem's text, or with a conversation that asks it; `a.b` is field b of
    column a."""
    answer_column: str = "answer"
    """Column with the gold answer, or with a list of spellings of it (kind math)."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the gold answer, e.g. `#### (.+)` for GSM8K."""
    answer_optional: bool = False
    """Keep problems whose answer is missing or empty: they are taught by filter.majority alone,
    never held out and never refined on."""
    kind: str = "math"
    """The judge's kind for rows that name none: math, choice, exact, text, code or gym. Unset:
    code for rows that hold tests, math for others."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first N problems after shuffling."""

    @field_validator("answer_pattern")
    @classmethod
    def _has_a_group(cls, pattern: str | None) -> str | None:
        try:
            if pattern is not None and not re.compile(pattern).groups:
                raise ValueError("put the answer in parentheses, as in '#### (.+)'")
        except re.error as error:
            raise ValueError(f"give a regular expression ({error})") from None
        return pattern


class EvaluationSet(Source):
    """An evaluation set whose columns, subset or split are not the training set's."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"prompt"})

    problems: str
    """A benchmark's name (`limbeck benchmarks`), a file, or a hub id."""
    prompt: str | None = None
    """Name or path of its prompt; null: the benchmark's own, or generate.prompt."""
    split: str = "test"
    """Split of a hub data set."""


NameOrSet = Annotated[
    Annotated[str, Tag("name")] | Annotated[EvaluationSet, Tag("set")],
    Discriminator(lambda given: "name" if isinstance(given, str) else "set")]


class PrepareConfig(Source):
    """Which problems are taught, how many are held out, and what a bad gold answer does."""

    held_out: int = Field(default=600, ge=0)
    """Problems kept out of training, for evaluation."""
    bad_gold: Literal["stop", "drop"] = "stop"
    """What to do with a gold answer that fails its own check."""
    decontaminate: list[NameOrSet] = []
    """Evaluation sets that no training problem may hold: `heldout`, benchmarks by name (aime24,
    ...), files, or hub ids (their test split), or {problems: openai/gsm8k, subset: main,
    problem_column: question}. A shared run of eight words, a short problem whole, or a similar
    text counts."""
    overlap: float = Field(default=0.0, ge=0, le=1)
    """How much of an evaluation problem shared words must cover; 0 takes any eight, as open-r1.
    Raise it for problems made from a template."""
    near_duplicates: float | None = Field(default=None, gt=0, le=1)
    """Drop a problem whose five-word runs are those of an earlier one to this share (Jaccard)."""
