"""On-policy distillation by TRL's DistillationTrainer: the student answers, the teacher scores.

Beyond TRL: prompts are the token ids that pack made, steps are checked, output matrices that differ
in padding only are cut to one width, and steps are as in GRPO: rollouts by train.rollouts,
completions of similar length in one micro-batch. With `attn_implementation: limbeck_varlen` both
models skip padding, and the divergence is sft.divergence's single pass, which projects each state
once where TRL's tiles do so two or three times. No update changes by it: the loss is a sum over the
tokens of all micro-batches.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DistillationTrainer

from pipeline.config.sft import OnPolicyMethod, SftJob
from pipeline.errors import UserError
from pipeline.sft.divergence import Dense, LossWeights, distillation_loss
from pipeline.sft.teacher_scorer import load_teacher, output_layer, unwrap_model
from pipeline.student.token_rows import IGNORED, Rows
from pipeline.student.tokenizer import bare_tokenizer, check_vocabulary
from pipeline.train.layers import fuse_layers
from pipeline.train.padding import flatten, trim_padding
from pipeline.train.rollouts import RolloutMixin
from pipeline.train.step_check import StepCheckMixin
from pipeline.train.weight_sync import check_logprob_gap

CHECKED_COMPLETIONS = 8
"""Completions of the first rollout whose log-probabilities are compared with the trainer's."""
MAX_TRUNCATED_SHARE = 0.2
"""Share of truncated answers in a log entry above which the run warns once: after a quarter of them
the student truncated twice as many answers as before (results/README.md)."""


