"""A local vLLM server as a context manager: started, waited for, and stopped whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.config.experiment import PARALLEL
from pipeline.errors import UserError
from pipeline.serving.processes import free_port, gpu_count, gpu_names, process_group, visible_gpus

UTILIZATION = 0.9
"""Share of a GPU's memory for several servers together, where no option says."""
TAIL_LINES = 25


@contextmanager
def vllm_server(model: str, options: Mapping[str, Any], *, log: Path,
                patience: float = 1800.0,
                environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Serve `model` by `vllm serve` with `options` under its own names; yields the base_url.

    Every GPU is used: one copy of the model on each, unless an option of PARALLEL says otherwise.
    `environment` is laid over this process's. UserError, with the end of `log`, where it does not
    answer within `patience` seconds.
    """
    with vllm_servers(model, options, 1, log=log, patience=patience,
                      environment=environment) as (url,):
        yield url


@contextmanager
def vllm_servers(model: str, options: Mapping[str, Any], count: int, *, log: Path,
                 patience: float = 1800.0,
                 environment: Mapping[str, str] | None = None) -> Iterator[list[str]]:
    """As vllm_server, `count` of them that share the GPUs, with logs LOG-1, LOG-2, ...

    gpu_memory_utilization is divided among them. Each starts when the one before answers: what
    others take while vLLM measures its memory, it counts as its own (vllm/v1/worker/gpu_worker.py).
    Given kv_cache_memory_bytes, which holds for each, it measures nothing and all start at once.
    """
    if shutil.which("vllm") is None:
        raise UserError("vllm is not installed; run pip install '.[vllm]' in limbeck's checkout, "
                        "or use a teacher of type openai or solver")
    logs = [log] if count == 1 else [log.with_stem(f"{log.stem}-{i + 1}") for i in range(count)]
    share = share_of(options, count)
    with contextlib.ExitStack() as stack:
        servers: dict[str, Callable[[float], None]] = {}
        for each in logs:
            url, wait = stack.enter_context(_launched(model, share, each, environment or {}))
            servers[url] = wait
            if options.get("kv_cache_memory_bytes") is None:
                wait(patience)
        for wait in servers.values():
            wait(patience)
        yield list(servers)


@contextmanager
def _launched(model: str, options: Mapping[str, Any], log: Path,
              environment: Mapping[str, str]) -> Iterator[tuple[str, Callable[[float], None]]]:
    """(base_url, what waits so many seconds for it) of a server that may not answer yet."""
    port = free_port()
    command = ["vllm", "serve", model, "--host", "127.0.0.1", "--port", str(port),
               *flags(_all_gpus(options))]
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    with log.open("wb") as sink, process_group(
            command, {**kept, **environment}, stdout=sink, stderr=subprocess.STDOUT) as process:
        yield f"http://127.0.0.1:{port}/v1", partial(_wait, process,
                                                     f"http://127.0.0.1:{port}/health", log)


def share_of(options: Mapping[str, Any], count: int) -> Mapping[str, Any]:
    """The options of one of `count` engines or servers on the same GPUs."""
    if count == 1:
        return options
    total = options.get("gpu_memory_utilization") or UTILIZATION
    if not isinstance(total, int | float):
        raise UserError(f"gpu_memory_utilization={total!r} is no number, so {count} engines cannot "
                        "share it; give one such as 0.9")
    return {**options, "gpu_memory_utilization": round(total / count, 4)}


@contextmanager
def rollout_server(model: str, options: Mapping[str, Any], gpus: str,
                   log: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Serve `model` on `gpus` to a TRL trainer that samples there and sends its weights.

    Yields (the GRPOConfig keys that make it do so, the GPUs left to it); a UserError where none
    is. TRL 1.16 asks for what trl/scripts/vllm_serve.py sets: the endpoints of vLLM's development
    mode, NCCL for the weights, log-probabilities after the temperature.
    """
    own = gpu_names(gpus)
    left = [name for name in visible_gpus() if name not in own]
    if not left:
        raise UserError(f"rl.server_gpus={gpus} leaves no GPU for training; the server needs GPUs "
                        "of its own, or set rl.trainer.use_vllm=true without rl.server")
    given = {"tensor_parallel_size": len(own), "dtype": "bfloat16", **options,
             "weight_transfer_config": {"backend": "nccl"}, "logprobs_mode": "processed_logprobs"}
    seen = {"CUDA_VISIBLE_DEVICES": ",".join(own), "VLLM_SERVER_DEV_MODE": "1"}
    with vllm_server(model, given, log=log, environment=seen) as url:
        yield {"use_vllm": True, "vllm_mode": "server",
               "vllm_server_base_url": url.removesuffix("/v1")}, ",".join(left)


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
    spread = {"data_parallel_size": count} if count > 1 and not PARALLEL & set(options) else {}
    return {**options, **spread}


def data_parallel_size(options: Mapping[str, Any]) -> int:
    """Copies of the model, each with a queue of its own, that a server with `options` runs."""
    return int(_all_gpus(options).get("data_parallel_size", 1))


def has_vllm() -> bool:
    """Whether vLLM is installed, without importing it."""
    return find_spec("vllm") is not None


def _wait(process: subprocess.Popen, url: str, log: Path, patience: float) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if process.poll() is not None:
            raise UserError(f"vllm serve ended with code {process.returncode} before it answered; "
                            f"the end of {log}:\n{tail(log)}")
        with contextlib.suppress(urllib.error.URLError, OSError), \
                urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.25)
    raise UserError(f"vllm serve did not answer within {patience:g} s; the end of {log}:\n"
                    f"{tail(log)}")


def tail(log: Path) -> str:
    """The last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:])
