"""A user's own reward: `path/to/file.py:function`, called as TRL calls a reward function.

The file is the user's, so whatever it raises is told in one sentence that names the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from runpy import run_path
from traceback import extract_tb
from typing import Any

from pipeline.errors import UserError
from pipeline.stage import file_digest


class UserCodeErrors:
    """Turns what the user's `file` raises into a UserError: `what`, the error and its line."""

    def __init__(self, what: str, file: str):
        self.what, self.file = what, file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception | SystemExit):   # Ctrl-C stays what it is
            return
        lines = [frame.lineno for frame in extract_tb(trace) if frame.filename == self.file]
        where = f" in line {lines[-1]}" if lines else ""
        said = " ".join(str(error).split())
        raise UserError(f"rl.rewards: {self.what}: {type(error).__name__}{where}: {said:.300}; "
                        "mend it") from error


def own_files(keys: Iterable[str]) -> tuple[Path, ...]:
    """The files that the keys of rl.rewards name; built-in rewards name none."""
    return tuple(sorted({Path(key.rpartition(":")[0]) for key in keys if ":" in key}))


@cache
def _defined(file: str, digest: str) -> dict[str, Any]:
    """What `file` defines; it runs once for each text that it holds."""
    with UserCodeErrors(f"{file} cannot be imported", file):
        return run_path(file)


def _function(key: str) -> Callable[..., Any]:
    """The function that `key` names; a UserError where there is none that TRL could call."""
    from inspect import signature

    from pipeline.tables import Problem

    file, _, name = key.rpartition(":")
    defined = _defined(file, file_digest(Path(file)))
    if name not in defined:
        raise UserError(f"rl.rewards: {file} defines no {name!r}; mend the name after the colon")
    if not callable(defined[name]):
        raise UserError(f"rl.rewards: {name!r} of {file} is of type {type(defined[name]).__name__} "
                        "and cannot be called; name a function")
    given = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra",
             "log_metric", *Problem.column_names())
    with UserCodeErrors(f"{key} cannot be called with {', '.join(given)}", file):
        signature(defined[name]).bind(**dict.fromkeys(given))
    return defined[name]


def own_reward(key: str) -> tuple[str, Callable[..., list[float | None]]]:
    """(function name, TRL reward function) of `file.py:function`, relative to the working folder.

    A UserError where there is no such function or TRL could not call it; when called, where it
    raises or returns anything but one finite number, NaN or None a completion. `async` functions
    are waited for.
    """
    import asyncio
    from inspect import iscoroutine

    function, (file, _, name) = _function(key), key.rpartition(":")
    runner = asyncio.Runner()       # one event loop for all calls, as TRL has

    def own(completions: list[Any], **columns: Any) -> list[float | None]:
        with UserCodeErrors(f"{key} failed", file):
            made = function(completions=completions, **columns)
            values = [*map(_number, runner.run(made) if iscoroutine(made) else made)]
        if len(values) != len(completions):
            raise UserError(f"rl.rewards: {key} returned {len(values)} values for "
                            f"{len(completions)} completions; it must return one for each")
        return values

    return name, own


def _number(value: Any) -> float | None:
    """`value`, which may be NumPy's or a tensor's; a TypeError where it is none to learn from."""
    value = value.item() if hasattr(value, "item") else value
    if value is not None and (not isinstance(value, int | float) or math.isinf(value)):
        raise TypeError(f"it returned {value!r:.60}, which is neither a finite number nor None")
    return value
