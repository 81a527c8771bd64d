"""Sequence-level SFT: TRL's SFTTrainer on packed rows, loss on completion tokens only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.trainer import Guard, fit, trainer_arguments

DEFAULTS: dict[str, Any] = {
    "max_length": None, "completion_only_loss": True, "gradient_checkpointing": False,
    "lr_scheduler_type": "cosine", "train_sampling_strategy": "group_by_length",
}


def arguments(given: dict[str, Any], out: Path, seed: int) -> Any:
    """The SFTConfig that `sft.trainer` means; rows are never cut (max_length None)."""
    from trl import SFTConfig

    return trainer_arguments(SFTConfig, "sft.trainer", {**DEFAULTS, **given}, out, seed)


def train(model: str, tokenizer: Any, rows: Path, given: dict[str, Any], out: Path,
          seed: int) -> dict[str, Any]:
    """Train `model` on the token rows of `rows`; writes out/model and out/log.jsonl."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTTrainer

    from pipeline import records

    table = records.read(records.TokenRow, rows).select("input_ids", "completion_mask")
    args = arguments(given, out, seed)
    student = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    guard = Guard("sft", out / "log.jsonl", zero_loss_is_wrong=True)
    trainer = SFTTrainer(model=student, args=args, train_dataset=Dataset(table.to_arrow()),
                         processing_class=tokenizer, callbacks=[guard])
    return fit(trainer, guard, out, tokenizer)
