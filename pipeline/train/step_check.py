"""Checks every step between gradient and optimizer, before it changes the weights.

`Trainer` replaces a NaN loss by the mean of the earlier ones before it logs
(`logging_nan_inf_filter`), clips gradients by a NaN norm, which makes all of them NaN, and takes
the step: after one bad row it would train NaN weights to the end and save them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer

from pipeline.student.token_rows import Rows
from pipeline.train.guard import Guard


class StepCheckMixin(Trainer):
    """Mixed into TRL's trainers: stops before a step that is not finite or learns nothing.

    Batches name their rows in `rows` or `row`.
    """

    def __init__(self, *args: Any, rows: Rows, guard: Guard, **kwargs: Any):
        self.rows, self.guard = rows, guard
        self.step_losses: list[tuple[list[int], torch.Tensor]] = []
        super().__init__(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        ready = isinstance(inputs, Mapping)     # else a generation's rows
        indices = inputs["rows"] if ready else [example["row"] for example in inputs]
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.step_losses.append((indices, loss))
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        losses = torch.stack([loss.float() for _, loss in self.step_losses]).tolist()
        # The norm is that of all processes: only all their losses show which rows are bad.
        gathered = gather_object([(rows, loss) for (rows, _), loss
                                  in zip(self.step_losses, losses, strict=True)])
        self.step_losses.clear()
        indices = [index for rows, _ in gathered for index in rows]
        bad = [index for rows, loss in gathered if not math.isfinite(loss) for index in rows]
        # A loss scaler (fp16) skips gradients that overflow, which is its purpose.
        scaled = getattr(self.accelerator, "scaler", None) is not None
        if bad:
            self._stop("the loss is not finite", bad)
        if not scaled and not math.isfinite(float(norm)):
            self._stop(f"the gradient's norm is {float(norm)}", indices)
        if not any(loss for _, loss in gathered):
            self._stop("the loss is exactly 0, so nothing is learned", indices)
        return norm

    def _stop(self, fault: str, indices: list[int]) -> None:
        """Stop before this step; all rows' names go to bad_batch.json, the first to the user."""
        # On-policy, a micro-batch is known only by the generation that its rows come from.
        names = list(dict.fromkeys(self.rows.names[index] for index in indices))
        step = self.state.global_step + 1
        path = self.guard.log.parent / "bad_batch.json"
        path.write_text(json.dumps({"step": step, "what": fault, "rows": names}), encoding="utf-8")
        more = f" and {len(names) - 16} more (bad_batch.json)" if len(names) > 16 else ""
        # DeepSpeed takes its step within the backward pass, so the weights have changed.
        when = "and that step not saved" if self.is_deepspeed_enabled else \
            "before that step changed the weights"
        self.guard.stop(f"{fault} at step {step}, on {', '.join(names[:16])}{more}; the run is "
                        f"stopped {when}. Check these rows, lower "
                        "the learning rate, or train in float32 (sft.trainer.bf16=false) without "
                        "use_liger_kernel")
