"""On-policy distillation by TRL's DistillationTrainer: the student answers, the teacher scores.

What is ours: prompts are the token ids that pack made, the step check and the guard, output
matrices that differ in padding only are cut to the same width (TRL refuses them), and the step is
GRPO's: rollouts as train.rollouts makes them, completions of like length in one micro-batch, no
columns that none of them has, with `attn_implementation: limbeck_varlen` no padding at all. None of
this changes an update: the loss is a sum over the tokens of all micro-batches.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from pipeline.config.sft import OnPolicyMethod, SftConfig, SftJob
from pipeline.errors import UserError
from pipeline.sft.teacher_scorer import backbone, load_teacher
from pipeline.student.token_rows import IGNORED, Rows, held_out, read_rows
from pipeline.student.tokenizer import bare_tokenizer, check_vocabulary
from pipeline.train.arguments import lora_config, trainer_arguments
from pipeline.train.attention import lays_end_to_end
from pipeline.train.fit import load_student
from pipeline.train.guard import Guard
from pipeline.train.padding import flatten, trim_padding
from pipeline.train.rollouts import RolloutMixin
from pipeline.train.step_check import StepCheckMixin
from pipeline.train.weight_sync import check_logprob_gap

DEFAULTS: dict[str, Any] = {"gradient_checkpointing": False, "lr_scheduler_type": "cosine",
                            "eval_steps": 0.25}
COMPARED = 8
"""Completions of the first rollout in which vLLM's log-probabilities meet the trainer's."""
CUT_OFF = 0.5
"""Share of a log's answers that reach the length limit above which the run says so, once."""


def arguments(sft: SftConfig, out: Path, seed: int) -> Any:
    """The DistillationConfig that `sft.trainer` means."""
    ours = {"report_to": ["tensorboard", *sft.report_to],
            "eval_strategy": "steps" if sft.held_out else "no"}
    return trainer_arguments(DistillationConfig, "sft.trainer", {**DEFAULTS, **sft.trainer, **ours},
                             out, seed)


class OnPolicyTrainer(StepCheckMixin, RolloutMixin, DistillationTrainer):
    """DistillationTrainer over prompts that are token ids already."""

    def __init__(self, *, rows: Rows, guard: Guard, **given: Any):
        self.rows, self.guard = rows, guard
        super().__init__(**given)
        self.compared = not self.colocated()
        if not self.compared:
            self.vllm_generation.logprobs = 0       # the sampled token's alone

    def _tokenize_prompts(self, prompts: list) -> tuple[list, None, dict]:
        return prompts, None, {}

    def _generate_single_turn(self, prompt_ids: Any, images: Any, *more: Any, **given: Any):
        with self.timed("generation_time"):
            if not (self.colocated() or self.decoded()):
                return super()._generate_single_turn(prompt_ids, images, *more, **given)
            rows, logprobs = self.sampled(prompt_ids)
        if not self.compared:
            self._compare(prompt_ids, rows, logprobs)
        return rows

    def _compare(self, prompts: list[list[int]], rows: list[list[int]], logprobs: list) -> None:
        """Look once, at the first rollout, whether the engine samples from the trained model."""
        apart = []
        for prompt, row, theirs in zip(prompts[:COMPARED], rows, logprobs, strict=False):
            ours = self._logprobs(prompt, row)
            apart.append(ours - ours.new_tensor([torch.nan if p is None else p for p, in theirs]))
        check_logprob_gap(torch.cat(apart), self, "sft")
        self.compared = True
        self.make_no_logprobs()

    @torch.no_grad()
    def _logprobs(self, prompt: list[int], row: list[int]) -> torch.Tensor:
        """The trained model's log-probabilities [tokens] of a completion, at the temperature."""
        ids = torch.tensor([prompt + row], device=self.accelerator.device)
        model: Any = self.model
        logits = model(input_ids=ids, logits_to_keep=len(row) + 1).logits[0, :-1].float()
        logprobs = (logits / self.temperature).log_softmax(-1)
        return logprobs.gather(1, ids[0, len(prompt):, None])[:, 0]

    def _compute_loss(self, unwrapped_student: Any, inputs: dict[str, Any], items: Any) -> tuple:
        with self.accelerator.autocast():   # TRL calls the models' insides, past the trainer's own
            return super()._compute_loss(unwrapped_student, trim_padding(inputs), items)

    def _get_last_hidden_state(self, unwrapped_model: Any, input_ids: torch.Tensor,
                               attention_mask: torch.Tensor, logits_to_keep: int,
                               **seen: Any) -> torch.Tensor:
        """TRL's [rows, logits_to_keep, H], without padding where the attention knows how."""
        model = backbone(unwrapped_model)
        if seen or not lays_end_to_end(model):
            return super()._get_last_hidden_state(unwrapped_model, input_ids, attention_mask,
                                                  logits_to_keep, **seen)
        mask = attention_mask.bool()
        inputs = flatten(input_ids, mask, logits_to_keep)
        del inputs["labels"]
        states = model.base_model(**inputs, use_cache=False).last_hidden_state[0]
        whole = states.new_zeros(*mask.shape, states.shape[-1])
        whole[mask] = states
        return whole[:, -logits_to_keep - 1:-1]


