"""One node's part of training: an actor that starts accelerate there, and ends what it started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.cluster.ray_nodes import check_same_code, check_sees
from pipeline.serving.processes import free_port, process_group

END_SECONDS = 30.0
"""For the kernel to take killed processes away."""
LINES = 15
LAUNCHER = "torch/distributed/elastic/multiprocessing/api.py"
"""In the first line of torch's launcher when a process has failed; its own traceback follows."""


class TrainNode:
    """An actor of two threads: one waits for the training processes, the other ends them."""

    def prepare(self, address: str, digest: str, seen: Sequence[Path],
                arguments: Sequence[str]) -> int:
        """Kill what an earlier attempt at `arguments` left here; returns a free port.

        Raises UserError if this node has other code than `digest` or does not see one of `seen`.
        """
        check_same_code(digest)
        for path in seen:
            check_sees(path)
        # A node that was lost to the cluster may still run, and its processes wait for the others.
        left = [one for one in psutil.process_iter(["cmdline"])
                if set(arguments) <= set(one.info["cmdline"] or ())]
        kill(left)
        return free_port(address)

    def run(self, line: Sequence[str], address: str, environment: Mapping[str, str],
            folder: Path, log: Path) -> tuple[int, list[str]]:
        """Run `python line` in `folder`; returns its exit code and last lines, kept in `log`."""
        # TRL tells a server that it sends weights to the address which vLLM has of this node.
        settings = {"VLLM_HOST_IP": address, **gloo_interface(address), **os.environ, **environment}
        with log.open("ab") as sink, process_group(
                [sys.executable, *line], settings, cwd=folder, stdout=sink,
                stderr=subprocess.STDOUT) as process:
            start = sink.tell()
            code = process.wait()
        return code, last_lines(log, start)

    def end(self) -> None:
        """Kill what `run` started, at once: its peers wait for nothing more from it."""
        kill(psutil.Process().children(recursive=True))


def last_lines(log: Path, start: int) -> list[str]:
    """The last lines after byte `start` of `log`, without what torch's launcher says of failures.
    """
    with log.open("rb") as file:
        file.seek(start)
        said = file.read().decode("utf-8", errors="replace")
    return said.partition(LAUNCHER)[0].splitlines()[:-1 if LAUNCHER in said else None][-LINES:]


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill `processes` and wait until they hold nothing, such as memory of a GPU."""
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(processes, END_SECONDS)


def gloo_interface(address: str) -> dict[str, str]:
    """The setting of gloo that takes the network interface of `address`; none if it has none."""
    # Else gloo takes the one of the host's name, which on many a host is the loopback.
    names = [name for name, ones in psutil.net_if_addrs().items()
             if any(one.address == address for one in ones)]
    return {"GLOO_SOCKET_IFNAME": names[0]} if names else {}
