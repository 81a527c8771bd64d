"""Into which files a student is exported, and what each must show before it is handed on."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.config.evaluate import StudentSampling
from pipeline.config.load import Config
from pipeline.config.problems import NameOrSet

Format = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]


class ExportConfig(Config):
    """The files that a student leaves in."""

    ADDED: ClassVar[frozenset[str]] = frozenset()
    model: str | None = None
    """A model of the run (untrained, sft, rl; with steps STEP.sft, STEP.rl) or a checkpoint
    folder; unset: the last one that evaluate compares."""
    formats: list[Format] = Field(default=["q8_0", "q5_k_m"], min_length=1)
    """GGUF types. Bits a weight: f32 32, f16 and bf16 16, q8_0 8.5, q6_k 6.6, q5_k_m 5.7,
    q4_k_m 4.9; the last three mix types as llama.cpp does."""
    problems: int = Field(default=20, ge=1)
    """Problems whose prompts must give equal tokens, and on whose answers the file is compared."""
    tokens: int = Field(default=64, ge=1)
    """Tokens of each of those answers."""
    max_kl: float | None = Field(default=None, gt=0)
    """Nats a token from its checkpoint above which a file is refused, in place of the format's own
    limits (0.01 for 16 and 32 bits, 0.03 for q8_0, 0.1 for q6_k, 0.3 for q5_k_m, 0.6 for q4_k_m,
    and for 16 and 32 bits no two tokens mistaken that are 1 apart in logits)."""
    benchmark: NameOrSet = "heldout"
    """What the file itself is scored on: `heldout`, a file, a hub id, or a set as in evaluate."""
    limit: int | None = Field(default=200, ge=0)
    """Use only the first N problems of the benchmark; 0 scores none."""
    samples: int = Field(default=1, ge=1)
    """Samples a problem."""
    sampling: StudentSampling = StudentSampling()
    """How the file is sampled; also the defaults that are written into it."""
    num_ctx: int | None = Field(default=None, ge=64)
    """Context that the Modelfile asks for; unset: room for two answers, and what the model has."""
