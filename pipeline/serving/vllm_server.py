"""Local vLLM servers as context managers, which are always stopped."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.config.experiment import PARALLEL
from pipeline.config.trainer_keys import has_vllm
from pipeline.errors import LackingError, UserError
from pipeline.proxies import keep_loopback_direct
from pipeline.serving.processes import free_port, gpu_count, gpu_names, process_group, visible_gpus

GPU_MEMORY_UTILIZATION = 0.9
"""Share of a GPU's memory for several servers together, by default."""
UNASKED = 0.01
"""The share of each where the bytes of its cache are given."""
TAIL_LINES = 25


class Process(Protocol):
    """A running server."""

    returncode: int | Any

    def poll(self) -> int | None: ...
    def wait(self) -> int | None: ...


Starter = Callable[[list[str], Mapping[str, str], Path], AbstractContextManager[Process]]
"""Runs a command, with variables added to the environment and its output in a log."""


@contextmanager
def vllm_server(model: str, options: Mapping[str, Any], *, log: Path,
                timeout: float = 1800.0,
                environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Serve `model` by `vllm serve` with `options` under its own names; yields the base_url.

    Each GPU holds one copy of the model, unless `options` has a key of PARALLEL. `environment` is
    added to this process's. Raises UserError, with the end of `log`, if the server does not answer
    within `timeout` seconds.
    """
    with vllm_servers(model, options, 1, log=log, timeout=timeout,
                      environment=environment) as (url,):
        yield url


@contextmanager
def vllm_servers(model: str, options: Mapping[str, Any], count: int, *, log: Path,
                 timeout: float = 1800.0, environment: Mapping[str, str] | None = None,
                 on_exit: Callable[[int], None] | None = None,
                 start: Starter | None = None) -> Iterator[list[str]]:
    """Start `count` servers that share the GPUs, with logs LOG-1, LOG-2, ...

    `on_exit` gets the code of a server that ends after it answered, in a thread. `start` runs a
    command; without it that is a child of this process.

    gpu_memory_utilization is divided among them. With kv_cache_memory_bytes, which each gets, all
    start at once; else one after another, since vLLM counts what others allocate while it measures
    its memory (vllm/v1/worker/gpu_worker.py).
    """
    if shutil.which("vllm") is None:
        raise LackingError("vllm is not installed; run pip install '.[vllm]' in limbeck's "
                           "checkout, or use a teacher of type openai or solver")
    keep_loopback_direct()
    logs = [log] if count == 1 else [log.with_stem(f"{log.stem}-{i + 1}") for i in range(count)]
    share = split_gpu_memory(options, count)
    with contextlib.ExitStack() as stack:
        servers: dict[str, tuple[Process, Callable[[float], None]]] = {}
        for path in logs:
            url, process, wait = stack.enter_context(
                _launch_server(model, share, path, environment or {}, start or _child))
            servers[url] = process, wait
            if options.get("kv_cache_memory_bytes") is None:
                wait(timeout)
        for process, wait in servers.values():
            wait(timeout)
            if on_exit is not None:
                stack.enter_context(_watched(process, on_exit))
        yield list(servers)


@contextmanager
def _watched(process: Process, on_exit: Callable[[int], None]) -> Iterator[None]:
    """Call `on_exit` with the code of `process` if it ends within the block."""
    left = threading.Event()

    def watch() -> None:
        code = process.wait()
        if not left.is_set():
            on_exit(code or 0)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()


@contextmanager
def _launch_server(model: str, options: Mapping[str, Any], log: Path,
                   environment: Mapping[str, str], start: Starter
                   ) -> Iterator[tuple[str, Process, Callable[[float], None]]]:
    """Yield (base_url, process, wait(timeout)) of a server that may not answer yet."""
    settings = {"host": "127.0.0.1", "port": free_port(), **_all_gpus(options)}
    # A server on all addresses answers on this one too.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings["host"], settings["host"])
    address = f"http://{host}:{settings['port']}"
    command = ["vllm", "serve", model, *flags(settings)]
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    with start(command, environment, log) as process:
        yield f"{address}/v1", process, partial(_wait_until_ready, process, f"{address}/health",
                                                log)


@contextmanager
def _child(command: list[str], environment: Mapping[str, str],
           log: Path) -> Iterator[subprocess.Popen]:
    """Run `command` as a child of this process, which keeps its API keys to itself."""
    inherited = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    with log.open("wb") as sink, process_group(command, {**inherited, **environment}, stdout=sink,
                                               stderr=subprocess.STDOUT) as process:
        yield process


def split_gpu_memory(options: Mapping[str, Any], count: int) -> Mapping[str, Any]:
    """The options of one of `count` engines or servers on the same GPUs."""
    # vLLM refuses to start where that share is not free, though a cache of given bytes ignores it.
    fixed = options.get("kv_cache_memory_bytes") is not None
    if count == 1 and not fixed:
        return options
    default = UNASKED * count if fixed else GPU_MEMORY_UTILIZATION
    total = options.get("gpu_memory_utilization") or default
    if not isinstance(total, int | float):
        raise UserError(f"gpu_memory_utilization={total!r} is not a number, so {count} engines "
                        "cannot share it; set a number such as 0.9")
    return {**options, "gpu_memory_utilization": round(total / count, 4)}


@contextmanager
def rollout_server(model: str, options: Mapping[str, Any], gpus: str,
                   log: Path) -> Iterator[tuple[str, str]]:
    """Serve `model` by trl_server on `gpus` of this machine; yields (address, the other GPUs).

    Raises UserError if no GPU is left.
    """
    server_gpus = gpu_names(gpus)
    other_gpus = [name for name in visible_gpus() if name not in server_gpus]
    if not other_gpus:
        raise UserError(f"rl.server_gpus={gpus} leaves no GPU for training; give the server fewer "
                        "GPUs, or set rl.trainer.use_vllm=true without rl.server")
    with trl_server(model, {"tensor_parallel_size": len(server_gpus), **options}, log,
                    {"CUDA_VISIBLE_DEVICES": ",".join(server_gpus)}) as address:
        yield address, ",".join(other_gpus)


@contextmanager
def trl_server(model: str, options: Mapping[str, Any], log: Path, environment: Mapping[str, str],
               on_exit: Callable[[int], None] | None = None,
               start: Starter | None = None) -> Iterator[str]:
    """Serve `model` to a TRL trainer that samples there and sends its weights; yields the address.

    The arguments are those of vllm_servers.
    """
    # What trl/scripts/vllm_serve.py of TRL 1.16 sets: the endpoints of vLLM's development mode,
    # NCCL for the weights, log-probabilities after the temperature.
    trl_options = {"dtype": "bfloat16", **options, "weight_transfer_config": {"backend": "nccl"},
                   "logprobs_mode": "processed_logprobs"}
    with vllm_servers(model, trl_options, 1, log=log, on_exit=on_exit, start=start,
                      environment={**environment, "VLLM_SERVER_DEV_MODE": "1"}) as (url,):
        yield url.removesuffix("/v1")


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options as `vllm serve` takes them: {max_model_len: 8} is --max-model-len 8."""
    out: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            out.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            shown = json.dumps(value) if isinstance(value, dict) else value
            values = shown if isinstance(shown, list) else [shown]
            out += [f"--{flag}", *map(str, values)]
    return out


def _all_gpus(options: Mapping[str, Any]) -> dict[str, Any]:
    count = gpu_count()
    if count > 1 and not PARALLEL & set(options):
        return {**options, "data_parallel_size": count}
    return dict(options)


def data_parallel_size(options: Mapping[str, Any]) -> int:
    """Copies of the model, each with a queue of its own, that a server with `options` runs."""
    return int(_all_gpus(options).get("data_parallel_size", 1))


def gpus_of(options: Mapping[str, Any], key: str = "vllm") -> int:
    """GPUs that one server or engine with `options` needs.

    Raises UserError, with the `key` that holds them, if one is no number.
    """
    for name in PARALLEL:
        if not isinstance(options.get(name, 1), int) or options.get(name, 1) < 1:
            raise UserError(f"{key}.{name}={options[name]!r} is no number of GPUs; give one such "
                            "as 2")
    return math.prod(options.get(name, 1) for name in PARALLEL)


def check_vllm(section: str, more: str = "") -> None:
    """Raise LackingError if vLLM, by which the stage `section` samples, is not installed."""
    if not has_vllm():
        raise LackingError(f"{section} samples by vLLM, which is not installed; run pip install "
                           f"'.[vllm]' in limbeck's checkout, or set {section}.trainer.use_vllm="
                           f"false{more}")


def _wait_until_ready(process: Process, url: str, log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"vllm serve ended with code {process.returncode} before it answered; "
                            f"the end of {log}:\n{tail(log)}")
        with contextlib.suppress(urllib.error.URLError, OSError), \
                urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.25)
    raise UserError(f"vllm serve did not answer within {timeout:g} s; the end of {log}:\n"
                    f"{tail(log)}")


def tail(log: Path) -> str:
    """The last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:])
