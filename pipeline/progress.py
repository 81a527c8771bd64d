"""Progress bars with rate and time left, on a terminal; silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(label: str, total: float | None) -> Iterator[Callable[..., None]]:
    """Yield `advance(steps, note="")`; the bar shows only where standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda steps=1, note="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, note="", rate="")

        def advance(steps: float = 1, note: str = "") -> None:
            speed = bar.tasks[task].speed or 0
            bar.update(task, advance=steps, note=note, rate=f"{speed:,.1f}/s")

        yield advance


def quiet_libraries() -> None:
    """Turn off the bars and warnings of transformers and datasets; ours say what matters."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
