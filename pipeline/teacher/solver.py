"""The solver teacher: a program that solves countdown by search and narrates it as reasoning.

It starts anywhere in the list of combinations, goes through it in order, checks each against the
target, and says so. Its patience is drawn per trace: out of tries, it guesses one that it has not
tried. Now and then a sum slips. So a known share of its traces is wrong, and rejection sampling
has work to do. What is kept are short searches and a few lucky guesses, as of any teacher whose
answers alone are checked; a student that learns to go on searching can pass it.
"""

import random
import re
from collections.abc import Sequence

from pydantic import Field

from pipeline.config import Config
from pipeline.countdown import Try, tries


class SolverOptions(Config):
    """How the solver teacher searches and errs."""

    patience: dict[int, float] = Field(default={4: 0.5, 10: 0.5}, min_length=1)
    """Tries before it gives up: {tries: weight}; one is drawn for every trace."""
    slip: float = Field(default=0.01, ge=0, le=1)
    """Chance that a try's last sum is narrated wrong."""


def narrate(messages: Sequence[dict], seed: int,
            options: SolverOptions | None = None) -> tuple[str, str]:
    """(thinking, answer) for the last user message; the same seed gives the same trace."""
    options = options or SolverOptions()
    rng = random.Random(f"{seed}:{messages[-1]['content']}")
    *numbers, target = _read(messages[-1]["content"])
    candidates = tries((numbers[0], numbers[1], numbers[2]))
    start = rng.randrange(len(candidates))
    candidates = candidates[start:] + candidates[:start]
    budget = rng.choices(list(options.patience), list(options.patience.values()))[0]
    said = []
    for attempt in candidates[:budget]:
        seen = _maybe_slip(attempt, options.slip, rng)
        said.append(f"{attempt.first}, then {attempt.second.partition('=')[0]}={seen} "
                    f"against {target}: ")
        if seen == target:
            break
        said.append("too low. Wait, try " if seen < target else "too high. Wait, try ")
    if seen != target:
        attempt = rng.choice(candidates[budget:] or candidates)
        said[-1] = said[-1].replace("Wait, try ", "Out of patience, so a guess.")
    thinking = "Try " + "".join(said) + ("yes." if seen == target else "")
    return thinking, f"\\boxed{{{attempt.expression}}}"


def _maybe_slip(attempt: Try, slip: float, rng: random.Random) -> int:
    if rng.random() >= slip:
        return attempt.value
    return max(0, attempt.value + rng.choice((-10, -2, -1, 1, 2, 10)))


def _read(text: str) -> list[int]:
    """Three numbers and the target, in the order in which the problem text gives them."""
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if len(numbers) != 4:
        raise ValueError("the solver teacher only solves countdown with three numbers and a target")
    return numbers
