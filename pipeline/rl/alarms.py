"""Warnings that refinement may be going wrong, each one sentence, read from its log.

No alarm stops a run: it says where to look.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from operator import sub
from pathlib import Path
from statistics import pstdev
from typing import Any

from transformers import TrainerCallback

from pipeline.config.rl import Alarms
from pipeline.train.log import read_lines, read_log, write_lines

Log = Sequence[Mapping[str, float]]
# Standard deviations: the best of many means lies two or three above the others by chance.
FALL_SIGMAS = 5.0
REPLACED_LIMIT = 0.05
LEVELS = (
    ("kl", "kl", 1, "the KL divergence from the reference model is {value:.3g} nats a token (over "
     "{limit:g}); lower the learning rate or raise rl.trainer.beta"),
    ("entropy", "entropy", -1, "the entropy of the next token is {value:.3g} nats (under {limit:g})"
     ", so samples hardly differ; raise the temperature or rl.trainer.epsilon_high"),
    ("clip_ratio", "clip_ratio/region_mean", 1, "the loss clips {value:.0%} of the tokens (over "
     "{limit:.0%}), so updates are too large for these samples; lower the learning rate or "
     "rl.trainer.num_iterations"),
    ("cut_off", "completions/clipped_ratio", 1, "{value:.0%} of the completions reach the length "
     "limit (over {limit:.0%}); raise rl.trainer.max_completion_length or add a phase"),
    ("zero_variance", "frac_reward_zero_std", 1, "in {value:.0%} of the groups every sample earns "
     "the same reward (over {limit:.0%}), so nothing is learned from them; set rl.difficulty or "
     "rl.dynamic_sampling"),
    ("reward_std", "reward_std", -1, "the reward hardly varies: its standard deviation is "
     "{value:.3g} (under {limit:g}); take problems of another difficulty"),
    ("undecided", "judge/undecided", 1, "the judge cannot decide {value:.0%} of the answers (over "
     "{limit:.0%}), which earn 0; read samples, the student may write what nobody can grade"),
    ("restated", "judge/restated", 1, "{value:.0%} of the answers only repeat the problem's "
     "formula (over {limit:.0%}) and earn 0; read samples"),
    ("many_boxes", "judge/many_boxes", 1, "{value:.0%} of the responses have more than two boxes "
     "(over {limit:.0%}); the student may be hedging, so read samples"),
)
CHANGES = (
    ("longer", 1, "completions are {value:.3g} times as long as at the start (over {limit:g}); "
     "read some for rambling, and consider the overlong reward"),
    ("shorter", -1, "completions are {value:.3g} times as long as at the start (under {limit:g}); "
     "read some to see whether they still reason"),
)


def crossings(log: Log, limits: Alarms) -> dict[str, str]:
    """{kind: sentence} of the thresholds crossed by the means of the last `window` log rows."""
    found = {}
    for kind, key, sign, sentence in LEVELS:
        _, last = _first_and_last_mean(log, key, limits.window)
        found[kind] = _beyond(last, getattr(limits, kind), sign, sentence)
    first, last = _first_and_last_mean(log, "completions/mean_length", limits.window)
    ratio = last / first if first else math.nan
    for kind, sign, sentence in CHANGES:
        found[kind] = _beyond(ratio, getattr(limits, kind), sign, sentence)
    found["falling"] = _falling(log, limits)
    found["hacking"] = _hacking(log, limits)
    found["memory"] = _memory(log, limits)
    found["constant"] = _constant(log, limits)
    epochs = max(_values(log, "epoch"), default=math.nan)
    found["epochs"] = _beyond(epochs, limits.epochs, 1, "problems are asked again (epoch "
                              "{value:.3g}, over {limit:g}), which rewards memory too; take more "
                              "problems (prepare.problems), or fewer steps")
    return {kind: sentence for kind, sentence in found.items() if sentence}


def _constant(log: Log, limits: Alarms) -> str:
    """Whether a reward of this run has long been the same for every completion."""
    rows = log[-limits.window:]
    names = [key.split("/")[1] for key in (rows[-1] if rows else ())
             if key.startswith("rewards/") and key.endswith("/std")]
    if limits.constant is None or len(rows) < limits.window:
        return ""
    for name in names:
        spreads, means = (_values(rows, f"rewards/{name}/{part}") for part in ("std", "mean"))
        if len(spreads) == len(rows) and max(spreads) <= limits.constant and len(set(means)) == 1:
            return (f"the reward {name} was {means[0]:.3g} for every completion of "
                    f"{limits.window} logged steps, so it teaches nothing; look at what it "
                    "returns, or leave it out of rl.rewards")
    return ""


def _memory(log: Log, limits: Alarms) -> str:
    """Whether problems asked again have gained more than held-out ones since the first epoch."""
    again, first = (_first_and_last_mean(log, f"asked_again/{name}", limits.window)[1]
                    for name in ("accuracy", "first"))
    epoch = sum(row.get("epoch", 0.0) <= 1 for row in log)
    before, after = (_values(rows, "heldout/accuracy") for rows in (log[:epoch], log[epoch:]))
    if limits.memory is None or not before or len(after) < 2:
        return ""
    then, now = sum(before) / len(before), sum(after[-2:]) / 2
    if not (again - first) - (now - then) > limits.memory:
        return ""
    return (f"{again:.1%} are right of problems asked before, {first:.1%} when they were new, "
            f"while held-out accuracy went from {then:.1%} to {now:.1%}; the student remembers "
            "answers, so take more problems or stop earlier")


def _values(log: Log, key: str) -> list[float]:
    return [row[key] for row in log if math.isfinite(row.get(key, math.nan))]


def _first_and_last_mean(log: Log, key: str, window: int) -> tuple[float, float]:
    """Means of the first and of the last `window` values of `key`; NaN if there are fewer."""
    values = _values(log, key)
    if len(values) < window:
        return math.nan, math.nan
    return sum(values[:window]) / window, sum(values[-window:]) / window


def _beyond(value: float, limit: float | None, sign: int, sentence: str) -> str:
    crossed = limit is not None and sign * value > sign * limit
    return sentence.format(value=value, limit=limit) if crossed else ""


def _falling(log: Log, limits: Alarms) -> str:
    """Whether the reward has fallen from its best mean by more than its noise explains."""
    rewards, window = _values(log, "reward"), limits.window
    means = [sum(rewards[end - window:end]) / window for end in range(window, len(rewards) + 1)]
    best = max(means, default=0.0)
    # Other problems earn another reward.
    replaced = max(_values(log, "difficulty/replaced"), default=0.0) > REPLACED_LIMIT
    if limits.falling is None or replaced or best <= 0 or means[-1] >= (1 - limits.falling) * best:
        return ""
    noise = pstdev(map(sub, rewards[1:], rewards)) / window ** 0.5      # of two means' difference
    if best - means[-1] < FALL_SIGMAS * noise:
        return ""
    return (f"the reward has fallen from {best:.3g} to {means[-1]:.3g} (by more than "
            f"{limits.falling:.0%}); the policy is collapsing, so lower the learning rate")


def _hacking(log: Log, limits: Alarms) -> str:
    """Whether the reward rises but accuracy (held-out, if measured) does not: Goodhart's law."""
    first, last = _first_and_last_mean(log, "reward", limits.window)
    if limits.hacking is None or not last - first > limits.hacking:
        return ""
    name, held_out = "held-out", _values(log, "heldout/accuracy")
    if len(held_out) < 3:
        name = "training"
        before, now = _first_and_last_mean(log, "rewards/accuracy/mean", limits.window)
    else:
        before, now = held_out[0], sum(held_out[-2:]) / 2
    return "" if not now <= before else (
        f"the reward rose from {first:.3g} to {last:.3g} while {name} accuracy went from "
        f"{before:.1%} to {now:.1%}; the student may be gaming the reward, so read samples")


class AlarmLogger(TrainerCallback):
    """Prints each alarm once a run and writes it to alarms.jsonl of `out`.

    `folder` holds the phase's log; `steps_before` counts the steps of earlier phases.
    """

    def __init__(self, limits: Alarms, folder: Path, out: Path, steps_before: int):
        self.limits, self.folder, self.steps_before = limits, folder, steps_before
        self.path = out / "alarms.jsonl"
        self.log: list[dict[str, float]] = []
        self.alarms: list[dict[str, Any]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.log = read_log(self.folder)
        self.alarms = [row for row in read_lines(self.path)
                       if row["step"] <= self.steps_before + state.global_step]
        self._write(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.log.append({k: float(v) for k, v in (logs or {}).items() if v is not None})
        for kind, sentence in crossings(self.log, self.limits).items():
            if kind not in {row["kind"] for row in self.alarms}:
                step = self.steps_before + state.global_step
                self.alarms.append({"step": step, "kind": kind, "alarm": sentence})
                self._write(state)
                if state.is_world_process_zero:
                    print(f"rl: step {step}: {sentence}", file=sys.stderr)

    def _write(self, state: Any) -> None:
        if state.is_world_process_zero and (self.alarms or self.path.is_file()):
            write_lines(self.path, self.alarms)
