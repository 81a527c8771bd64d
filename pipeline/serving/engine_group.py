"""Several vLLM engines on one GPU that sample from one model, each in a process of its own.

With a small model the GPU waits for the Python of one engine during half of a rollout
(results/README.md). An EngineGroup replaces vllm.LLM for what TRL and limbeck call. Weights are not
copied: each engine reads them from the trainer's memory by CUDA IPC.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import parent_process
from types import SimpleNamespace
from typing import Any

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor
from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.serving.processes import die_with_parent, visible_gpus
from pipeline.serving.vllm_server import split_gpu_memory

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")
"""Variables for the trainer's launcher, which an engine must not see."""
EXIT_SECONDS = 10.0
"""Time for a process to end by itself."""
DEVICE_ARGUMENT = 6
"""Index of the GPU among rebuild_cuda_tensor's arguments."""


def start_engines(make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Make a vllm.LLM, or an EngineGroup if `options` has `engines` above 1.

    Raises UserError if it does not start.
    """
    options = dict(options)
    count = options.pop("engines", 1)
    if count > 1:
        return EngineGroup(count, options)
    try:
        return make(**split_gpu_memory(options, 1))
    except (ImportError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(f"the vLLM engine did not start ({said}); its messages are above. If "
                        "memory of the GPU is short, lower the engine's "
                        "gpu_memory_utilization, or give kv_cache_memory_bytes") from None


def check_engines(count: int, args: Any, section: str) -> None:
    """Raises UserError if `args` (a GRPOConfig or the like) holds what several engines lack."""
    for key, default in (("vllm_tensor_parallel_size", 1), ("vllm_enable_sleep_mode", False)):
        if count > 1 and getattr(args, key, default) not in (default, None):
            raise UserError(f"{section}.trainer.{key}={getattr(args, key)} works with one engine "
                            "only; remove it, or set runtime.engines=1")


def one_engine(**options: Any) -> Any:
    """A vllm.LLM in this process, where its weights can be reached."""
    from vllm import LLM

    return LLM(**options)


class EngineGroup:
    """`count` engines with `options` of vllm.LLM. Raises UserError if one of them ends.

    gpu_memory_utilization is divided among them. With kv_cache_memory_bytes, which each gets, all
    start at once; else one after another, since vLLM counts what others allocate while it measures
    its memory.
    """

    def __init__(self, count: int, options: Mapping[str, Any],
                 make: Callable[..., Any] = one_engine):
        engine = {**options, "distributed_executor_backend": None}  # not the trainer's launcher
        at_once = options.get("kv_cache_memory_bytes") is not None
        context = torch.multiprocessing.get_context("spawn")
        self._started: list[tuple[Any, Any]] = []
        with _engine_environment():
            for index in range(count):
                seed = (options.get("seed") or 0) * count + index
                pipe, engine_pipe = context.Pipe()
                share = {**split_gpu_memory(engine, count), "seed": seed}
                process = context.Process(target=_engine_main, args=(engine_pipe, share, make),
                                          daemon=True)
                # Inherited by the engine: Ctrl-C is for this process.
                handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
                process.start()
                signal.signal(signal.SIGINT, handler)
                engine_pipe.close()
                self._started.append((process, pipe))
                if not at_once:
                    self._answer(process, pipe)
        if at_once:
            self._answers()
        self.llm_engine = SimpleNamespace(      # where TRL looks for the model
            engine_core=SimpleNamespace(shutdown=self.close), model_executor=SimpleNamespace(
                driver_worker=SimpleNamespace(model_runner=SimpleNamespace(model=self))))

    def generate(self, prompts: Sequence[Any], sampling_params: Any,
                 use_tqdm: bool = False) -> list[Any]:
        """vLLM's RequestOutput of each prompt, in order; neighbouring prompts share an engine.

        `sampling_params` are for all, or a list of one for each.
        """
        size = math.ceil(len(prompts) / len(self._started))
        starts = [index * size for index in range(len(self._started))]
        each = sampling_params if isinstance(sampling_params, list) else None
        answers = self._ask([("generate", prompts[start:start + size],
                              each[start:start + size] if each else sampling_params)
                             for start in starts])
        return [output for outputs in answers for output in outputs]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load `weights` into every engine: a list at once, an iterator one by one."""
        # The next is taken when all engines have read the last, so a gathered tensor can be freed.
        for part in [weights] if isinstance(weights, list) else ([pair] for pair in weights):
            if any(weight.is_cuda for _, weight in part):
                torch.cuda.current_stream().synchronize()
            # Separate handles for each engine, since each counts its releases.
            self._ask([("load", [(name, reduce_tensor(weight.detach())) for name, weight in part])
                       for _ in self._started])

    def reset_prefix_cache(self) -> None:
        """Drop what was computed with other weights."""
        self._ask([("reset",)] * len(self._started))

    def close(self) -> None:
        for process, pipe in self._started:
            pipe.close()
            process.terminate()
        for process, _ in self._started:
            process.join(EXIT_SECONDS)
            process.kill()
            process.join()

    def _ask(self, messages: Sequence[tuple]) -> list[Any]:
        """Send each engine its message; returns their answers, computed in parallel."""
        for (process, pipe), message in zip(self._started, messages, strict=True):
            with self._alive(process):
                pipe.send(message)
        return self._answers()

    def _answers(self) -> list[Any]:
        return [self._answer(*engine) for engine in self._started]

    def _answer(self, process: Any, pipe: Any) -> Any:
        with self._alive(process):
            pipe.poll(None)     # ends at Ctrl-C; recv does not, once polars has set SA_RESTART
            return pipe.recv()

    @contextlib.contextmanager
    def _alive(self, process: Any) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):
            process.join(EXIT_SECONDS)
            self.close()
            raise UserError(
                f"a vLLM engine ended with code {process.exitcode}; its messages are above. If "
                "it ran out of memory, lower runtime.engines or its share of the GPU") from None


@contextlib.contextmanager
def _engine_environment() -> Iterator[None]:
    """Let processes started in the block see only this process's GPU, and no launcher."""
    before = dict(os.environ)
    names = visible_gpus()
    if names and torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = names[torch.cuda.current_device()]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name in before:
        if name.startswith(LAUNCHER_VARIABLES):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _engine_main(pipe: Any, options: Mapping[str, Any], make: Callable[..., Any]) -> None:
    """Run an engine: answer messages from `pipe` until its other end is closed."""
    die_with_parent()
    trainer = parent_process()
    if trainer is None or not trainer.is_alive():     # it died while this process imported torch
        return
    # Its own lock is a semaphore, which Python reports as leaked when the engine is terminated.
    tqdm.set_lock(threading.RLock())
    llm = make(**options)
    with contextlib.suppress(EOFError, ConnectionError):
        pipe.send("ready")
        while True:
            call, *arguments = pipe.recv()
            if call == "generate":
                prompts, params = arguments
                pipe.send(llm.generate(prompts, params, use_tqdm=False) if prompts else [])
            elif call == "load":
                model = llm.llm_engine.model_executor.driver_worker.model_runner.model
                model.load_weights([(name, _rebuild(*handle)) for name, handle in arguments[0]])
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                pipe.send("loaded")
            else:
                pipe.send(llm.reset_prefix_cache())


def _rebuild(rebuild: Callable[..., torch.Tensor], args: tuple) -> torch.Tensor:
    """Rebuild a weight in the trainer's memory; this process sees one GPU, as number 0."""
    if rebuild is rebuild_cuda_tensor:
        args = (*args[:DEVICE_ARGUMENT], 0, *args[DEVICE_ARGUMENT + 1:])
    return rebuild(*args)
