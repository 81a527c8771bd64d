"""Several vLLM engines on one GPU that sample from one model, each in a process of its own.

The Python of one engine sets the pace of a small model, whose GPU waits for half of a rollout
(results/README.md). Engines stand where vllm.LLM does, for what TRL and limbeck ask of it. Weights
are not copied on their way: each engine reads them where the trainer holds them, by CUDA IPC.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import parent_process
from types import SimpleNamespace
from typing import Any

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from pipeline.errors import UserError
from pipeline.serving.processes import die_with_parent, visible_gpus
from pipeline.serving.vllm_server import share_of

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")
"""What a launcher or TRL tells the trainer, and an engine beside it must not take for its own."""
PATIENCE = 10.0
"""Seconds for a process to end by itself."""
DEVICE = 6
"""Where rebuild_cuda_tensor's arguments name the GPU."""


def start(make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """make(**options), a vllm.LLM; with `engines` above 1 in `options`, so many in its place."""
    options = dict(options)
    count = options.pop("engines", 1)
    return make(**options) if count == 1 else EngineGroup(count, options)


def check_engines(count: int, args: Any, section: str) -> None:
    """Refuse TRL settings (`args`, a GRPOConfig or the like) that several engines do not know."""
    for key, plain in (("vllm_tensor_parallel_size", 1), ("vllm_enable_sleep_mode", False)):
        if count > 1 and getattr(args, key, plain) not in (plain, None):
            raise UserError(f"{section}.trainer.{key}={getattr(args, key)} is for one engine; "
                            "remove it, or set runtime.engines=1")


def one_engine(**options: Any) -> Any:
    """A vllm.LLM in this process, so that its weights are at hand."""
    from vllm import LLM

    return LLM(**options)


class EngineGroup:
    """`count` engines with `options` of vllm.LLM; a UserError where one of them ends.

    gpu_memory_utilization is divided among them. Each starts when the one before is ready, since
    vLLM counts as its own what others take while it measures its memory; given
    kv_cache_memory_bytes, which holds for each, all start at once.
    """

    def __init__(self, count: int, options: Mapping[str, Any],
                 make: Callable[..., Any] = one_engine):
        own = {**options, "distributed_executor_backend": None}     # not the trainer's launcher
        at_once = options.get("kv_cache_memory_bytes") is not None
        context = torch.multiprocessing.get_context("spawn")
        self._started: list[tuple[Any, Any]] = []
        with _environment():
            for index in range(count):
                seed = (options.get("seed") or 0) * count + index
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, {**share_of(own, count), "seed": seed}, make),
                    daemon=True)
                heard = signal.signal(signal.SIGINT, signal.SIG_IGN)     # inherited: ours to see
                process.start()
                signal.signal(signal.SIGINT, heard)
                theirs.close()
                self._started.append((process, ours))
                if not at_once:
                    self._answer(process, ours)
        if at_once:
            self._answers()
        self.llm_engine = SimpleNamespace(      # where TRL looks for the model
            engine_core=SimpleNamespace(shutdown=self.close), model_executor=SimpleNamespace(
                driver_worker=SimpleNamespace(model_runner=SimpleNamespace(model=self))))

    def generate(self, prompts: Sequence[Any], sampling_params: Any,
                 use_tqdm: bool = False) -> list[Any]:
        """vLLM's RequestOutput of each prompt, in order; neighbours go to one engine."""
        each = math.ceil(len(prompts) / len(self._started))
        starts = [index * each for index in range(len(self._started))]
        shared = self._ask([("generate", prompts[start:start + each], sampling_params)
                            for start in starts])
        return [output for outputs in shared for output in outputs]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Every engine takes `weights`: of a list all at once, else one after the other.

        The next is asked for when all have read the last, so that what was gathered or merged for
        a moment needs to stand no longer.
        """
        for some in [weights] if isinstance(weights, list) else ([one] for one in weights):
            if any(weight.is_cuda for _, weight in some):
                torch.cuda.current_stream().synchronize()
            # Handles of its own for each engine: they count who has let go of them.
            self._ask([("load", [(name, reduce_tensor(weight.detach())) for name, weight in some])
                       for _ in self._started])

    def reset_prefix_cache(self) -> None:
        """Forget what was computed with other weights."""
        self._ask([("reset",)] * len(self._started))

    def close(self) -> None:
        """End the processes."""
        for process, pipe in self._started:
            pipe.close()
            process.terminate()
        for process, _ in self._started:
            process.join(PATIENCE)
            process.kill()
            process.join()

    def _ask(self, messages: Sequence[tuple]) -> list[Any]:
        """Every engine's answer to its message; they work at the same time."""
        for (process, pipe), message in zip(self._started, messages, strict=True):
            with self._alive(process):
                pipe.send(message)
        return self._answers()

    def _answers(self) -> list[Any]:
        return [self._answer(*engine) for engine in self._started]

    def _answer(self, process: Any, pipe: Any) -> Any:
        with self._alive(process):
            pipe.poll(None)     # Ctrl-C ends this; a read goes on, once polars set SA_RESTART
            return pipe.recv()

    @contextlib.contextmanager
    def _alive(self, process: Any) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):
            process.join(PATIENCE)
            self.close()
            raise UserError(
                f"a vLLM engine ended with code {process.exitcode}; its messages are above. Where "
                "it found no memory, lower runtime.engines or its share of the GPU") from None


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """While the block runs, processes that start see this process's GPU alone, and no launcher."""
    kept = dict(os.environ)
    names = visible_gpus()
    if names and torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = names[torch.cuda.current_device()]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name in kept:
        if name.startswith(LAUNCHED):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _serve(pipe: Any, options: Mapping[str, Any], make: Callable[..., Any]) -> None:
    """An engine's process: answers what comes down `pipe` until its other end is closed."""
    die_with_parent()
    trainer = parent_process()
    if trainer is None or not trainer.is_alive():     # it died while torch was imported here
        return
    llm = make(**options)
    with contextlib.suppress(EOFError, ConnectionError):
        pipe.send("ready")
        while True:
            call, *given = pipe.recv()
            if call == "generate":
                prompts, params = given
                pipe.send(llm.generate(prompts, params, use_tqdm=False) if prompts else [])
            elif call == "load":
                model = llm.llm_engine.model_executor.driver_worker.model_runner.model
                model.load_weights([(name, _received(*handle)) for name, handle in given[0]])
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                pipe.send("loaded")
            else:
                pipe.send(llm.reset_prefix_cache())


def _received(rebuild: Callable[..., torch.Tensor], args: tuple) -> torch.Tensor:
    """A weight where the trainer holds it; this process sees one GPU, the trainer perhaps more."""
    if rebuild is rebuild_cuda_tensor:
        args = (*args[:DEVICE], 0, *args[DEVICE + 1:])
    return rebuild(*args)
