"""A refinement run of a few thousand parameters, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_sft import SHAPE, TEMPLATE, sums

from pipeline.config.rl import RlConfig, RlJob
from pipeline.student.tiny import save_tiny

TRAINER = {"num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 12,
           "learning_rate": 5e-3, "report_to": [], "bf16": False, "max_steps": 4,
           "save_steps": 1, "save_total_limit": 20}


class Pool:
    """Judges by a rule over text and problem in the place of the judge's processes."""

    def __init__(self, right=lambda text, problem: len(text) % 2):
        self.right = right

    def judge_many(self, completions, problems, **ignored):
        from pipeline.judge import Judgement

        texts = [c if isinstance(c, str) else (c.thinking or "") + c.answer for c in completions]
        return [Judgement(float(self.right(text, problem)), "correct", None, "rule")
                for text, problem in zip(texts, problems, strict=True)]


def build(folder: Path) -> Path:
    """Write the start model to `folder`."""
    save_tiny([" ".join(parts) for parts in sums(40)], SHAPE, TEMPLATE.read_text("utf-8"), 0,
              folder / "model")
    return folder / "model"


def refined(start: Path, out: Path, pool=None, rows=12, held_out=(), **given) -> dict:
    """Refine the model at `start` into `out`; `given` is laid over the rl section."""
    from pipeline.rl.phases import train

    trainer = {**TRAINER, **given.pop("trainer", {})}
    config = RlConfig.model_validate({"rewards": {"accuracy": 1.0}, "patience": 99,
                                      "alarms": {"window": 99}, "trainer": trainer, **given})
    out.mkdir(parents=True, exist_ok=True)
    return train(RlJob(rl=config, model=str(start), tokenizer=start, rows=problems(rows),
                       held_out=problems(len(held_out)), judge_workers=1, out=out, seed=3),
                 pool or Pool())


def problems(count: int) -> list[dict]:
    """Problem rows with prompts."""
    return [{"problem_id": f"sum-{i}", "prompt": [{"role": "user", "content": text}],
             "problem": text, "answer": "1", "kind": "math", "source": "made", "split": "train",
             "meta": "{}"} for i, (text, _, _) in enumerate(sums(count))]


def weights(folder: Path) -> torch.Tensor:
    """All parameters of the checkpoint at `folder`, end to end."""
    from safetensors.torch import load_file

    found = load_file(folder / "model.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found)])


def log(out: Path) -> list[dict]:
    """The training log's lines that hold a step's metrics."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "reward" in line]
