"""Process groups, free ports and visible GPUs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def is_first() -> bool:
    """Whether this process writes the job's files; for where no trainer is there to ask."""
    return os.environ.get("RANK", "0") == "0"


STOP_SECONDS = 45.0


def gpu_count() -> int:
    """GPUs this process may use, without asking torch."""
    return len(visible_gpus())


def visible_gpus() -> list[str]:
    """Their names as CUDA_VISIBLE_DEVICES takes them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return gpu_names(visible)
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return [str(index) for index in range(count)]


def gpu_names(gpus: str) -> list[str]:
    return [name.strip() for name in gpus.split(",") if name.strip() not in ("", "-1")]


@contextmanager
def process_group(command: list[str], environment: Mapping[str, str],
                  **streams: Any) -> Iterator[subprocess.Popen]:
    """`command` in a process group that ends with the block, and with this process if killed.

    SIGTERM comes first: a launcher hands it on to processes that lead groups of their own.
    """
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                          start_new_session=True, preexec_fn=die_with_parent,
                          **streams) as process:
        try:
            yield process
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)


def die_with_parent() -> None:
    """Linux: ask for SIGTERM when the parent dies, which a kill -9 of it cannot prevent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)       # PR_SET_PDEATHSIG


def free_port() -> int:
    """A port of this host on which nothing listened a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
