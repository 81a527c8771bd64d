"""SFT tokens a second on the same token rows: TRL as it stands, TRL at its best, limbeck.

  python benchmarks/sft.py --model FOLDER --rows rows.parquet [--batch 16 --steps 30]

Prints one JSON line a contender: real tokens a second after the warm-up, peak GB, the share of
--tflops that 6 * parameters * tokens are, and every step's loss. Batches are the same for all:
rows in their order. A contender whose loss is not finite is reported as such, not as fast.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from pipeline.config.sft import SftConfig, SftJob
from pipeline.errors import UserError
from pipeline.sft.trainer import make_trainer
from pipeline.student.token_rows import Rows, read_rows

CUDA = torch.cuda.is_available()
TUNED = {"gradient_checkpointing": False, "padding_free": True}
CONTENDERS: dict[str, dict[str, Any]] = {
    "TRL defaults": {}, "TRL padding-free, no checkpointing": TUNED,
    "TRL with Liger layers": {**TUNED, "use_liger_kernel": True},
    "TRL with Liger layers, padded": {"gradient_checkpointing": False, "use_liger_kernel": True},
    "limbeck, SDPA": {"attention": "sdpa"},
    "limbeck": {"attention": "limbeck_varlen"},
    "limbeck, own head": {"attention": "limbeck_varlen", "head": "limbeck"},
    "limbeck with Liger layers": {"attention": "limbeck_varlen", "use_liger_kernel": True},
}


class Clock(TrainerCallback):
    """When each step ended, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if CUDA:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.losses.append(logs["loss"])


def contender(name: str, given: argparse.Namespace, rows: Rows, out: Path) -> Any:
    """A trainer ready to train, with the settings that `name` stands for."""
    settings = dict(CONTENDERS[name])
    shared = {"per_device_train_batch_size": given.batch, "max_steps": given.steps,
              "logging_steps": 1, "learning_rate": 1e-5, "train_sampling_strategy": "sequential",
              "save_strategy": "no", "lr_scheduler_type": "constant", "bf16": CUDA,
              "logging_nan_inf_filter": False}
    if "attention" in settings:
        model = {"attn_implementation": settings.pop("attention")}
        recipe = SftConfig(held_out=0, head=settings.pop("head", "trl"),
                           trainer={**shared, **settings, "padding_free": True,
                                    "model_init_kwargs": model})
        return make_trainer(SftJob(sft=recipe, model=given.model, tokenizer=Path(given.model),
                                   rows=given.rows, out=out))[0]
    args = SFTConfig(output_dir=str(out), max_length=None, report_to=[], use_cpu=not CUDA,
                     disable_tqdm=True, **shared, **settings)
    data = Dataset.from_dict({"input_ids": [ids.tolist() for ids in rows.ids],
                              "labels": [labels.tolist() for labels in rows.labels]})
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    return SFTTrainer(model=model, args=args, train_dataset=data,
                      processing_class=AutoTokenizer.from_pretrained(given.model))


def measure(name: str, given: argparse.Namespace, rows: Rows) -> dict[str, Any]:
    """One contender's figures."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer = contender(name, given, rows, Path(folder))
            trainer.add_callback(clock)
            trainer.train()
        except (ImportError, UserError, torch.OutOfMemoryError) as error:
            return {"contender": name, "failed": str(error).splitlines()[0]}
    lengths = [len(ids) for ids in rows.ids]
    warm = given.steps // 3
    read = [lengths[(step * given.batch + i) % len(lengths)]
            for step in range(warm, given.steps) for i in range(given.batch)]
    rate = sum(read) / (clock.ends[-1] - clock.ends[warm - 1])
    parameters = sum(p.numel() for p in trainer.model.parameters())
    return {"contender": name, "tokens_per_second": round(rate),
            "finite": all(map(math.isfinite, clock.losses)),
            "flop_share": round(6 * parameters * rate / (given.tflops * 1e12), 4),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if CUDA else None,
            "losses": [round(loss, 4) for loss in clock.losses]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tflops", type=float, default=798.0, help="what counts as 100 percent")
    parser.add_argument("--only", choices=list(CONTENDERS))
    given = parser.parse_args()
    rows = read_rows(given.rows)
    for name in [given.only] if given.only else CONTENDERS:
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        print(json.dumps(measure(name, given, rows)), flush=True)


if __name__ == "__main__":
    main()
