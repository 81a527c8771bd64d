"""Signs that refinement is going wrong, read from its log: each crossing is one plain sentence.

Nothing here stops a run: a threshold is a place to look, not a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import sub
from statistics import pstdev

from pipeline.config.rl import Alarms

Log = Sequence[Mapping[str, float]]
FAR = 5.0
"""Standard deviations; the best of many means lies two or three above the others by chance."""
LEVELS = (
    ("kl", "kl", 1, "the KL divergence from the reference model is {value:.3g} nats a token (over "
     "{limit:g}); lower the learning rate or raise rl.trainer.beta"),
    ("entropy", "entropy", -1, "the entropy of the next token is {value:.3g} nats (under {limit:g})"
     ", so samples hardly differ any more; raise the temperature or rl.trainer.epsilon_high"),
    ("clip_ratio", "clip_ratio/region_mean", 1, "the loss clips {value:.0%} of the tokens (over "
     "{limit:.0%}), so updates go further than samples reach; lower the learning rate or "
     "rl.trainer.num_iterations"),
    ("cut_off", "completions/clipped_ratio", 1, "{value:.0%} of the completions reach the length "
     "limit (over {limit:.0%}); raise rl.trainer.max_completion_length or add a phase"),
    ("zero_variance", "frac_reward_zero_std", 1, "in {value:.0%} of the groups every sample earns "
     "the same (over {limit:.0%}), which teaches nothing; set rl.difficulty or "
     "rl.dynamic_sampling"),
    ("reward_std", "reward_std", -1, "the reward hardly varies any more: its standard deviation is "
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
     "look whether they ramble, and at the overlong reward"),
    ("shorter", -1, "completions are {value:.3g} times as long as at the start (under {limit:g}); "
     "look whether they still reason"),
)


def crossings(log: Log, limits: Alarms) -> dict[str, str]:
    """{kind: sentence} of the thresholds that the end of `log` (rows in order) lies beyond.

    A mean over fewer than `window` rows crosses nothing.
    """
    found = {}
    for kind, key, sign, sentence in LEVELS:
        found[kind] = _beyond(_ends(log, key, limits.window)[1], getattr(limits, kind), sign,
                              sentence)
    first, last = _ends(log, "completions/mean_length", limits.window)
    ratio = last / first if first else math.nan
    for kind, sign, sentence in CHANGES:
        found[kind] = _beyond(ratio, getattr(limits, kind), sign, sentence)
    found["falling"] = _falling(log, limits)
    found["hacking"] = _hacking(log, limits)
    return {kind: sentence for kind, sentence in found.items() if sentence}


def _values(log: Log, key: str) -> list[float]:
    return [row[key] for row in log if math.isfinite(row.get(key, math.nan))]


def _ends(log: Log, key: str, window: int) -> tuple[float, float]:
    """Mean of the first and of the last `window` values of `key`; NaN where there are fewer."""
    values = _values(log, key)
    if len(values) < window:
        return math.nan, math.nan
    return sum(values[:window]) / window, sum(values[-window:]) / window


def _beyond(value: float, limit: float | None, sign: int, sentence: str) -> str:
    crossed = limit is not None and sign * value > sign * limit
    return sentence.format(value=value, limit=limit) if crossed else ""


def _falling(log: Log, limits: Alarms) -> str:
    """The reward loses again what it had, beyond what its noise from step to step explains."""
    rewards, window = _values(log, "reward"), limits.window
    means = [sum(rewards[end - window:end]) / window for end in range(window, len(rewards) + 1)]
    best = max(means, default=0.0)
    others = max(_values(log, "difficulty/replaced"), default=0.0) > 0.05
    if limits.falling is None or others or best <= 0 or means[-1] >= (1 - limits.falling) * best:
        return ""
    noise = pstdev(map(sub, rewards[1:], rewards)) / window ** 0.5      # of two means' difference
    if best - means[-1] < FAR * noise:
        return ""
    return (f"the reward has fallen from {best:.3g} to {means[-1]:.3g} (by more than "
            f"{limits.falling:.0%}); the policy is breaking down, so lower the learning rate")


def _hacking(log: Log, limits: Alarms) -> str:
    """The reward rises and accuracy, held-out where it is known, does not: Goodhart's law."""
    first, last = _ends(log, "reward", limits.window)
    if limits.hacking is None or not last - first > limits.hacking:
        return ""
    name, held_out = "held-out", _values(log, "heldout/accuracy")
    if len(held_out) < 3:
        name, (before, now) = "training", _ends(log, "rewards/accuracy/mean", limits.window)
    else:
        before, now = held_out[0], sum(held_out[-2:]) / 2
    return "" if not now <= before else (
        f"the reward rose from {first:.3g} to {last:.3g} while {name} accuracy went from "
        f"{before:.1%} to {now:.1%}; the student may be gaming the reward, so read samples")
