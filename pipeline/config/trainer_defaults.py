"""Trainer settings that sft and rl share, and which of them only say where curves are shown."""

from __future__ import annotations

from typing import Any

SHARED_TRAINER_DEFAULTS: dict[str, Any] = {
    "gradient_checkpointing": False, "logging_steps": 10, "save_strategy": "steps",
    "save_steps": 0.25, "save_total_limit": 2,
}
"""Keys of transformers' TrainingArguments, unless a section sets them."""

TRACKING = frozenset(f"trainer.{key}" for key in (
    "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "log_level", "disable_tqdm"))
"""Keys of trackers and of output: another one trains the same model."""
