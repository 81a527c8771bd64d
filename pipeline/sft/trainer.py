"""Runs SFT by TRL's trainers on token rows, for every `sft.method`.

Beyond TRL: rows are never cut and have names, a step whose loss or gradient is not finite or whose
loss is exactly 0 stops the run before the weights change, and the logits method has its own loss.
"""

from __future__ import annotations

import sys
from operator import sub
from statistics import median
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTTrainer

from pipeline.config.sft import OnPolicyMethod, SftJob
from pipeline.sft.loss import DistillationLoss, loss_and_targets
from pipeline.sft.settings import arguments
from pipeline.student.token_rows import (
    Collator,
    EvenSampler,
    LengthGroupedSampler,
    Rows,
    held_out_problems,
    read_rows,
)
from pipeline.train.arguments import lora_config
from pipeline.train.fit import fit, load_student
from pipeline.train.guard import Clock, Guard
from pipeline.train.launch import worker_main
from pipeline.train.step_check import StepCheckMixin


class RisingLossAlarm(TrainerCallback):
    """Warns once if the training loss rises above its start: the learning rate is too high.

    A student that already finds the traces likely loses more by noisy updates than it learns. Of
    three rates the one whose loss rose most scored lowest (results/README.md).
    """

    WINDOW, FACTOR, SIGMAS = 5, 1.1, 3.3

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.warned = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.warned = state.global_step > 0       # a resumed run does not see the start

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.losses += [float(logs["loss"])] if "loss" in (logs or {}) else []
        if self.warned or len(self.losses) <= self.WINDOW:
            return
        now = sum(self.losses[-self.WINDOW:]) / self.WINDOW
        sigma = 1.05 * median(map(abs, map(sub, self.losses[1:], self.losses)))
        if now <= self.FACTOR * self.losses[0] or now - self.losses[0] <= self.SIGMAS * sigma:
            return
        self.warned = True
        if state.is_world_process_zero:
            print(f"sft: step {state.global_step}: the loss has risen from {self.losses[0]:.3g} to "
                  f"{now:.3g}; lower sft.trainer.learning_rate ({args.learning_rate:g})",
                  file=sys.stderr)


class StudentTrainer(StepCheckMixin, SFTTrainer):
    """SFTTrainer over row indices, with TRL's loss or `distillation_loss`."""

    def __init__(self, *, rows: Rows, distillation_loss: DistillationLoss | None = None,
                 **kwargs: Any):
        self.train_rows = kwargs["train_dataset"]["row"]
        self.distillation_loss = distillation_loss
        super().__init__(rows=rows, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("rows", None)
        if self.distillation_loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"][:, 1:] != -100).sum()
        logged = self._metrics["train" if model.training else "eval"]
        if model.training:
            self._total_train_tokens += self._tokens(inputs)
        logged["num_tokens"] = [self._total_train_tokens]
        with self.accelerator.autocast():   # the trainer's own covers the model alone
            loss, metrics = self.distillation_loss(model, inputs)
        for name, value in metrics.items():
            logged[name].append(value.detach() / num_items_in_batch)
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return loss * ranks / num_items_in_batch

    def _tokens(self, inputs: dict[str, Any]) -> Any:
        """Count the tokens of a batch in all processes; a tensor is read later, at the log."""
        mask, device = inputs.get("attention_mask"), self.accelerator.device
        own = inputs["input_ids"].numel() if mask is None else mask.sum()
        alone = self.accelerator.num_processes == 1
        return own if alone else self.accelerator.gather(torch.as_tensor(own, device=device)).sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, with metrics read from the GPU here and not in every batch."""
        logged = self._metrics["train" if cast(Any, self.model).training else "eval"]
        for name, values in logged.items():
            logged[name] = [float(value) for value in values]
        self._total_train_tokens = int(self._total_train_tokens)
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset=None):
        args = self.args
        if args.train_sampling_strategy == "random":    # whose seed accelerate shares
            return super()._get_train_sampler(train_dataset)
        lengths = [len(self.rows.ids[i]) for i in self.train_rows]
        size, steps = args.train_batch_size, args.gradient_accumulation_steps
        if args.train_sampling_strategy == "group_by_length":
            sampler: Any = LengthGroupedSampler(lengths, size * steps, args.seed,
                                                lambda: int(self.state.epoch or 0))
        else:
            sampler = super()._get_train_sampler(train_dataset)
        if args.world_size == 1 or not cast(Any, self.data_collator).padding_free:
            return sampler
        # accelerate deals micro-batch k to process k % processes.
        return EvenSampler(sampler, lengths, args.world_size * steps, size)

    def _get_eval_sampler(self, eval_dataset):
        return torch.utils.data.SequentialSampler(eval_dataset)


def trainer_inputs(job: SftJob, rows: Rows, tokenizer: Any, args: Any,
                   held_out: set[str]) -> dict[str, Any]:
    """Return StudentTrainer's loss, collator, datasets and alarm; settles padding in `args`."""
    loss, targets = loss_and_targets(job, rows, tokenizer)
    padding_free = args.padding_free or rows.packed
    args.padding_free = False           # the collator removes the padding, not TRL's
    train, evaluation = ([i for i, problems in enumerate(rows.problems)
                          if any((problem in held_out) == is_eval for problem in problems)]
                         for is_eval in (False, True))
    return {"distillation_loss": loss,
            "data_collator": Collator(rows, tokenizer.pad_token_id, padding_free, targets,
                                      held_out),
            "train_dataset": Dataset.from_dict({"row": train}),
            "eval_dataset": Dataset.from_list([{"row": i, "is_eval": True} for i in evaluation])
            if held_out else None, "callbacks": [RisingLossAlarm()]}


def make_trainer(job: SftJob) -> tuple[Any, Guard, Any]:
    """Return (trainer, guard, tokenizer) of a job, ready to train."""
    rows, tokenizer = read_rows(job.rows), AutoTokenizer.from_pretrained(str(job.tokenizer))
    args = arguments(job.sft, job.out, job.seed)
    kind: Any = StudentTrainer
    inputs = trainer_inputs
    if isinstance(job.sft.method, OnPolicyMethod):
        from pipeline.sft import on_policy

        kind, inputs = on_policy.OnPolicyTrainer, on_policy.trainer_inputs
    chosen = inputs(job, rows, tokenizer, args, held_out_problems(rows, job.sft.held_out))
    if chosen["eval_dataset"] is None:
        args.eval_strategy = "no"
    guard = Guard("sft", job.out / "log.jsonl", zero_loss_is_wrong=True)
    callbacks = [guard, *chosen.pop("callbacks"), Clock(job.sft.minutes, job.sft.schedule)]
    lora = lora_config(job.sft.lora, "sft.lora", job.model)
    student = load_student(job.model, args, job.sft.layers)
    trainer = kind(rows=rows, guard=guard, model=student, args=args, processing_class=tokenizer,
                   callbacks=callbacks, peft_config=lora, **chosen)
    return trainer, guard, tokenizer


def train(job: SftJob) -> dict[str, Any]:
    """Run `job` in this process; writes out/model and out/log.jsonl, returns counts."""
    trainer, guard, tokenizer = make_trainer(job)
    counts = fit(trainer, guard, job.out, tokenizer)
    return {**counts, "rows": len(trainer.train_dataset),
            "held_out": len(trainer.eval_dataset or ())}


if __name__ == "__main__":
    worker_main(SftJob, train)
