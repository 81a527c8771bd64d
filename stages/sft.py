"""sft: the student learns the kept traces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.stage import Counts, Stage


class SequenceMethod(Config):
    """Cross-entropy on the teacher's tokens."""

    type: Literal["sequence"] = "sequence"


class SftConfig(Config):
    """How the student is fine-tuned."""

    method: SequenceMethod = Field(default=SequenceMethod(), discriminator=None)
    """`sequence`: learn the traces' tokens."""
    trainer: dict[str, Any] = {}
    """Handed to TRL's SFTConfig under its own names (learning_rate, num_train_epochs, ...)."""


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write model/, an ordinary checkpoint with tokenizer and template, and log.jsonl."""
    from pipeline.chat import load_tokenizer
    from pipeline.sft import train
    from pipeline.student import resolve

    tokenizer = load_tokenizer(inputs["student"] / "tokenizer")
    return train(resolve(inputs["student"]), tokenizer, inputs["pack"] / "rows.parquet",
                 dict(experiment.sft.trainer), out, experiment.seed)


def check(experiment: Any) -> None:
    from pipeline.sft import arguments

    arguments(dict(experiment.sft.trainer), Path("unused"), experiment.seed)


STAGE = Stage(name="sft", run=run, check=check, needs=lambda e: ("student", "pack"),
              resumable=True, summary=lambda c: f"{c['steps']:,} steps in {c['train_seconds']} s")
