"""Callbacks that end a run or a phase before its last step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pipeline.config.rl import Phase
from pipeline.errors import UserError
from pipeline.rl.rewards import REWARDS
from pipeline.train.log import read_log

TRUNCATED = "completions/clipped_ratio"


def deciding(weights: Mapping[str, float]) -> list[str]:
    """The rewards without which nothing is learned: accuracy, else the user's own and process's.

    `weights` are those of the run by their logged names; what weighs nothing only watches. The
    other rewards shape what is written, and may well be the same for all.
    """
    weighty = [name for name, weight in weights.items() if weight]
    own = [name for name in weighty if name not in REWARDS or name == "process"]
    return ["accuracy"] if "accuracy" in weighty else own


class StopOnZeroReward(TrainerCallback):
    """Stops a run in whose first `patience` steps none of the rewards `names` ever came.

    Accuracy comes when a completion is right, any other when it is not the same for all.
    """

    def __init__(self, patience: int, names: Sequence[str] = ("accuracy",)):
        self.patience, self.names, self.seen = patience, names, False
        self.first: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        for logs in state.log_history:    # of a resumed run
            self._look(logs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._look(logs or {})
        if self.names and not self.seen and state.global_step >= self.patience:
            raise UserError(self._sentence(state.global_step))

    def _look(self, logs: Mapping[str, Any]) -> None:
        for name in self.names:
            mean, spread = (math.nan if logs.get(f"rewards/{name}/{part}") is None else
                            float(logs[f"rewards/{name}/{part}"]) for part in ("mean", "std"))
            if not math.isnan(mean):
                first = 0.0 if name == "accuracy" else self.first.setdefault(name, mean)
                self.seen |= mean > 0 if name == "accuracy" else spread > 0 or mean != first

    def _sentence(self, steps: int) -> str:
        if list(self.names) == ["accuracy"]:
            return (f"rl: no completion was right in the first {steps} steps, so GRPO has nothing "
                    "to learn from; start from an SFT checkpoint, take easier problems, or raise "
                    "rl.trainer.max_completion_length")
        said = ", ".join(f"{name} ({self.first[name]:g})" if name in self.first else
                         f"{name} (undecided)" for name in self.names)
        return (f"rl: the same reward came for every completion of the first {steps} steps: {said}"
                ", so GRPO has nothing to learn from; look at what the function returns for the "
                "completions that rl.keep_completions=1 keeps, or take easier problems")


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
