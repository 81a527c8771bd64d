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

STOP_SECONDS = 45.0
STOP_SIGNALS = tuple(getattr(signal, name) for name in (
    "SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name))
"""What a user, a closed terminal or a batch system (before its time limit) stops a run by."""


def is_first() -> bool:
    """Whether this process is the one that writes files, if no trainer is there to ask."""
    return os.environ.get("RANK", "0") == "0"


def gpu_count() -> int:
    """GPUs this process may use, without asking torch."""
    return len(visible_gpus())


def visible_gpus() -> list[str]:
    """GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
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
    """Run `command` in a process group that ends with the block, or with this process."""
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                          start_new_session=True, preexec_fn=die_with_parent,
                          **streams) as process:
        try:
            yield process
        finally:
            # SIGTERM first: a launcher passes it on to processes in groups of their own.
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies, even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)       # PR_SET_PDEATHSIG


def free_port(address: str = "127.0.0.1") -> int:
    """A port of this host's `address` on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]
