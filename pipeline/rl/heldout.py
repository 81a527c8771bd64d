"""Accuracy on held-out problems while training, and the best model by it."""

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
    """Logs heldout/accuracy and heldout/mean_length, and saves the model to `best` if it improved.

    It measures every `every` steps, counted from `steps_before`, and at the end. `rows` hold a
    `prompt` and the judge's columns. Measuring changes no weight and no random state of training.
    """

    def __init__(self, trainer: Any, rows: Sequence[dict[str, Any]], pool: Any, every: int,
                 best: Path, steps_before: int = 0):
        self.trainer, self.rows, self.pool = trainer, list(rows), pool
        self.every, self.best, self.steps_before = every, best, steps_before
        self.tokenizer = trainer.processing_class
        self.prompts = [prompt_ids(self.tokenizer, row["prompt"]) for row in rows]

    def on_step_end(self, args, state, control, **kwargs):
        step = self.steps_before + state.global_step
        if step % self.every == 0 or control.should_training_stop:      # at the end or by the clock
            accuracy, length = self.measure(args.seed)
            for name, value in (("accuracy", accuracy), ("mean_length", length)):
                self.trainer._metrics["train"][f"heldout/{name}"].append(value)
            self._save_if_best(accuracy, step)

    def measure(self, seed: int) -> tuple[float, float]:
        """(share right of those judged, mean tokens); each process samples its share."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        trainer.model.eval()
        with torch.random.fork_rng(cuda):
            torch.manual_seed(seed)
            prompts = self.prompts[share]
            # vLLM needs equal shares, so a process with fewer prompts samples some for nothing.
            equal = -(-len(self.prompts) // accelerator.num_processes)
            ids, _ = trainer.sample_completions(
                prompts + self.prompts[:equal - len(prompts)],
                batch=trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation)
        trainer.model.train()
        in_thinking = opens_thinking(self.tokenizer)
        sampled = [complete(self.tokenizer, row, in_thinking, trainer.eos_token_ids)
                   for row in ids[:len(prompts)]]
        verdicts = self.pool.judge_many([completion for completion, _ in sampled],
                                        [Problem.from_row(row) for row in self.rows[share]])
        results = gather_object([(verdict.score, tokens) for verdict, (_, tokens)
                                 in zip(verdicts, sampled, strict=True)])
        scores = [score for score, _ in results if score is not None]
        return (sum(scores) / len(scores) if scores else 0.0,
                sum(tokens for _, tokens in results) / len(results))

    def _save_if_best(self, accuracy: float, step: int) -> None:
        record = self.best / "heldout.json"
        best = json.loads(record.read_text("utf-8"))["accuracy"] if record.is_file() else -1.0
        self.trainer.accelerator.wait_for_everyone()        # all have read it before it changes
        if accuracy <= best:                                # of equals the first stays
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
    """Replace `best` by a complete `best.partial`, whose heldout.json is written last."""
    if (_partial(best) / "heldout.json").is_file():
        shutil.rmtree(best, ignore_errors=True)
        _partial(best).rename(best)
