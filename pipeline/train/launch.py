"""Starts a training job in processes of its own, by `accelerate launch` on several GPUs or nodes.

Each process runs `python -m MODULE JOB.json`.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.cluster.nodes import (
    ACCELERATE,
    accelerate_flags,
    over_allocation,
    spans_nodes,
    srun,
)
from pipeline.cluster.ray_launch import machines, spans_cluster, train_on_nodes
from pipeline.cluster.rollout_node import RolloutServer
from pipeline.config.experiment import RayCluster
from pipeline.config.job import Job
from pipeline.errors import LackingError, StoppedError, UserError
from pipeline.serving.disk import DiskFullGuard
from pipeline.serving.processes import (
    free_port,
    gpu_count,
    is_first,
    process_group,
    visible_gpus,
)


def command(options: Mapping[str, Any], arguments: list[str]) -> list[str]:
    """Build the accelerate command line from `options`, or plain Python's without options."""
    if spans_nodes(options):
        return srun([*accelerate_flags(over_allocation(options)), *arguments])
    # accelerate's default is one port for every run of a host; a file or the nodes agree on theirs.
    theirs = "config_file" in options or machines(options) > 1
    port = {} if theirs else {"main_process_port": free_port()}
    start = [*ACCELERATE, *accelerate_flags({**port, **options})] if options else []
    return [sys.executable, *start, *arguments]


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UserError if accelerate does not accept runtime.launch or a package is missing."""
    if options.get("use_deepspeed") and not find_spec("deepspeed"):
        raise LackingError("runtime.launch.use_deepspeed needs the deepspeed package; pip install "
                           "deepspeed, or shard with configs/fsdp2.yaml, which needs none")
    if not options:
        return
    from accelerate.commands.launch import launch_command_parser

    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr), redirect_stdout(io.StringIO()):
            parsed = launch_command_parser().parse_args([*accelerate_flags(options), "train"])
        fault = parsed.training_script != "train" and f"a switch takes no {parsed.training_script}"
    except SystemExit:
        fault = stderr.getvalue().rpartition("error: ")[2].strip() or "it would start no training"
    if fault:
        raise UserError(f"runtime.launch is not valid for accelerate ({fault}); "
                        "`accelerate launch --help` lists its options")


def needs_processes(trainer: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether training must run in processes of its own, by the trainer's and launch's settings."""
    # Seeing several GPUs, one process would deal each batch out to them by threads; a vLLM engine
    # gives its memory back only when its process ends.
    return bool(options or trainer.get("use_vllm") or gpu_count() > 1)


def run(line: list[str], environment: Mapping[str, str]) -> int:
    """Run the process `line` and return its exit code; its children end with it or this process."""
    with process_group(line, environment) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:       # the second: it is not to save any more
            os.killpg(process.pid, signal.SIGINT)
            raise


def launch(job: Job, module: str, options: Mapping[str, Any], gpus: str | None = None,
           cluster: RayCluster | None = None,
           server: RolloutServer | None = None) -> dict[str, Any]:
    """Run `job` by `module` in accelerate's processes on `gpus` (all by default); returns counts.

    In a Slurm allocation of several nodes accelerate starts on each, on a `cluster` on as many as
    num_machines says, which sample from the `server` if given; elsewhere each node runs the same
    command with its own machine_rank. Raises UserError with the message of a process that failed,
    StoppedError if they saved and stopped.
    """
    from pipeline.train.stop import passed_on

    check_options(options)
    on_cluster = cluster if spans_cluster(cluster, options) else None
    if options.get("use_fsdp") and not on_cluster and not gpu_count():
        raise LackingError("runtime.launch.use_fsdp shards over GPUs and this machine shows none, "
                           "so accelerate would train a whole copy in every process; run it where "
                           "there are GPUs, or set runtime.launch.use_fsdp=false")
    path, failure, stopped, counts = (job.out.resolve() / name for name in (
        "job.json", "failure.txt", "stopped.txt", "counts.json"))
    job.save(path)
    for old in (failure, stopped, counts):
        old.unlink(missing_ok=True)
    arguments = ["-m", module, str(path)]
    with passed_on(job.out) as (request, told):
        if on_cluster:
            code = train_on_nodes(on_cluster, options, arguments, told, job.out, request.asked,
                                  server)
        else:
            code = run(command(options, arguments), {**_own_environment(options, gpus), **told})
    if stopped.is_file():
        raise StoppedError(stopped.read_text(encoding="utf-8"))
    if request.asked():         # before the first step or after the last
        raise KeyboardInterrupt
    if failure.is_file():
        raise UserError(failure.read_text(encoding="utf-8"))
    if code or not counts.is_file():
        raise UserError(f"{module} ended with code {code}; its messages are above")
    return json.loads(counts.read_text(encoding="utf-8"))


def _own_environment(options: Mapping[str, Any], gpus: str | None) -> dict[str, str]:
    """The environment of training that starts here, on `gpus`."""
    names = visible_gpus() if gpus is None else gpus.split(",")
    # Without options only the first: one process would spread each batch over several by threads.
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(names if options else names[:1])} \
        if names and not spans_nodes(options) else {}
    # A colocated vLLM listens there; by default every run of a host tries the same few ports.
    port = {} if options else {"MASTER_PORT": str(free_port())}
    return {**port, **os.environ, **visible}


def worker_main(kind: type[Any], train: Callable[[Any], dict[str, Any]]) -> None:
    """Run `train` on the job of `kind` whose JSON file the command line names.

    The first process writes counts.json; a UserError goes to failure.txt and ends with code 2, a
    StoppedError to stopped.txt and with code 0, lest a launcher kills processes that still save.
    """
    job = kind.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        with DiskFullGuard(job.out):
            counts = train(job)
            if is_first():
                (job.out / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    except StoppedError as error:
        if is_first():
            (job.out / "stopped.txt").write_text(str(error), encoding="utf-8")
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        print(error, file=sys.stderr)
        with suppress(OSError):     # the disk may be full
            (job.out / "failure.txt").write_text(str(error), encoding="utf-8")
        sys.exit(2)
