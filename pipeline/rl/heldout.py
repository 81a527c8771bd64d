"""Accuracy on held-out problems while training, and the best checkpoint by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from pipeline.judge import Problem
from pipeline.student.sample import complete
from pipeline.student.template import opens_thinking, prompt_ids
from pipeline.train.fit import save_student


class HeldOut(TrainerCallback):
    """Every `every` steps and at the end: heldout/accuracy, heldout/mean_length, and `best/` where
    it rose.

    `rows` hold a `prompt` and the judge's columns; `begin` steps came in phases before. The
    trainer sets itself as `trainer`. Judging changes no weight and no random state of training.
    """

    trainer: Any

    def __init__(self, rows: Sequence[dict[str, Any]], pool: Any, tokenizer: Any, every: int,
                 best: Path, begin: int = 0):
        self.rows, self.pool, self.tokenizer = list(rows), pool, tokenizer
        self.every, self.best, self.begin = every, best, begin
        self.prompts = [prompt_ids(tokenizer, row["prompt"]) for row in rows]

    def on_step_end(self, args, state, control, **kwargs):
        step = self.begin + state.global_step
        if step % self.every == 0 or control.should_training_stop:  # by steps or by the clock
            accuracy, length = self.measure(args.seed)
            for name, value in (("accuracy", accuracy), ("mean_length", length)):
                self.trainer._metrics["train"][f"heldout/{name}"].append(value)
            self._keep_if_best(accuracy, step)

    def measure(self, seed: int) -> tuple[float, float]:
        """(share right of those judged, mean tokens); every process samples its share."""
        trainer, one = self.trainer, self.trainer.accelerator
        share = slice(one.process_index, None, one.num_processes)
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        trainer.model.eval()
        with torch.random.fork_rng(cuda):
            torch.manual_seed(seed)
            mine = self.prompts[share]
            even = -(-len(self.prompts) // one.num_processes)   # vLLM slices by equal shares
            batch = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation
            # At the temperature of training: what is measured is what is trained.
            ids, _ = trainer.sample_completions(mine + self.prompts[:even - len(mine)], batch=batch)
            ids = ids[:len(mine)]
        trainer.model.train()
        opened = opens_thinking(self.tokenizer)
        done = [complete(self.tokenizer, row, opened, trainer.eos_token_ids) for row in ids]
        problems = [Problem.from_row(row) for row in self.rows[share]]
        verdicts = self.pool.judge_many([completion for completion, _ in done], problems)
        every = gather_object([(v.score, tokens) for v, (_, tokens)
                               in zip(verdicts, done, strict=True)])
        scores = [score for score, _ in every if score is not None]
        return (sum(scores) / len(scores) if scores else 0.0,
                sum(tokens for _, tokens in every) / len(every))

    def _keep_if_best(self, accuracy: float, step: int) -> None:
        """Save the model where it is better than the best so far; of equals the first stays."""
        record = self.best / "heldout.json"
        known = json.loads(record.read_text("utf-8"))["accuracy"] if record.is_file() else -1.0
        self.trainer.accelerator.wait_for_everyone()        # all have read it before it changes
        if accuracy <= known:
            return
        partial = _partial(self.best)
        save_student(self.trainer, partial, self.tokenizer)
        if self.trainer.is_world_process_zero():
            (partial / "heldout.json").write_text(
                json.dumps({"step": step, "accuracy": accuracy, "problems": len(self.rows)}))
            swap(self.best)


def _partial(best: Path) -> Path:
    return best.with_name(best.name + ".partial")


def swap(best: Path) -> None:
    """Put a whole `best.partial` in the place of `best`; its heldout.json is written last."""
    if (_partial(best) / "heldout.json").is_file():
        shutil.rmtree(best, ignore_errors=True)
        _partial(best).rename(best)
