"""A user's own reward: `path/to/file.py:function`, called as TRL calls a reward function.

Whatever the user's file raises becomes one sentence that names the function and the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from runpy import run_path
from traceback import extract_tb
from typing import Any

from pipeline.errors import UserError
from pipeline.stage import file_digest

Reward = Callable[..., list[float | None]]
"""A reward function as TRL calls it: a value, or None (undecided), for each completion."""


class UserCodeErrors:
    """Turns an exception of the user's `file` into a UserError: `what`, the error, its line."""

    def __init__(self, what: str, file: str):
        self.what, self.file = what, file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception | SystemExit):   # Ctrl-C passes through
            return
        lines = [frame.lineno for frame in extract_tb(trace) if frame.filename == self.file]
        where = f" in line {lines[-1]}" if lines else ""
        message = " ".join(str(error).split())
        raise UserError(f"rl.rewards: {self.what}: {type(error).__name__}{where}: {message:.300}; "
                        "fix the file") from error


@cache     # by the digest, so that an edited file runs again
def _run_file(file: str, digest: str) -> dict[str, Any]:
    with UserCodeErrors(f"{file} cannot be imported", file):
        return run_path(file)


def _function(key: str) -> Callable[..., Any]:
    """The function that `key` names; raises UserError if TRL could not call it."""
    from inspect import signature

    from pipeline.tables import Problem

    file, _, name = key.rpartition(":")
    defined = _run_file(file, file_digest(Path(file)))
    if name not in defined:
        raise UserError(f"rl.rewards: {file} defines no {name!r}; fix the name after the colon")
    if not callable(defined[name]):
        raise UserError(f"rl.rewards: {name!r} of {file} is of type {type(defined[name]).__name__} "
                        "and cannot be called; name a function")
    arguments = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra",
                 "log_metric", *Problem.column_names())
    with UserCodeErrors(f"{key} cannot be called with {', '.join(arguments)}", file):
        signature(defined[name]).bind(**dict.fromkeys(arguments))
    return defined[name]


def load_user_reward(key: str) -> tuple[str, Reward]:
    """(function name, TRL reward function) of `file.py:function`, which may be async.

    Raises UserError if there is no such function or TRL could not call it; the reward raises it if
    the function fails or returns anything but one finite number, NaN or None per completion.
    """
    import asyncio
    from inspect import iscoroutine

    function, (file, _, name) = _function(key), key.rpartition(":")
    runner = asyncio.Runner()       # one event loop for all calls, as in TRL

    def reward(completions: list[Any], **columns: Any) -> list[float | None]:
        with UserCodeErrors(f"{key} failed", file):
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
