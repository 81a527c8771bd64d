"""A student of a few thousand parameters, its tokenizer and token rows, for tests of training."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import torch

from pipeline import tables
from pipeline.config.sft import SftConfig, SftJob
from pipeline.config.student import TinyModel
from pipeline.student.template import training_row
from pipeline.student.tiny import save_tiny
from pipeline.student.tokenizer import load_tokenizer

torch.set_num_threads(1)  # these models are so small that threads only wait for each other
TEMPLATE = Path(__file__).parents[1] / "prompts" / "chat_templates" / "tiny.jinja"
TWO = {"multi_gpu": True, "num_processes": 2}
"""What accelerate starts two processes by, on processors too."""
SHAPE = TinyModel(layers=2, width=32, heads=2, vocabulary=420)


def sums(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(problem, thinking, answer) of `count` sums, of uneven length."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        terms = [draw.randint(1, 9) for _ in range(draw.randint(2, 6))]
        steps = [f"{sum(terms[:i])} + {term}" for i, term in enumerate(terms)]
        made.append((f"Add {terms}", " then ".join(steps), f"The sum is {sum(terms)}."))
    return made


def build(folder: Path, rows: int = 64, seed: int = 0) -> Path:
    """Write student/model, student/tokenizer and rows.parquet under `folder`."""
    problems = sums(rows)
    save_tiny([" ".join(parts) for parts in problems], SHAPE, TEMPLATE.read_text("utf-8"), seed,
              folder / "model")
    tokenizer = load_tokenizer(folder / "model")
    tokenizer.save_pretrained(folder / "tokenizer")
    made = [training_row(tokenizer, [{"role": "user", "content": p}], t, a) for p, t, a in problems]
    frame = pl.DataFrame({"problem_id": [f"sum-{i}" for i in range(rows)], "sample": [0] * rows,
                          "input_ids": [ids for ids, _ in made],
                          "completion_mask": [mask for _, mask in made]})
    tables.write(tables.TokenRow, frame, folder / "rows.parquet")
    return folder


def job(folder: Path, out: Path, sft: dict | None = None, **trainer) -> SftJob:
    """A run over `folder` into `out`: 8 rows a step unless `trainer` says otherwise."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {"per_device_train_batch_size": 8, "learning_rate": 2e-3, "logging_steps": 1,
                "bf16": False, "num_train_epochs": 1, **trainer}
    return SftJob(sft=SftConfig.model_validate({"held_out": 0, **(sft or {}), "trainer": settings}),
                  model=str(folder / "model"), tokenizer=folder / "tokenizer",
                  rows=folder / "rows.parquet", out=out, seed=3)


def learnt(tiny, out, epochs):
    """The checkpoint of a model that has learnt the rows of `tiny`."""
    from pipeline.sft import trainer as sft

    sft.train(job(tiny, out, num_train_epochs=epochs, learning_rate=5e-3))
    return out / "model"


def break_off(trainer, after):
    """Make `trainer` end as by Ctrl-C once it has made `after` steps."""
    step = trainer.training_step

    def broken(model, inputs, n=None):
        if trainer.state.global_step == after:
            raise KeyboardInterrupt
        return step(model, inputs, n)

    trainer.training_step = broken
