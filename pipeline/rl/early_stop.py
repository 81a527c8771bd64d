"""Callbacks that end a run or a phase before its last step."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pipeline.config.rl import Phase
from pipeline.errors import UserError
from pipeline.train.log import read_log

TRUNCATED = "completions/clipped_ratio"


class StopOnZeroReward(TrainerCallback):
    """Stops a run whose accuracy is 0 for its first `patience` steps: nothing can be learned."""

    def __init__(self, patience: int):
        self.patience, self.seen = patience, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen = any(map(self._any_right, state.log_history))    # of a resumed run

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen = self.seen or self._any_right(logs or {})
        if not self.seen and state.global_step >= self.patience:
            raise UserError(
                f"rl: no completion was right in the first {state.global_step} steps, so GRPO has "
                "nothing to learn from; start from an SFT checkpoint, take easier problems, or "
                "raise rl.trainer.max_completion_length")

    @staticmethod
    def _any_right(logs: Mapping[str, Any]) -> bool:
        return float(logs.get("rewards/accuracy/mean", 0) or 0) > 0


class EndPhaseOnTruncation(TrainerCallback):
    """Ends a phase whose completions are truncated too often, counting on from `folder`'s log."""

    def __init__(self, phase: Phase, folder: Path):
        self.limit, self.folder = phase.until_cut_off or 1.0, folder
        self.shares: deque[float] = deque(maxlen=phase.cut_off_steps)

    def on_train_begin(self, args, state, control, **kwargs):
        self.shares.extend(row[TRUNCATED] for row in read_log(self.folder) if TRUNCATED in row)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if TRUNCATED not in (logs or {}):
            return
        self.shares.append(logs[TRUNCATED])
        mean = sum(self.shares) / len(self.shares)
        if len(self.shares) == self.shares.maxlen and mean > self.limit:
            control.should_training_stop = True
            control.should_save = False     # a run resumed from here would train one step more
