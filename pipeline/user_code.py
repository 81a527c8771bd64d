"""Functions of the user's own files, named `path/to/file.py:function`.

Whatever such a file raises becomes one sentence that names the function and the line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from inspect import signature
from pathlib import Path
from runpy import run_path
from traceback import extract_tb
from typing import Any

from pipeline.errors import UserError
from pipeline.stage import file_digest


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
        raise UserError(f"{self.what}: {type(error).__name__}{where}: {message:.300}; "
                        "fix the file") from error


@cache     # by the digest, so that an edited file runs again
def _run_file(setting: str, file: str, digest: str) -> dict[str, Any]:
    with UserCodeErrors(f"{setting}: {file} cannot be imported", file):
        return run_path(file)


def user_files(keys: Iterable[str]) -> tuple[Path, ...]:
    """The files of those `keys` that name a function of one, each once."""
    return tuple(sorted({Path(key.rpartition(":")[0]) for key in keys if ":" in key}))


def user_function(key: str, setting: str, *arguments: str, **named: Any) -> Callable[..., Any]:
    """The function that `key` names.

    Raises UserError, which names the `setting`, if there is none or if it could not be called with
    these `arguments` by position and `named` ones by name.
    """
    file, _, name = key.rpartition(":")
    defined = _run_file(setting, file, file_digest(Path(file)))
    if name not in defined:
        raise UserError(f"{setting}: {file} defines no {name!r}; fix the name after the colon")
    if not callable(defined[name]):
        raise UserError(f"{setting}: {name!r} of {file} is of type {type(defined[name]).__name__} "
                        "and cannot be called; name a function")
    with UserCodeErrors(f"{setting}: {key} cannot be called with "
                        f"{', '.join([*arguments, *named])}", file):
        signature(defined[name]).bind(*arguments, **named)
    return defined[name]
