"""The teacher: asked once for every trace, at the speed the endpoint allows."""

from typing import Any

_MODULES = {"generate": "scheduler", "Outcome": "outcome", "Request": "request",
         "TraceStore": "store"}


def __getattr__(name: str) -> Any:
    """Import the package's names at first use, since they load heavy libraries."""
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module 'pipeline.teacher' has no attribute {name!r}")
    return getattr(import_module(f"pipeline.teacher.{_MODULES[name]}"), name)
