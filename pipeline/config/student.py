"""The student before training, and how traces become its token rows."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config.load import REFERENCE, Config


class TinyModel(Config):
    """Shape of the from-scratch student; 0.6 M parameters by default."""

    layers: int = Field(default=3, ge=1)
    """Transformer blocks."""
    width: int = Field(default=128, ge=16)
    """Hidden size."""
    heads: int = Field(default=4, ge=1)
    """Attention heads, all with their own keys and values."""
    vocabulary: int = Field(default=1024, ge=400)
    """Most tokens the tokenizer may have; words beyond it are spelt in bytes."""
    init_std: float = Field(default=0.06, gt=0)
    """Standard deviation of the first weights; the default 0.02 learns slower at this width."""


class NoPacking(Config):
    """A row a trace."""

    type: Literal["none"] = "none"


class BestFitPacking(Config):
    """Rows side by side in blocks; none sees its neighbour."""

    type: Literal["best_fit"] = "best_fit"
    block: int = Field(default=16384, ge=16)
    """Tokens of a block; a row that is longer counts as too long."""


class PackConfig(Config):
    """How traces become token rows."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"thinking", "name_length"})
    max_tokens: int = Field(default=32768, ge=16)
    """Longest row."""
    too_long: Literal["drop", "split"] = "drop"
    """A longer trace is left out, or goes on in rows that begin within it; counted either way."""
    packing: Annotated[NoPacking | BestFitPacking, Field(discriminator="type")] = NoPacking()
    """`none`: a row a trace; `best_fit`: blocks of rows, with the column seq_lengths."""
    thinking: dict[str, bool] = {}
    """Sources trained without their traces' thinking: {NAME: false} (prepare.sources: thinking)."""
    name_length: bool = False
    """Whether the prompt of every second trace names its own length, as rl.lengths asks for one
    ("Think for 300 tokens."), so that refinement starts from a student that knows the words."""


class StudentConfig(Config):
    """Which model learns."""

    model: Annotated[str, REFERENCE] = "tiny"
    """`tiny` (built from scratch for the traces), a hub id, a checkpoint folder, or STEP.STAGE."""
    tiny: TinyModel = TinyModel()
    """Shape of the tiny student."""
    chat_template: str | None = None
    """A name in prompts/chat_templates/ or a path, in place of the tokenizer's own template."""