class OnPolicyTrainer(StepCheckMixin, RolloutMixin, DistillationTrainer):
    """DistillationTrainer over prompts that are token ids, with the teacher of `method`."""

    def __init__(self, *, model: Any, method: OnPolicyMethod, layers: str, processing_class: Any,
                 **kwargs: Any):
        teacher = load_teacher(method.teacher, method.dtype, model.config._attn_implementation)
        cut_to_same_width(model, teacher, processing_class)
        if layers == "compiled":
            fuse_layers(teacher)
        super().__init__(model=model, teacher_model=teacher, processing_class=processing_class,
                         **kwargs)
        self.mask_truncated = method.mask_truncated
        self.weights = LossWeights(self.beta, self.temperature)
        rows: Any = self.train_dataset
        for row in rows:                    # TRL copies prompts deeply, token by token
            row["prompt"] = np.array(row["prompt"])
        self.engine_checked = not self.colocated()
        if not self.engine_checked:
            self.vllm_generation.logprobs = 0       # the sampled token's only

    def _tokenize_prompts(self, prompts: list) -> tuple[list, None, dict]:
        return [list(map(int, prompt)) for prompt in prompts], None, {}

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self.mask_truncated:
            mask = batch["completion_mask"]
            last = batch["completion_ids"].gather(1, mask.sum(1, keepdim=True) - 1)
            mask *= torch.isin(last, torch.tensor([*self.eos_token_ids], device=last.device))
            batch["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()
            if not batch["num_items_in_batch"]:
                raise UserError(
                    "sft: every answer of a step is truncated at sft.trainer.max_completion_length="
                    f"{self.max_completion_length}, and sft.method.mask_truncated leaves all out; "
                    "raise the one, unset the other, or start from a student that ends its answers")
        return batch

    def _generate_single_turn(self, prompt_ids: Any, images: Any, *args: Any, **kwargs: Any):
        with self.timed("generation_time"):
            if not (self.colocated() or self.decodes_itself()):
                return super()._generate_single_turn(prompt_ids, images, *args, **kwargs)
            completions, logprobs = self.sample_completions(prompt_ids)
        if not self.engine_checked:
            self._check_engine(prompt_ids, completions, logprobs)
        return completions

    def _check_engine(self, prompts: list[list[int]], completions: list[list[int]],
                      engine_logprobs: list) -> None:
        """Check at the first rollout that the engine samples from the trained model."""
        gaps = []
        for prompt, completion, sampled in zip(prompts[:CHECKED_COMPLETIONS], completions,
                                               engine_logprobs, strict=False):
            ours = self._logprobs(prompt, completion)
            gaps.append(ours - ours.new_tensor([torch.nan if p is None else p for p, in sampled]))
        check_logprob_gap(torch.cat(gaps), self, "sft")
        self.engine_checked = True
        self.disable_logprobs()

    def _logprobs(self, prompt: list[int], completion: list[int]) -> torch.Tensor:
        """Compute the trained model's log-probabilities [tokens] at the sampling temperature."""
        # With gradients, as in training: without them torch.compile would make other kernels.
        ids = torch.tensor([prompt + completion], device=self.accelerator.device)
        model: Any = self.model
        logits = model(input_ids=ids, logits_to_keep=len(completion) + 1).logits[0, :-1].float()
        logprobs = (logits / self.temperature).log_softmax(-1)
        return logprobs.gather(1, ids[0, len(prompt):, None])[:, 0].detach()

    def _compute_loss(self, unwrapped_student: Any, inputs: dict[str, Any], items: Any) -> tuple:
        inputs = trim_padding(inputs)
        with self.accelerator.autocast():   # TRL calls the models' parts, past the trainer's own
            if not self.without_padding():
                return super()._compute_loss(unwrapped_student, inputs, items)
            ids, mask = (torch.cat([inputs[f"prompt_{kind}"], inputs[f"completion_{kind}"]], 1)
                         for kind in ("ids", "mask"))
            samples = flatten(ids, mask.bool(), inputs["completion_ids"].shape[1])
            labels = samples.pop("labels")[0, 1:]
            states = self._states(unwrapped_student, samples, labels)
            teacher = self.accelerator.unwrap_model(self.teacher_model)
            with torch.no_grad():
                theirs = self._forward_redirection(self.teacher_model, teacher, self._states,
                                                   teacher, samples, labels)
            loss, *_, entropy = distillation_loss(
                states, *output_layer(unwrapped_student), labels[labels != IGNORED],
                Dense(theirs, *output_layer(teacher)), self.weights)
        return loss / max(1, len(states)) if items is None else loss / items, entropy, \
            (labels != IGNORED).sum()

    @staticmethod
    def _states(model: Any, samples: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """Compute the states [n, H] that predict the trained tokens of `samples` end to end."""
        states = unwrap_model(model).base_model(**samples, use_cache=False).last_hidden_state
        return states[0, :-1][labels != IGNORED]


class TruncationAlarm(TrainerCallback):
    """Warns once if most answers are truncated: their end is never learnt."""

    warned = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        share = (logs or {}).get("completions/clipped_ratio", 0.0)
        if share > MAX_TRUNCATED_SHARE and state.is_world_process_zero and not self.warned:
            self.warned = True
            print(f"sft: {share:.0%} of the student's answers at step {state.global_step} are "
                  f"truncated at sft.trainer.max_completion_length={args.max_completion_length}; "
                  "raise it, or start from a student that ends its answers", file=sys.stderr)


def longest_answer(rows: Rows) -> int:
    """Return the trained tokens of the sample that has most."""
    return max(int((sample != IGNORED).sum())
               for labels, lengths in zip(rows.labels, rows.lengths, strict=True)
               for sample in np.split(labels, np.cumsum(lengths)))


def unique_prompts(rows: Rows) -> list[dict[str, Any]]:
    """Return each different prompt once: its token ids, and its first row and problem."""
    origins: dict[tuple[int, ...], dict[str, Any]] = {}
    for row, (ids, labels) in enumerate(zip(rows.ids, rows.labels, strict=True)):
        ends = np.cumsum([0, *rows.lengths[row]])
        for problem, (start, end) in zip(rows.problems[row], pairwise(ends), strict=True):
            first = int(np.argmax(labels[start:end] != IGNORED))
            if first > 1:                # later pieces of a split trace have no prompt
                origins.setdefault(tuple(ids[start:start + first].tolist()),
                                   {"row": row, "problem": problem})
    return [{"prompt": list(prompt), **origin} for prompt, origin in origins.items()]


def trainer_inputs(job: SftJob, rows: Rows, tokenizer: Any, args: Any,
                   held_out: set[str]) -> dict[str, Any]:
    """Return OnPolicyTrainer's teacher, prompts and alarm; settles the answers' length in `args`.

    Raises UserError if the vocabularies differ or the prompts are too few for a step.
    """
    method = job.sft.method
    assert isinstance(method, OnPolicyMethod)
    check_vocabulary(bare_tokenizer(method.teacher), tokenizer, method.teacher)
    if "max_completion_length" not in job.sft.trainer:  # TRL's own default is 512 for any task
        args.max_completion_length = longest_answer(rows)
    prompts = unique_prompts(rows)
    train, evaluation = ([p for p in prompts if (p["problem"] in held_out) == is_eval]
                         for is_eval in (False, True))
    step_size = (args.per_device_train_batch_size * args.gradient_accumulation_steps
                 * args.world_size)
    if len(train) < step_size:          # TRL drops an incomplete batch: there would be no step
        raise UserError(f"sft: the rows have {len(train)} prompts, fewer than the {step_size} of a "
                        "step; lower sft.trainer.gradient_accumulation_steps or "
                        "per_device_train_batch_size")
    return {"method": method, "layers": job.sft.layers, "engine": job.engine,
            "train_dataset": Dataset.from_list(train),
            "eval_dataset": Dataset.from_list(evaluation) if evaluation else None,
            "callbacks": [TruncationAlarm()]}


def cut_to_same_width(student: Any, teacher: Any, tokenizer: Any) -> None:
    """Cut the wider model's unused output rows; raises UserError if a token would lose its row."""
    width = min(model.config.get_text_config().vocab_size for model in (student, teacher))
    if width <= max(tokenizer.get_vocab().values()):
        raise UserError(f"one of the models has {width} output rows, fewer than the student's "
                        "tokens; use a teacher of the student's family, or "
                        "sft.method.type=cross_tokenizer")
    for model in (student, teacher):
        if model.config.get_text_config().vocab_size != width:
            model.resize_token_embeddings(width)
