"""A user's own reward: `path/to/file.py:function`, called as TRL calls a reward function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pipeline.errors import UserError
from pipeline.user_code import UserCodeErrors, user_function

Reward = Callable[..., list[float | None]]
"""A reward function as TRL calls it: a value, or None (undecided), for each completion."""


def load_function(key: str) -> Callable[..., Any]:
    """The function that `key` names; raises UserError if TRL could not call it."""
    from pipeline.tables import Problem

    arguments = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra",
                 "log_metric", *Problem.column_names())
    return user_function(key, "rl.rewards", **dict.fromkeys(arguments))


def load_user_reward(key: str) -> tuple[str, Reward]:
    """(function name, TRL reward function) of `file.py:function`, which may be async.

    Raises UserError if there is no such function or TRL could not call it; the reward raises it if
    the function fails or returns anything but one finite number, NaN or None per completion.
    """
    import asyncio
    from inspect import iscoroutine

    function, (file, _, name) = load_function(key), key.rpartition(":")
    runner = asyncio.Runner()       # one event loop for all calls, as in TRL

    def reward(completions: list[Any], **columns: Any) -> list[float | None]:
        with UserCodeErrors(f"rl.rewards: {key} failed", file):
            returned = function(completions=completions, **columns)
            values = [*map(_number, runner.run(returned) if iscoroutine(returned) else returned)]
        if len(values) != len(completions):
            raise UserError(f"rl.rewards: {key} returned {len(values)} values for "
                            f"{len(completions)} completions; it must return one for each")
        return values

    return name, reward


def _number(value: Any) -> float | None:
    """`value`, of Python, NumPy or torch; TypeError unless it is a finite number, NaN or None."""
    value = value.item() if hasattr(value, "item") else value
    if value is not None and (not isinstance(value, int | float) or math.isinf(value)):
        raise TypeError(f"it returned {value!r:.60}, which is neither a finite number nor None")
    return value
