"""The process that may be killed: reads one JSON request a line, answers one JSON line.

Started as `python -m pipeline.verify.worker MEGABYTES`; holds no secret and imports no torch. It
ends with its input; an alarm ends it even in the midst of a task whose asker has died. (Linux'
parent-death signal would not do: it fires when the thread that started the worker ends.)
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO


def main() -> None:
    """Serve requests until standard input ends. Standard output is the reply channel alone."""
    size = int(sys.argv[1]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies, sys.stdout = sys.stdout, sys.stderr
    from pipeline.verify import engine

    _reply(replies, {"ready": engine.prepare()})
    tasks: dict[str, Callable[..., Any]] = {
        "math": engine.same, "gym": engine.gym_score, "sleep": engine.sleep,
        "allocate": engine.allocate}
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(int(request["seconds"]) + 3)
        try:
            result = {"value": tasks[request["task"]](*request["arguments"])}
        except MemoryError:
            _reply(replies, {"error": "memory"})
            return
        except (ArithmeticError, AttributeError, AssertionError, LookupError, NotImplementedError,
                RecursionError, RuntimeError, TypeError, ValueError) as error:
            result = {"error": type(error).__name__}
        signal.alarm(0)
        _reply(replies, result)


def _reply(stream: TextIO, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
