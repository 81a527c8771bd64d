"""Python that vLLM spends on a decoding step: its scheduler beside limbeck's DecodeScheduler.

  python -m benchmarks.decode_steps --model FOLDER [--sequences 64 256 1024] [--runs 3]

An engine plans steps, takes tokens and hands completions on as in a rollout, but no model runs:
a token follows from its place. So a step's time is what the scheduler
and the engine's output cost, without the model runner's own Python and kernels. Needs vLLM, no GPU.
One JSON line for each number of sequences: milliseconds a step of each (median, low and high of the
runs, which take turns) and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

PROMPT, COMPLETION, GROUP, VOCABULARY = 150, 300, 16, 1000
OURS = "pipeline.serving.decode_scheduler.DecodeScheduler"


def token_at(name: str, place: int) -> int:
    return place * 7919 % VOCABULARY


class NoModel:
    """Takes the place of vLLM's executor; `draw` gives a sequence's token at a place."""

    supported_tasks = ("generate",)

    def __init__(self, config: Any, draw: Callable[[str, int], int] = token_at):
        self.config, self.draw = config, draw
        self.known: dict[str, int] = {}         # tokens of a prompt and its completion
        self.spent = 0.0                        # seconds in this stand-in

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return True

    def get_kv_cache_specs(self) -> list[dict[str, Any]]:
        import torch
        from vllm.v1.kv_cache_interface import FullAttentionSpec

        size = self.config.cache_config.block_size
        return [{"layer": FullAttentionSpec(block_size=size, num_kv_heads=2, head_size=64,
                                            dtype=torch.bfloat16)}]

    def determine_available_memory(self) -> list[int]:
        return [self.config.cache_config.kv_cache_memory_bytes or 1 << 30]

    def execute_model(self, step: Any, non_block: bool = False) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        begun = time.perf_counter()
        cached = step.scheduled_cached_reqs
        places = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for new in step.scheduled_new_reqs:
            places[new.req_id] = new.num_computed_tokens
            self.known.setdefault(new.req_id, len(new.prompt_token_ids))
        names, tokens = list(step.num_scheduled_tokens), []
        for name in names:
            place = places[name] + step.num_scheduled_tokens[name]
            tokens.append([self.draw(name, place)] if place >= self.known[name] else [])
            self.known[name] = max(self.known[name], place + 1)
        self.made = ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=tokens, logprobs=None, prompt_logprobs_dict={}, pooler_output=[])
        self.spent += time.perf_counter() - begun
        out = None if names else self.made      # nothing is sampled of an empty step
        return _done(out) if non_block else out

    def sample_tokens(self, grammar: Any, non_block: bool = False) -> Any:
        return _done(self.made) if non_block else self.made


def _done(value: Any) -> Future:
    future: Future = Future()
    future.set_result(value)
    return future


def engine(model: str, scheduler: str | None, draw: Callable[[str, int], int] = token_at,
           **options: Any) -> Any:
    """A vLLM engine of `options` without a model, by `scheduler` (a path; None: vLLM's own)."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import torch
    from vllm import platforms

    if not torch.cuda.is_available():       # before what looks for a platform
        from vllm.platforms.cpu import CpuPlatform

        platforms._current_platform = CpuPlatform()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    config = EngineArgs(**{"model": model, "max_model_len": 4096, "max_num_seqs": 1024, "seed": 0,
                           "dtype": "bfloat16", "disable_log_stats": True, "block_size": 16,
                           "scheduler_cls": scheduler, **options}).create_engine_config()
    config.scheduler_config.async_scheduling = True     # a processor's platform turns it off
    return LLMEngine(config, lambda given: NoModel(given, draw), log_stats=False)


def sampling(**options: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(**{"temperature": 1.0, "detokenize": False,
                             "output_kind": RequestOutputKind.FINAL_ONLY, **options})


def milliseconds(model: str, scheduler: str | None, sequences: int) -> float:
    """What a step takes while all `sequences` decode."""
    made = engine(model, scheduler)
    for index in range(sequences):
        prompt = [token_at("prompt", index // GROUP * 31 + at) for at in range(PROMPT)]
        made.add_request(str(index), {"prompt_token_ids": prompt},
                         sampling(max_tokens=COMPLETION, ignore_eos=True))
    while not all(request.num_output_tokens
                  for request in made.engine_core.engine_core.scheduler.requests.values()):
        made.step()
    model_less = made.engine_core.engine_core.model_executor
    begun, before, steps = time.perf_counter(), model_less.spent, COMPLETION - 60
    for _ in range(steps):
        made.step()
    return 1000 * (time.perf_counter() - begun - model_less.spent + before) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sequences", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    for sequences in given.sequences:
        spent: dict[str, list[float]] = {"vLLM": [], "limbeck": []}
        for _ in range(given.runs):
            for name, scheduler in (("vLLM", None), ("limbeck", OURS)):
                spent[name].append(milliseconds(given.model, scheduler, sequences))
        line = {name: {"median": round(statistics.median(runs), 3), "low": round(min(runs), 3),
                       "high": round(max(runs), 3)} for name, runs in spent.items()}
        ratio = statistics.median(spent["vLLM"]) / statistics.median(spent["limbeck"])
        print(json.dumps({"sequences": sequences, **line, "ratio": round(ratio, 2)}), flush=True)


if __name__ == "__main__":
    main()
