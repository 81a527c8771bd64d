"""Every step checked before it changes the weights.

Why the check sits between gradient and optimizer: `Trainer` replaces a loss that is NaN by the
mean of the earlier ones before it logs (`logging_nan_inf_filter`; 0.0 after a first step), clips
gradients by a norm that is NaN, which makes all of them NaN, and takes the step. One bad row, and
the run goes on to its end on NaN weights and saves them.
"""

from __future__ import annotations

import json
import math

import torch
from accelerate.utils import gather_object
from transformers import Trainer

from pipeline.student.token_rows import Rows
from pipeline.train.guard import Guard


class StepCheckMixin(Trainer):
    """A trainer, mixed into TRL's, that stops before a step that is not finite or learns nothing.

    `rows` gives the names and `guard` the folder; a batch says in `rows` or `row` what it is of.
    """

    rows: Rows
    guard: Guard
    step_losses: list[tuple[list[int], torch.Tensor]]

    def training_step(self, model, inputs, num_items_in_batch=None):
        several = isinstance(inputs, list)
        indices = [example["row"] for example in inputs] if several else inputs["rows"]
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.__dict__.setdefault("step_losses", []).append((indices, loss))
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        losses = torch.stack([loss.float() for _, loss in self.step_losses]).tolist()
        # The norm is of all processes together: who is to blame, only all their losses tell.
        seen = gather_object([(rows, loss) for (rows, _), loss
                              in zip(self.step_losses, losses, strict=True)])
        self.step_losses.clear()
        indices = [index for rows, _ in seen for index in rows]
        bad = [index for rows, loss in seen if not math.isfinite(loss) for index in rows]
        # With a loss scaler (fp16) a gradient that overflows is skipped, which is its purpose.
        scaled = getattr(self.accelerator, "scaler", None) is not None
        if bad:
            self._stop("the loss is not finite", bad)
        if not scaled and not math.isfinite(float(norm)):
            self._stop(f"the gradient's norm is {float(norm)}", indices)
        if not any(loss for _, loss in seen):
            self._stop("the loss is exactly 0, so nothing is learned", indices)
        return norm

    def _stop(self, what: str, indices: list[int]) -> None:
        """Stop this step; all names go to bad_batch.json, the first to the user.

        DeepSpeed takes its step within the backward pass, so there the weights have changed.
        """
        # On-policy, each micro-batch is known by the whole generation that it was dealt from.
        names = list(dict.fromkeys(self.rows.names[index] for index in indices))
        step = self.state.global_step + 1
        path = self.guard.log.parent / "bad_batch.json"
        path.write_text(json.dumps({"step": step, "what": what, "rows": names}), encoding="utf-8")
        more = f" and {len(names) - 16} more (bad_batch.json)" if len(names) > 16 else ""
        when = "and that step not saved" if self.is_deepspeed_enabled else \
            "before that step changed the weights"
        self.guard.stop(f"{what} at step {step}, on {', '.join(names[:16])}{more}; the run is "
                        f"stopped {when}. Look at these rows, lower "
                        "the learning rate, or train in float32 (sft.trainer.bf16=false) without "
                        "use_liger_kernel")
