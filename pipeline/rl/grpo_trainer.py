"""TRL's GRPOTrainer without padding, without rows that teach nothing, without unjudged completions.

No update changes: the samples keep their distribution, a row of advantage 0 has no gradient without
a KL term, and the order of rows within one update does not count. Logged entropy and clip ratios
are those of the completions trained on; memory peaks when no group has equal rewards.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, cast

import torch
from trl import GRPOTrainer

from pipeline.student.template import prompt_ids
from pipeline.train.padding import (
    drop_zero_advantage,
    equal_reward_rows,
    flatten,
    trim_padding,
    unflatten,
)
from pipeline.train.rollouts import RolloutMixin
from pipeline.train.weight_sync import check_engine_matches_trainer

# TRL's loss types that divide by completions (the others by tokens), and those whose value depends
# on which completions share a micro-batch.
MEANS_OVER_ROWS = ("grpo", "sapo", "luspo", "dr_grpo")
PER_MICRO_BATCH = ("bnpo",)


class PaddingFreeGRPOTrainer(RolloutMixin, GRPOTrainer):
    """GRPOTrainer whose loss skips padding and rows of advantage 0.

    A completion that any reward left undecided counts as if it had not been sampled. TRL sums the
    other rewards, and keeps its row in the KL term and in the loss's denominator.
    `keep_completions` are the steps between two of TRL's tables of completions; 0 leaves it to TRL.
    With `overlap` the engines sample the next generation while this one is trained on: it comes
    from the weights before, and the loss's ratio is to the probabilities of those (a resumed run
    begins without it).
    """

    def __init__(self, *args: Any, keep_completions: int = 0, overlap: bool = False, **kwargs: Any):
        self.keep_completions, self.overlap = keep_completions, overlap
        self.begun: Future | None = None
        self.following: Any = None          # the rows of what is begun, or is about to be
        self.sampler = ThreadPoolExecutor(1)
        super().__init__(*args, **kwargs)
        self.engine_checked = not self.use_vllm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.keep_completions:
            self.log_completions = self.state.global_step % self.keep_completions == 0
        super().log(logs, start_time)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Rewards of all processes [rows, functions]; a row with any NaN becomes all NaN."""
        with self.timed("reward_time"):
            rewards = super()._calculate_rewards(*args, **kwargs)
        self._judged_rows = ~rewards.isnan().any(1)
        rewards[~self._judged_rows] = torch.nan
        training = cast(Any, self.model).training
        group = self.num_generations if training else self.num_generations_eval
        self._equal_rows = equal_reward_rows(rewards, group)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        model = cast(Any, self.model)
        ahead = self.overlap and model.training
        if ahead:
            inputs, self.following = self.following or inputs, inputs
        batch = super()._generate_and_score_completions(inputs)
        if not self.engine_checked:
            self._check_engine(batch)
        if ahead and not self.vllm_importance_sampling_correction:
            batch["old_per_token_logps"] = batch.pop("sampling_per_token_logps")
        metrics = self._metrics["train" if model.training else "eval"]
        metrics["unjudged"].append(1 - self._judged_rows.float().mean().item())
        metrics["frac_reward_zero_std"][-1] = self._equal_rows.float().mean().item()
        mask = batch["completion_mask"]
        first = self.accelerator.process_index * len(mask)
        own = slice(first, first + len(mask))
        batch["judged"] = self._judged_rows[own].to(mask.dtype)
        batch["advantages"][self._equal_rows[own]] = 0      # not the rounding error of a mean
        batch["completion_mask"] = mask * batch["judged"].unsqueeze(1)
        return self._add_loss_counts(batch)

    def _check_engine(self, batch: dict[str, Any]) -> None:
        """Check at the first rollout that the engine samples from the trained model."""
        check_engine_matches_trainer(self, batch)
        self.engine_checked = True
        if self._ignores_engine_logprobs():
            del batch["sampling_per_token_logps"]
            self.disable_logprobs()
        elif self.overlap:
            self.disable_logprobs(keep=True)

    def _add_loss_counts(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`batch` with the loss's denominators, counted over the judged rows of all processes."""
        judged = self.accelerator.gather(batch["judged"])
        tokens = self.accelerator.gather(batch["completion_mask"].sum())
        scale = len(judged) / judged.sum().clamp(min=1)
        batch["row_scale"] = scale if self.loss_type in MEANS_OVER_ROWS else torch.ones_like(scale)
        batch["num_items_in_batch"] = tokens.sum()
        return batch

    def arrange(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches without rows that have no gradient; unchanged if order counts."""
        if not self._order_is_free():
            return batches
        if self.beta == 0.0:
            own: Any = sum((batch["advantages"] != 0).sum() for batch in batches)
            rows = int(self.accelerator.gather(own).max())      # the same in every process
            batches = drop_zero_advantage(batches, rows, self.loss_type in MEANS_OVER_ROWS)
        return super().arrange(batches)

    def _order_is_free(self) -> bool:
        """Whether a whole generation is trained on in one update."""
        args: Any = self.args
        return (args.steps_per_generation == args.gradient_accumulation_steps
                and self.num_iterations == 1 and self.top_entropy_quantile == 1.0
                and self.loss_type not in PER_MICRO_BATCH
                and not (self._entropy_bonus_enabled or self.aux_loss_enabled))

    def _ignores_engine_logprobs(self) -> bool:
        """Whether a colocated vLLM's own log-probabilities are not used."""
        return (self.colocated() and not self.vllm_importance_sampling_correction
                and not self.overlap)

    def sample_completions(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], Any]:
        """Sample once the engines are done with what is begun."""
        wait([self.begun] if self.begun else [])
        return super().sample_completions(*args, **kwargs)

    def _sample_ahead(self, prompts: list[list[int]]) -> tuple[list[list[int]], Any]:
        """Return what was begun for `prompts`, and begin the next by the newest weights."""
        group = int(self.num_generations or 1)
        rows, logprobs = self.begun.result()[1:3] if self.begun else \
            self.sample_completions(prompts, group)
        following = self._tokenize_prompts([row["prompt"] for row in self.following])[0]
        self.load_newest_weights()
        self.begun = self.sampler.submit(self.vllm_generation.generate, following, None, group)
        return rows, [[logprob for logprob, *_ in row] for row in logprobs]

    def _generate_single_turn(self, prompt_ids: Any, images: Any, *more: Any, **kwargs: Any):
        with self.timed("generation_time"):
            if self.overlap and cast(Any, self.model).training:
                return self._sample_ahead(prompt_ids)
            by_engine = self.engine_checked and self._ignores_engine_logprobs()
            if images or not (by_engine or self.decodes_itself()):
                return super()._generate_single_turn(prompt_ids, images, *more, **kwargs)
            return self.sample_completions(prompt_ids, int(self.num_generations or 1))[0], None

    def _get_per_token_logps_and_entropies(
            self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor,
            logits_to_keep: int, batch_size: int | None = None, compute_entropy: bool = False,
            compute_aux_loss: bool = False, **images: Any) -> tuple:
        """As TRL's, without padding if the model's attention takes samples laid end to end."""
        has_images = any(value is not None for value in images.values())
        if not self.without_padding() or compute_aux_loss or has_images:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy,
                compute_aux_loss, **images)
        parts = []
        for ids, mask in zip(input_ids.split(batch_size or len(input_ids)),
                             attention_mask.split(batch_size or len(input_ids)), strict=True):
            with self.accelerator.autocast():
                outputs = model(**flatten(ids, mask.bool(), logits_to_keep), fused_lm_head=True)
            wanted = (outputs.log_probs, outputs.entropy)[:1 + compute_entropy]
            parts.append([unflatten(values, mask.bool())[:, -logits_to_keep:] for values in wanted])
        logps, *entropies = (torch.cat(values) for values in zip(*parts, strict=True))
        return logps, entropies[0] if entropies else None, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        metrics = self._metrics["train" if model.training else "eval"]
        before = {name: len(values) for name, values in metrics.items()}
        loss = super()._compute_loss(model, trim_padding(inputs)) * inputs["row_scale"]
        if not self.accelerator.gather(inputs["completion_mask"].sum()).any():
            for name, values in metrics.items():    # means over no token, logged by TRL as 0
                del values[before.get(name, 0):]
        return loss

    def _tokenize_prompts(self, prompts: list) -> tuple[list, Any, dict]:
        """Encode as evaluation does: a control token written out in a problem is text."""
        if self.chat_template_kwargs or self.tools or self._is_vlm:
            return super()._tokenize_prompts(prompts)
        distinct = {str(prompt): prompt for prompt in prompts}
        ids = {text: prompt_ids(self._tokenizer, prompt) for text, prompt in distinct.items()}
        return [ids[str(prompt)] for prompt in prompts], None, {}
