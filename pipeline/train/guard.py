"""Stops training on a NaN, and counts its seconds."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from pipeline.errors import UserError
from pipeline.progress import progress
from pipeline.train import checkpoints


def bad_weights(model: Any) -> str | None:
    """The name of the first parameter that holds a NaN or an infinity, or None."""
    for name, weight in model.named_parameters():
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        if not torch.isfinite(local).all():
            return name
    return None


class Clock(TrainerCallback, ExportableState):
    """Counts the seconds of training, which each checkpoint holds: a resumed run counts on.

    Ends it after so many minutes where it is told any, so that two runs get the same time.
    """

    def __init__(self, minutes: float | None = None):
        self.minutes, self.start, self.spent = minutes, 0.0, 0.0

    def state(self) -> dict[str, Any]:
        return {"args": {"minutes": self.minutes}, "attributes": {"spent": self.spent}}

    def on_train_begin(self, args, state, control, **kwargs):
        kept = state.stateful_callbacks.setdefault("Clock", self.state())
        self.start = time.monotonic() - kept["attributes"]["spent"]

    def on_step_end(self, args, state, control, **kwargs):
        self.spent = time.monotonic() - self.start
        state.stateful_callbacks["Clock"] = self.state()
        if self.minutes is None:
            return
        late = [self.spent >= 60 * self.minutes]
        broadcast_object_list(late)         # the first process's clock holds for all
        if late[0]:
            control.should_training_stop = True


class Guard(TrainerCallback):
    """Stops a run before bad weights are saved; marks checkpoints whole; shows and logs progress.

    Every logged value goes to log.jsonl. A trainer that can, checks each step's loss as well.
    """

    def __init__(self, label: str, log: Path, *, zero_loss_is_wrong: bool):
        self.label, self.log = label, log
        self.zero_loss_is_wrong = zero_loss_is_wrong
        self.stack = ExitStack()
        self.advance: Any = lambda steps=1, note="": None
        self.note, self.keep = "", 0

    def on_init_end(self, args, state, control, **kwargs):
        # The trainer would drop the older checkpoint before the newer is marked whole.
        self.keep, args.save_total_limit = args.save_total_limit or 0, None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._refuse(model, "are not finite before the first step; take another checkpoint")
        if state.is_world_process_zero:
            self.advance = self.stack.enter_context(progress(self.label, state.max_steps))
            self.advance(state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.advance(1, note=self.note)
        if control.should_save:
            self._refuse(model, f"are not finite after step {state.global_step}; the run is "
                                "stopped and they are not saved. Lower the learning rate")

    def on_save(self, args, state, control, **kwargs):
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            checkpoints.mark_whole(folder / f"checkpoint-{state.global_step}")
            if self.keep > 0:
                checkpoints.rotate(folder, self.keep)

    def on_train_end(self, args, state, control, **kwargs):
        self.stack.close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        values = {key: float(value) for key, value in (logs or {}).items() if _is_number(value)}
        for key in ("loss", "grad_norm", "eval_loss"):
            if not math.isfinite(values.get(key, 0.0)):
                self.stop(f"{key} is {values[key]} at step {state.global_step}; the run is stopped "
                          "and not saved. Lower the learning rate, or look at that step's rows")
        if self.zero_loss_is_wrong and values.get("loss") == 0.0:
            self.stop(f"the loss is exactly 0 at step {state.global_step}; no token is trained "
                      "(check the loss mask and precision)")
        if state.is_world_process_zero:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **values}) + "\n")
        shown = ("loss", "reward", "completions/mean_length")
        self.note = " ".join(f"{k.split('/')[-1]} {values[k]:.3g}" for k in shown if k in values)

    def stop(self, sentence: str) -> None:
        """Close the progress bar and raise a UserError."""
        self.stack.close()
        raise UserError(f"{self.label}: {sentence}")

    def _refuse(self, model: Any, sentence: str) -> None:
        if name := bad_weights(model):
            self.stop(f"weights {name} {sentence}")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
