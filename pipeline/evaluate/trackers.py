"""Reports an evaluation's scores to the trackers of runtime.trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from pipeline.errors import UserError

PROJECT = "limbeck"


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError if a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"runtime.trackers names {name}, which is not installed; pip install "
                            f"{name}, or remove it")


def report_scores(names: Sequence[str], run: str, scores: Mapping[str, Any],
                  config: Mapping[str, Any]) -> None:
    """Log every number of scores.json as MODEL/BENCHMARK/NAME to each tracker."""
    numbers = dict(_flat(scores, ()))
    for name in names:
        # Both have the same three functions.
        tracker = import_module(name)
        tracker.init(project=PROJECT, name=f"{run} evaluate", config=dict(config))
        tracker.log(numbers)
        tracker.finish()


def _flat(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, (*path, str(key)))
    elif isinstance(node, list | tuple):
        yield from _flat(dict(zip(("mean", "low", "high"), node, strict=False)), path)
    else:
        yield "/".join(path), node
