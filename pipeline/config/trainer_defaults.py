"""Trainer settings that sft and rl share."""

from __future__ import annotations

from typing import Any

SHARED_TRAINER_DEFAULTS: dict[str, Any] = {
    "gradient_checkpointing": False, "logging_steps": 10, "save_strategy": "steps",
    "save_steps": 0.25, "save_total_limit": 2,
}
"""Keys of transformers' TrainingArguments, unless a section sets them."""
