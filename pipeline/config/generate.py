"""Who teaches, and how often each problem is asked."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from pipeline.config.load import Config
from pipeline.config.teacher import FileTeacher, Sampling, Teacher


class GenerateConfig(Config):
    """Who teaches, and how often each problem is asked."""

    ADDED: ClassVar[frozenset[str]] = frozenset(
        {"prompts", "imports", "system", "examples", "hint"})
    teacher: Teacher = Field(discriminator="type")
    """The teacher: `solver` (embedded), `openai` (any compatible endpoint), `vllm` or
    `transformers` (a model on this machine, such as another step's), or `file` (traces that exist
    already)."""
    samples: int = Field(default=4, ge=1)
    """Traces a problem."""
    sampling: Sampling = Sampling()
    """Sampling parameters as sent to the teacher."""
    max_missing: float = Field(default=0.02, ge=0, le=1)
    """Share of traces that may stay missing after failures; above it the stage stops."""
    prompt: str = "boxed"
    """Prompt template: a name in prompts/ or a path; teacher and student see the same."""
    prompts: dict[str, str] = {}
    """Prompt template by source, where it is not `prompt` (prepare.sources: prompt)."""
    imports: dict[str, FileTeacher] = {}
    """By source, a file of traces that exist already, instead of asking (prepare.sources:
    teacher)."""
    system: str | None = None
    """System prompt that the teacher alone sees: a text, or a name in prompts/ or path (.jinja)."""
    examples: Path | None = None
    """File of worked examples (problem, completion) that the teacher alone sees before each
    problem, as turns of the chat."""
    hint: str | None = None
    """Prompt template that the teacher alone sees round the student's prompt, {{ problem }}; it may
    show the gold, {{ answer }}."""
