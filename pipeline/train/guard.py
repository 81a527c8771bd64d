"""Stops training on values that are not finite, logs it, counts its seconds, times its rate."""

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


def non_finite_weight(model: Any) -> str | None:
    """Return the name of the first parameter with a NaN or an infinity, or None."""
    for name, weight in model.named_parameters():
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        if not torch.isfinite(local).all():
            return name
    return None


class Clock(TrainerCallback, ExportableState):
    """Counts the seconds of training, kept in checkpoints, and ends it after `minutes` if given.

    With `schedule` minutes the learning rate falls by the clock where that is ahead of the steps.
    """

    def __init__(self, minutes: float | None = None, schedule: str = "steps"):
        self.minutes, self.schedule, self.start, self.spent = minutes, schedule, 0.0, 0.0
        self.warm_up, self.planned = 0, 0       # steps
        self.warmed = 0.0                       # seconds at the end of the warm-up

    def state(self) -> dict[str, Any]:
        return {"args": {"minutes": self.minutes},
                "attributes": {"spent": self.spent, "warmed": self.warmed}}

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        kept = state.stateful_callbacks.setdefault("Clock", self.state())["attributes"]
        self.start = time.monotonic() - kept["spent"]
        self.warmed = kept.get("warmed", 0.0)
        if self.schedule == "minutes":
            self._time(lr_scheduler)
            # A warm-up given as a share is one of the time too.
            self.warm_up = args.get_warmup_steps(state.max_steps) if args.warmup_steps >= 1 else 0
            self.planned = state.max_steps

    def on_optimizer_step(self, args, state, control, **kwargs):
        spent = [time.monotonic() - self.start]
        if self.minutes is not None:
            broadcast_object_list(spent)            # the first process's clock decides for all
        self.spent = spent[0]

    def on_step_end(self, args, state, control, **kwargs):
        state.stateful_callbacks["Clock"] = self.state()
        if self.minutes is not None and self.spent >= 60 * self.minutes:
            control.should_training_stop = True

    def _time(self, scheduler: Any) -> None:
        """Make `scheduler`, torch's LambdaLR, ask for the rate of the step that `place` says."""
        scheduler = getattr(scheduler, "scheduler", scheduler)
        if not hasattr(scheduler, "lr_lambdas"):
            raise UserError(f"the rates of {type(scheduler).__name__} cannot follow a clock; set "
                            "schedule: steps")
        scheduler.lr_lambdas = [lambda step, rate=rate: rate(self.place(step))
                                for rate in scheduler.lr_lambdas]

    def place(self, step: int) -> float:
        """The planned step whose rate is due after `step`: that, or a later one by the clock."""
        if step <= self.warm_up:
            self.warmed = self.spent
            return step
        left = 60 * (self.minutes or 0) - self.warmed    # seconds for the steps after it
        share = min((self.spent - self.warmed) / left, 1.0) if left > 0 else 1.0
        return max(step, self.warm_up + share * (self.planned - self.warm_up))


def clock_of(state: Any) -> dict[str, Any]:
    """Return {"minutes": limit or None, "spent": seconds} of a trainer's state."""
    kept = state.stateful_callbacks.get("Clock", Clock().state())
    return {**kept["args"], **kept["attributes"]}


class Guard(TrainerCallback):
    """Stops a run before weights that are not finite are saved; marks checkpoints complete.

    Shows progress and appends every logged value to `log`, a JSON Lines file.
    """

    def __init__(self, label: str, log: Path, *, zero_loss_is_wrong: bool):
        self.label, self.log = label, log
        self.zero_loss_is_wrong = zero_loss_is_wrong
        self.stack = ExitStack()
        self.advance: Any = lambda steps=1, note="": None
        self.progress_note, self.save_total_limit = "", 0

    def on_init_end(self, args, state, control, **kwargs):
        # The trainer would delete the older checkpoint before the newer is marked complete.
        self.save_total_limit, args.save_total_limit = args.save_total_limit or 0, None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._check_weights(model, "before the first step; use another checkpoint")
        if state.is_world_process_zero:
            clock = clock_of(state)
            seconds = 60 * (clock["minutes"] or math.inf) - clock["spent"]
            self.advance = self.stack.enter_context(
                progress(self.label, state.max_steps, seconds))
            self.advance(state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.advance(1, note=self.progress_note)
        if control.should_save:
            self._check_weights(model, f"after step {state.global_step}; the run is stopped and "
                                       "they are not saved. Lower the learning rate")

    def on_save(self, args, state, control, **kwargs):
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            checkpoints.mark_complete(folder / f"checkpoint-{state.global_step}")
            if self.save_total_limit > 0:
                checkpoints.rotate(folder, self.save_total_limit)

    def on_train_end(self, args, state, control, **kwargs):
        self.stack.close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        values = {key: float(value) for key, value in (logs or {}).items() if _is_number(value)}
        for key in ("loss", "grad_norm", "eval_loss"):
            if not math.isfinite(values.get(key, 0.0)):
                self.stop(f"{key} is {values[key]} at step {state.global_step}; the run is stopped "
                          "and not saved. Lower the learning rate, or check that step's rows")
        if self.zero_loss_is_wrong and values.get("loss") == 0.0:
            self.stop(f"the loss is exactly 0 at step {state.global_step}; no token is trained "
                      "(check the loss mask and precision)")
        if state.is_world_process_zero:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **values}) + "\n")
        shown = ("loss", "reward", "completions/mean_length")
        self.progress_note = " ".join(f"{key.split('/')[-1]} {values[key]:.3g}"
                                      for key in shown if key in values)

    def stop(self, sentence: str) -> None:
        """Close the progress bar and raise a UserError."""
        self.stack.close()
        raise UserError(f"{self.label}: {sentence}")

    def _check_weights(self, model: Any, sentence: str) -> None:
        if name := non_finite_weight(model):
            self.stop(f"weights {name} are not finite {sentence}")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
