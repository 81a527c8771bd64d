"""Ends a training run that is asked to stop (Ctrl-C, SIGTERM, SIGUSR1) by a checkpoint.

The step that runs is finished and saved, so the same command goes on from it.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

from pipeline.serving.processes import STOP_SIGNALS

STOP_FILE = "LIMBECK_STOP_FILE"
"""Environment variable that names the file by which a launched process is asked to stop."""


class StopRequest:
    """Notes a stop signal while it is open; a second Ctrl-C, a second later, ends at once."""

    # A file, because a launcher that is sent a signal kills what it launched within seconds.
    def __init__(self, file: str | None = None):
        self.file = Path(file) if file else None
        self.noted: float | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if current_thread() is main_thread():       # Python hands signals to no other
            self.before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS
                           if number != signal.SIGHUP or not _ignored(number)}     # nohup
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.asked() and self._seconds() > 1:
            raise KeyboardInterrupt
        self.noted = self.noted or time.monotonic()
        if self.file:
            self.file.touch()

    def _seconds(self) -> float:
        """Seconds since this process noted a signal; a request by file alone is older."""
        return time.monotonic() - self.noted if self.noted else 2.0

    def asked(self) -> bool:
        """Whether a signal came, to this process or to the one that launched it."""
        return self.noted is not None or (self.file is not None and self.file.exists())


def _ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def passed_on(shared: Path) -> Iterator[tuple[StopRequest, dict[str, str]]]:
    """Yield (request, environment) that pass this process's stop signals to launched ones.

    Those may run on other nodes, which see the folder `shared`.
    """
    with tempfile.TemporaryDirectory(prefix=".stop-", dir=shared.resolve()) as folder:
        file = f"{folder}/stop"
        with StopRequest(file) as request:
            yield request, {STOP_FILE: file}


class SaveAndStop(TrainerCallback):
    """Saves and ends training after a step in which any process was asked to stop."""

    def __init__(self, request: StopRequest):
        self.request, self.stopped = request, False

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_training_stop or not any(gather_object([self.request.asked()])):
            return
        self.stopped = control.should_save = control.should_training_stop = True


def launched_request() -> StopRequest:
    """The request that this process was launched with, or one of its own."""
    return StopRequest(os.environ.get(STOP_FILE))
