"""The teacher: asked once for every trace, at the speed the endpoint allows."""

from typing import Any

_HOME = {"generate": "scheduler", "Outcome": "outcome", "Request": "request",
         "TraceStore": "store"}


def __getattr__(name: str) -> Any:
    """The package's names, imported when first used: a config needs none of the libraries."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'pipeline.teacher' has no attribute {name!r}")
    return getattr(import_module(f"pipeline.teacher.{_HOME[name]}"), name)
