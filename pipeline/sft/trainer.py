"""SFT by TRL's SFTTrainer on token rows: the traces' tokens, or the teacher's distribution.

What is ours: rows are never cut and carry their names, a step whose loss or gradient is not finite
or whose loss is exactly 0 stops the run before the weights change, and the logits method's loss.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from operator import sub
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from pipeline.config.sft import OnPolicyMethod, SftConfig, SftJob
from pipeline.errors import UserError
from pipeline.sft.loss import DistillationLoss, method_of
from pipeline.student.token_rows import ByLength, Collator, held_out, read_rows
from pipeline.train import attention
from pipeline.train.arguments import lora_config, trainer_arguments
from pipeline.train.fit import fit, load_student
from pipeline.train.guard import Clock, Guard
from pipeline.train.launch import worker_main
from pipeline.train.step_check import StepCheckMixin

DEFAULTS: dict[str, Any] = {
    "gradient_checkpointing": False, "lr_scheduler_type": "cosine", "eval_steps": 0.25,
    "train_sampling_strategy": "group_by_length", "per_device_eval_batch_size": 8,
}
OURS: dict[str, Any] = {
    "max_length": None, "remove_unused_columns": False, "prediction_loss_only": True,
    "dataset_kwargs": {"skip_prepare_dataset": True},
}
"""Rows come as pack made them, so the trainer must neither cut nor pack nor tokenise."""
ELSEWHERE = {**dict.fromkeys(OURS, "nothing (pack decides it)"),
             "max_length": "pack.max_tokens", "packing": "the pack stage's packing",
             "assistant_only_loss": "the rows' loss mask", "completion_only_loss": "the rows' mask",
             "report_to": "sft.report_to", "eval_strategy": "sft.held_out",
             "chat_template_path": "student.chat_template", "eos_token": "student.chat_template"}


def arguments(sft: SftConfig, out: Path, seed: int) -> Any:
    """The SFTConfig that `sft.trainer` means; a UserError for keys that belong elsewhere."""
    for key in sft.trainer:
        if key in ELSEWHERE:
            raise UserError(f"sft.trainer.{key} is not for the trainer: the rows are ready when "
                            f"they come; set {ELSEWHERE[key]} instead")
    if sft.trainer.get("use_liger_kernel") and not find_spec("liger_kernel"):
        raise UserError("sft.trainer.use_liger_kernel needs the liger-kernel package; pip install "
                        "liger-kernel, or leave it out (the loss is chunked without it)")
    for tracker in sft.report_to:
        if not find_spec(tracker):
            raise UserError(f"sft.report_to names {tracker}, which is not installed; "
                            f"pip install {tracker}")
    if sft.method.type == "logits" or sft.head == "limbeck":
        for key in {"loss_type", "label_smoothing_factor"} & set(sft.trainer):
            raise UserError(f"sft.trainer.{key} needs sft.method.type=sequence and sft.head=trl; "
                            "set these or remove it")
    lora_config(sft.lora, "sft.lora")
    if isinstance(sft.method, OnPolicyMethod):
        from pipeline.sft.on_policy import arguments as on_policy

        return on_policy(sft, out, seed)
    ours = {"report_to": ["tensorboard", *sft.report_to],
            "eval_strategy": "steps" if sft.held_out else "no"}
    args = trainer_arguments(SFTConfig, "sft.trainer", {**DEFAULTS, **sft.trainer, **OURS, **ours},
                             out, seed)
    chosen = args.model_init_kwargs
    if "padding_free" not in sft.trainer and isinstance(chosen, dict):
        args.padding_free = chosen.get("attn_implementation") == attention.NAME
    return args


class RisingLoss(TrainerCallback):
    """Says once when the training loss climbs from where it began: too high a learning rate.

    A student that finds the traces likely already loses more by noisy updates than it learns. Of
    three rates the one whose loss climbed most scored least (results/README.md). Losses differ by
    chance as well: the climb must be FAR times the spread of one.
    """

    WINDOW, FACTOR, FAR = 5, 1.1, 3.3

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.said = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.said = state.global_step > 0       # a resumed run does not see where it began

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.losses += [float(logs["loss"])] if "loss" in (logs or {}) else []
        if self.said or len(self.losses) <= self.WINDOW:
            return
        now = sum(self.losses[-self.WINDOW:]) / self.WINDOW
        noise = 1.05 * median(map(abs, map(sub, self.losses[1:], self.losses)))     # one sigma
        if now <= self.FACTOR * self.losses[0] or now - self.losses[0] <= self.FAR * noise:
            return
        self.said = True
        if state.is_world_process_zero:
            print(f"sft: step {state.global_step}: the loss has risen from {self.losses[0]:.3g} to "
                  f"{now:.3g}; lower sft.trainer.learning_rate ({args.learning_rate:g})",
                  file=sys.stderr)


class StudentTrainer(StepCheckMixin, SFTTrainer):
    """SFTTrainer over row indices, with a check of every step and the loss of either method."""

    objective: DistillationLoss | None

    def __init__(self, *, rows: Any, guard: Guard, objective: DistillationLoss | None = None,
                 **given: Any):
        self.rows, self.guard, self.chosen = rows, guard, given["train_dataset"]["row"]
        self.objective = objective
        super().__init__(**given)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("rows", None)
        if self.objective is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"][:, 1:] != -100).sum()
        seen = self._metrics["train" if model.training else "eval"]
        if model.training:
            real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum()
            self._total_train_tokens += int(self.accelerator.gather(real).sum())
        seen["num_tokens"] = [self._total_train_tokens]
        with self.accelerator.autocast():   # the trainer's own covers the model alone
            loss, metrics = self.objective(model, inputs)
        for name, value in metrics.items():
            seen[name].append((value / num_items_in_batch).item())
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return loss * ranks / num_items_in_batch

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = [len(self.rows.ids[i]) for i in self.chosen]
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return ByLength(lengths, batch, self.args.seed, lambda: int(self.state.epoch or 0))

    def _get_eval_sampler(self, eval_dataset):
        return torch.utils.data.SequentialSampler(eval_dataset)


def make_trainer(job: SftJob) -> tuple[Any, Guard, Any]:
    """(trainer, guard, tokenizer) of a job, ready to train."""
    if isinstance(job.sft.method, OnPolicyMethod):
        from pipeline.sft import on_policy

        return on_policy.make_trainer(job)
    rows, tokenizer = read_rows(job.rows), AutoTokenizer.from_pretrained(str(job.tokenizer))
    args = arguments(job.sft, job.out, job.seed)
    objective, targets = method_of(job, rows, tokenizer)
    away = held_out(rows, job.sft.held_out)
    flat = args.padding_free or rows.packed
    collator = Collator(rows, tokenizer.pad_token_id, flat, targets, away)
    args.padding_free = False
    if not away:
        args.eval_strategy = "no"
    kept, watched = ([i for i, problems in enumerate(rows.problems)
                      if any((problem in away) == out for problem in problems)]
                     for out in (False, True))
    lora = lora_config(job.sft.lora, "sft.lora", job.model)
    student = load_student(job.model, args)
    guard = Guard("sft", job.out / "log.jsonl", zero_loss_is_wrong=True)
    trainer = StudentTrainer(
        rows=rows, guard=guard, objective=objective, model=student, args=args,
        train_dataset=Dataset.from_dict({"row": kept}), data_collator=collator,
        eval_dataset=Dataset.from_list([{"row": i, "watched": True} for i in watched])
        if away else None, processing_class=tokenizer, callbacks=[guard, RisingLoss()],
        peft_config=lora)
    return trainer, guard, tokenizer


def train(job: SftJob) -> dict[str, Any]:
    """Run `job` in this process; writes out/model and out/log.jsonl, returns counts."""
    trainer, guard, tokenizer = make_trainer(job)
    trainer.add_callback(Clock(job.sft.minutes))
    counts = fit(trainer, guard, job.out, tokenizer)
    trained = len(trainer.train_dataset)
    return {**counts, "rows": trained, "held_out": len(trainer.eval_dataset or ())}


if __name__ == "__main__":
    worker_main(SftJob, train)
