"""TRL's GRPOTrainer with compact rollouts, a trimmed loss, no trace of what was not judged.

Without vLLM, rollouts go through pipeline.decode, which lets finished rows leave the batch. With
or without, the loss runs on columns up to the longest completion of its micro-batch instead of the
whole generation's, and completions of like length share a micro-batch; with `attn_implementation:
limbeck_varlen` it runs without any padding; without KL term, completions of advantage 0 (a group of
equal rewards) are left out of the loss. None of this changes an update: the samples have the same
distribution, what is left out has no gradient, the order inside one update does not count. The
logged entropy and clip ratios are those of the completions trained on, and memory peaks when no
group is level. A colocated vLLM takes all of its engine's options.

A completion that any reward left undecided (None) counts as if it had not been sampled. TRL gives
it advantage 0 where every reward is None, but sums the others where one is (nansum), and keeps its
row in the KL term and in the loss's denominator.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from trl import GRPOTrainer

from pipeline.chat import prompt_ids
from pipeline.engine import refuse_another_model
from pipeline.microbatch import end_to_end, level, padded, taught, trimmed
from pipeline.rollouts import Rollouts

MEANS_OVER_ROWS = ("grpo", "sapo", "luspo", "dr_grpo")
"""TRL's loss types that divide by the number of completions; the others divide by tokens."""
PER_MICRO_BATCH = ("bnpo",)
"""TRL's loss types whose value depends on which completions share a micro-batch."""


class CompactGRPOTrainer(Rollouts, GRPOTrainer):
    """GRPOTrainer with the trimmed loss; for one process without vLLM, compact rollouts too."""

    def __init__(self, *args: Any, **given: Any):
        super().__init__(*args, **given)
        rows: Any = self.train_dataset
        # Each micro-batch fetches a whole generation of rows, which a Dataset makes anew each time.
        self.train_dataset = list(rows)
        self.compared = not self.use_vllm

    keep_completions = 0
    """Every so many steps TRL's table of completions and rewards is written; 0: as TRL is told."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.keep_completions:
            self.log_completions = self.state.global_step % self.keep_completions == 0
        super().log(logs, start_time)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Rewards of all processes [rows, functions]; a row with one NaN is NaN throughout."""
        with self.timed("reward_time"):
            rewards = super()._calculate_rewards(*args, **kwargs)
        self._judged = ~rewards.isnan().any(1)
        rewards[~self._judged] = torch.nan
        training = cast(Any, self.model).training
        self._level = level(rewards, self.num_generations if training else
                            self.num_generations_eval)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch, model = super()._generate_and_score_completions(inputs), cast(Any, self.model)
        if not self.compared:
            self._compare(batch)
        share = 1 - self._judged.float().mean().item()
        metrics = self._metrics["train" if model.training else "eval"]
        metrics["unjudged"].append(share)
        metrics["frac_reward_zero_std"][-1] = self._level.float().mean().item()
        mask = batch["completion_mask"]
        first = self.accelerator.process_index * len(mask)
        mine = slice(first, first + len(mask))
        batch["judged"] = self._judged[mine].to(mask.dtype)
        batch["advantages"][self._level[mine]] = 0      # and not a mean's rounding
        batch["completion_mask"] = mask * batch["judged"].unsqueeze(1)
        return self._counted(batch)

    def _compare(self, batch: dict[str, Any]) -> None:
        """Look once, at the first rollout, whether the engine samples from the trained model."""
        refuse_another_model(self, batch)
        self.compared = True
        if self._without_logprobs():
            del batch["sampling_per_token_logps"]
            self.make_no_logprobs()

    def _counted(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`batch` with what the loss divides by counted over the judged rows of all processes."""
        judged = self.accelerator.gather(batch["judged"])
        tokens = self.accelerator.gather(batch["completion_mask"].sum())
        scale = len(judged) / judged.sum().clamp(min=1)
        batch["row_scale"] = scale if self.loss_type in MEANS_OVER_ROWS else torch.ones_like(scale)
        batch["num_items_in_batch"] = tokens.sum()
        return batch

    def arranged(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches without rows that have no gradient; as they are where order counts."""
        if not self._order_is_free():
            return batches
        if self.beta == 0.0:
            mine: Any = sum((batch["advantages"] != 0).sum() for batch in batches)
            most = int(self.accelerator.gather(mine).max())   # processes compare rows in the loss
            batches = taught(batches, most, self.loss_type in MEANS_OVER_ROWS)
        return super().arranged(batches)

    def _order_is_free(self) -> bool:
        """Whether all that is generated at once is trained on at once, in one update."""
        args: Any = self.args
        return (args.steps_per_generation == args.gradient_accumulation_steps
                and self.num_iterations == 1 and self.top_entropy_quantile == 1.0
                and self.loss_type not in PER_MICRO_BATCH
                and not (self._entropy_bonus_enabled or self.aux_loss_enabled))

    def _without_logprobs(self) -> bool:
        """Whether a colocated vLLM's own log-probabilities would go unused."""
        return self.colocated() and not self.vllm_importance_sampling_correction

    def _generate_single_turn(self, prompt_ids: Any, images: Any, *more: Any, **kwargs: Any):
        with self.timed("generation_time"):
            lean = self.compared and self._without_logprobs()
            if images or not (lean or self.decoded()):
                return super()._generate_single_turn(prompt_ids, images, *more, **kwargs)
            return self.sampled(prompt_ids, int(self.num_generations or 1))[0], None

    def _get_per_token_logps_and_entropies(
            self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor,
            logits_to_keep: int, batch_size: int | None = None, compute_entropy: bool = False,
            compute_aux_loss: bool = False, **images: Any) -> tuple:
        """TRL's, without padding where the model's attention knows samples laid end to end."""
        seen = any(value is not None for value in images.values())
        if not self.without_padding() or compute_aux_loss or seen:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy,
                compute_aux_loss, **images)
        parts = []
        for ids, mask in zip(input_ids.split(batch_size or len(input_ids)),
                             attention_mask.split(batch_size or len(input_ids)), strict=True):
            with self.accelerator.autocast():
                outputs = model(**end_to_end(ids, mask.bool(), logits_to_keep), fused_lm_head=True)
            wanted = (outputs.log_probs, outputs.entropy)[:1 + compute_entropy]
            parts.append([padded(values, mask.bool())[:, -logits_to_keep:] for values in wanted])
        logps, *entropies = (torch.cat(values) for values in zip(*parts, strict=True))
        return logps, entropies[0] if entropies else None, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        metrics = self._metrics["train" if model.training else "eval"]
        before = {name: len(values) for name, values in metrics.items()}
        loss = super()._compute_loss(model, trimmed(inputs)) * inputs["row_scale"]
        if not self.accelerator.gather(inputs["completion_mask"].sum()).any():
            for name, values in metrics.items():    # means over no token, which TRL counts as 0
                del values[before.get(name, 0):]
        return loss

    def _tokenize_prompts(self, prompts: list) -> tuple[list, Any, dict]:
        """As evaluation does: a control token that a problem spells out is text."""
        if self.chat_template_kwargs or self.tools or self._is_vlm:
            return super()._tokenize_prompts(prompts)
        different = {str(prompt): prompt for prompt in prompts}
        ids = {text: prompt_ids(self._tokenizer, prompt) for text, prompt in different.items()}
        return [ids[str(prompt)] for prompt in prompts], None, {}
