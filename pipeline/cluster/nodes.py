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
ACCELERATE = ("-m", "accelerate.commands.launch")
# A node's rank is known on the node alone.
ON_NODE = f'exec "$0" {" ".join(ACCELERATE)} --machine_rank "$SLURM_NODEID" "$@"'


def node_count() -> int:
    """Nodes of the Slurm allocation that this process runs in; 1 outside."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))


def spans_nodes(options: Mapping[str, Any]) -> bool:
    """Whether accelerate's `options` are to be started on every node of an allocation."""
    return bool(options) and node_count() > 1 and "machine_rank" not in options


def accelerate_flags(options: Mapping[str, Any]) -> list[str]:
    """Return `options` as arguments of `accelerate launch`; a switch is true."""
    flags = []
    for name, value in options.items():
        if value is True:
            flags.append(f"--{name}")
        elif value is not False and value is not None:
            flags += [f"--{name}", str(value)]
    return flags


def over_nodes(options: Mapping[str, Any], nodes: int, gpus: int, address: str,
               port: int) -> dict[str, Any]:
    """Add machines, processes of all nodes and the first one's address to accelerate's options.

    `gpus` are those of a node, `port` a free one of the first.
    """
    # Without one of these accelerate starts processes that do not know of each other.
    kind = {} if ENGINES & set(options) else {"multi_gpu": True}
    # DeepSpeed's own way to other nodes is ssh; each of these starts its processes itself.
    more = {"deepspeed_multinode_launcher": "standard"} if options.get("use_deepspeed") else {}
    return {"num_processes": nodes * max(1, gpus), **kind, **more, **options,
            "num_machines": nodes, "main_process_ip": address,
            "main_process_port": options.get("main_process_port") or port}


def over_allocation(options: Mapping[str, Any]) -> dict[str, Any]:
    """Add to accelerate's options what the nodes of a Slurm allocation need."""
    return over_nodes(options, node_count(), gpu_count(), _hosts()[0], free_port())


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