class LengthAlarm(TrainerCallback):
    """Says once that most answers are cut off: what is never reached, the end, is not learnt."""

    said = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        share = (logs or {}).get("completions/clipped_ratio", 0.0)
        if share > CUT_OFF and state.is_world_process_zero and not self.said:
            self.said = True
            print(f"sft: {share:.0%} of the student's answers at step {state.global_step} reach "
                  f"sft.trainer.max_completion_length={args.max_completion_length}; raise it, or "
                  "start from a student that ends its answers", file=sys.stderr)


def longest_answer(rows: Rows) -> int:
    """Trained tokens of the sample that has most of them."""
    return max(int((part != IGNORED).sum())
               for labels, lengths in zip(rows.labels, rows.lengths, strict=True)
               for part in np.split(labels, np.cumsum(lengths)))


def prompts_of(rows: Rows) -> list[dict[str, Any]]:
    """Each different prompt once: its token ids, and the first row and problem that it is of."""
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for row, (ids, labels) in enumerate(zip(rows.ids, rows.labels, strict=True)):
        ends = np.cumsum([0, *rows.lengths[row]])
        for problem, (start, end) in zip(rows.problems[row], pairwise(ends), strict=True):
            first = int(np.argmax(labels[start:end] != IGNORED))
            if first > 1:                # a piece of a split trace begins without its prompt
                found.setdefault(tuple(ids[start:start + first].tolist()),
                                 {"row": row, "problem": problem})
    return [{"prompt": list(prompt), **of} for prompt, of in found.items()]


def make_trainer(job: SftJob) -> tuple[OnPolicyTrainer, Guard, Any]:
    """(trainer, guard, tokenizer) of a job whose method is on_policy, ready to train."""
    method = job.sft.method
    assert isinstance(method, OnPolicyMethod)
    rows, tokenizer = read_rows(job.rows), AutoTokenizer.from_pretrained(str(job.tokenizer))
    check_vocabulary(bare_tokenizer(method.teacher), tokenizer, method.teacher)
    args = arguments(job.sft, job.out, job.seed)
    if "max_completion_length" not in job.sft.trainer:  # TRL's own is 512, whatever the task
        args.max_completion_length = longest_answer(rows)
    away, prompts = held_out(rows, job.sft.held_out), prompts_of(rows)
    watched = [prompt for prompt in prompts if prompt["problem"] in away]
    if not watched:
        args.eval_strategy = "no"
    asked = [prompt for prompt in prompts if prompt["problem"] not in away]
    a_step = (args.per_device_train_batch_size * args.gradient_accumulation_steps
              * args.world_size)
    if len(asked) < a_step:             # TRL leaves out a batch that is not full: no step at all
        raise UserError(f"sft: the rows have {len(asked)} prompts, fewer than the {a_step} that a "
                        "step asks; lower sft.trainer.gradient_accumulation_steps or "
                        "per_device_train_batch_size")
    lora = lora_config(job.sft.lora, "sft.lora", job.model)
    student = load_student(job.model, args)
    teacher = load_teacher(method.teacher, method.dtype, student.config._attn_implementation)
    same_width(student, teacher, tokenizer)
    guard = Guard("sft", job.out / "log.jsonl", zero_loss_is_wrong=True)
    trainer = OnPolicyTrainer(
        rows=rows, guard=guard, model=student, teacher_model=teacher, args=args, engine=job.engine,
        train_dataset=Dataset.from_list(asked),
        eval_dataset=Dataset.from_list(watched) if watched else None, processing_class=tokenizer,
        callbacks=[guard, LengthAlarm()], peft_config=lora)
    return trainer, guard, tokenizer


def same_width(student: Any, teacher: Any, tokenizer: Any) -> None:
    """Cut the wider model's padding rows, those beyond every token, to the other's width."""
    width = min(model.config.get_text_config().vocab_size for model in (student, teacher))
    if width <= max(tokenizer.get_vocab().values()):
        raise UserError(f"one of the models has {width} output rows, fewer than the student's "
                        "tokens; take a teacher of the student's family, or train with TRL's "
                        "GOLDTrainer, which aligns different vocabularies")
    for model in (student, teacher):
        if model.config.get_text_config().vocab_size != width:
            model.resize_token_embeddings(width)
