"""Starts accelerate on every node of a Slurm allocation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import UserError
from pipeline.serving.processes import free_port, gpu_count

ENGINES = {"multi_gpu", "use_fsdp", "use_deepspeed", "config_file"}
# A node's rank is known on the node alone.
ON_NODE = 'exec "$0" -m accelerate.commands.launch --machine_rank "$SLURM_NODEID" "$@"'


def node_count() -> int:
    """Nodes of the Slurm allocation that this process runs in; 1 outside."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))


def spans_nodes(options: Mapping[str, Any]) -> bool:
    """Whether accelerate's `options` are to be started on every node of an allocation."""
    return bool(options) and node_count() > 1 and "machine_rank" not in options


def over_nodes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Add machines, processes of all nodes and the address of the first to accelerate's options."""
    nodes = node_count()
    # Without one of these accelerate starts processes that do not know of each other.
    kind = {} if ENGINES & set(options) else {"multi_gpu": True}
    return {"num_processes": nodes * max(1, gpu_count()), **kind, **options, "num_machines": nodes,
            "main_process_ip": _hosts()[0],
            "main_process_port": options.get("main_process_port") or free_port()}


def _hosts() -> list[str]:
    listed = subprocess.run(["scontrol", "show", "hostnames"], text=True, capture_output=True,
                            check=False)
    if listed.returncode or not listed.stdout.split():
        raise UserError("scontrol names no hosts of this Slurm allocation "
                        f"({listed.stderr.strip()}); run inside a job of `limbeck submit`")
    return listed.stdout.split()


def srun(arguments: Sequence[str]) -> list[str]:
    """The command that starts `accelerate launch` with `arguments` once on each node.

    A node whose process fails ends the others, so the attempt ends and the job can go on anew.
    """
    nodes = node_count()
    return ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1",
            "--kill-on-bad-exit=1", "bash", "-c", ON_NODE, sys.executable, *arguments]
