"""The process that may be killed: reads one JSON request a line, answers one JSON line.

Started as `python -m pipeline.verify.worker MEGABYTES`; holds no secret and imports no torch. It
dies with its parent (end of its input, and Linux' parent-death signal).
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any, TextIO


def main() -> None:
    """Serve requests until standard input ends. Standard output is the reply channel alone."""
    size = int(sys.argv[1]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _die_with_parent()
    replies, sys.stdout = sys.stdout, sys.stderr
    from pipeline.verify import engine

    _reply(replies, {"ready": True})
    tasks = {"math": engine.same, "gym": engine.gym_score, "sleep": engine.sleep}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = {"value": tasks[request["task"]](*request["arguments"])}
        except MemoryError:
            _reply(replies, {"error": "memory"})
            return
        except (ArithmeticError, AttributeError, AssertionError, LookupError, NotImplementedError,
                RecursionError, RuntimeError, TypeError, ValueError) as error:
            result = {"error": type(error).__name__}
        _reply(replies, result)


def _reply(stream: TextIO, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _die_with_parent() -> None:
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


if __name__ == "__main__":
    main()
