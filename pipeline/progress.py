"""Progress with rate and time left: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

SECONDS = 60.0
"""Between two lines where standard error is no terminal."""


@contextmanager
def progress(label: str, total: float | None, seconds: float = math.inf
             ) -> Iterator[Callable[..., None]]:
    """Yield `advance(steps, note="")`, which shows the steps done so far on standard error.

    The work ends after `total` steps or `seconds`, whichever comes first; the time left says so.
    """
    end = time.monotonic() + seconds
    if not sys.stderr.isatty():
        yield Lines(label, total, end)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"),
               TextColumn("{task.fields[left]}"), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, note="", rate="", left="-:--:--")

        def advance(steps: float = 1, note: str = "") -> None:
            speed = bar.tasks[task].speed or 0
            bar.update(task, advance=steps, note=note, rate=f"{speed:,.1f}/s")
            if speed:
                bar.update(task, left=_time_left(bar.tasks[task].remaining, speed, end))

        yield advance


class Lines:
    """Prints a line a minute, if there is anything new to say."""

    def __init__(self, label: str, total: float | None, end: float):
        self.label, self.total, self.end, self.done = label, total, end, 0.0
        self.printed: tuple[float, float] | None = None
        """(time, steps done) at the last line."""

    def __call__(self, steps: float = 1, note: str = "") -> None:
        self.done += steps
        now = time.monotonic()
        if self.printed is None:        # the first call may count the steps of an earlier run
            self.printed = now, self.done
        since, before = self.printed
        if now - since < SECONDS or self.done == before:
            return
        rate = (self.done - before) / (now - since)
        print(self._line(rate) + (f", {note}" if note else ""), file=sys.stderr, flush=True)
        self.printed = now, self.done

    def _line(self, rate: float) -> str:
        shown = f"{rate:,.1f}/s" if rate >= 1 else f"{60 * rate:,.1f}/min"
        if self.total is None:
            return f"{self.label}: {self.done:,.0f}, {shown}"
        left = _time_left(self.total - self.done, rate, self.end)
        return f"{self.label}: {self.done:,.0f}/{self.total:,.0f}, {shown}, {left} left"


def _time_left(steps: float | None, rate: float, end: float) -> timedelta | str:
    seconds = min(math.inf if steps is None else steps / rate, end - time.monotonic())
    return "-:--:--" if math.isinf(seconds) else timedelta(seconds=round(max(0.0, seconds)))


def quiet_libraries() -> None:
    """Turn off the bars and warnings of transformers and datasets; ours say what matters."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
