"""What sft and rl share: trainer defaults, and what every launched process reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.load import Config

SHARED_TRAINER_DEFAULTS: dict[str, Any] = {
    "gradient_checkpointing": False, "logging_steps": 10, "save_strategy": "steps",
    "save_steps": 0.25, "save_total_limit": 2,
}
"""Keys of transformers' TrainingArguments, unless a section sets them."""
TRACKING = frozenset(f"trainer.{key}" for key in (
    "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "log_level", "disable_tqdm"))
"""Keys of trackers and of output: another one trains the same model."""


class Job(Config):
    """A training run as a launched process reads it."""

    model: str
    """Hub id or folder of the student that training starts from."""
    tokenizer: Path
    """Folder of the student's tokenizer."""
    out: Path
    """Folder that gets model/, log.jsonl and checkpoints/."""
    seed: int = 0
    """Seed of order and sampling."""
    engine: dict[str, Any] = {}
    """Options of a colocated vllm.LLM."""

    def save(self, path: Path) -> None:
        """Write the JSON file that a launched process reads."""
        path.write_text(self.model_dump_json(indent=1, context="everything"), encoding="utf-8")
