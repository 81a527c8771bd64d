"""Who teaches, and how often each problem is asked."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.load import Config
from pipeline.config.teacher import Sampling, Teacher


class GenerateConfig(Config):
    """Who teaches, and how often each problem is asked."""

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
