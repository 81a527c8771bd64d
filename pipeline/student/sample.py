"""Samples completions from a checkpoint: by vLLM if it is installed, else by student.decode."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.completion import Completion, Messages, split_completion
from pipeline.config.evaluate import StudentSampling
from pipeline.errors import UserError
from pipeline.progress import progress, quiet_libraries
from pipeline.student.positions import positions, sampling_beyond, say
from pipeline.student.template import end_of_turn_ids, opens_thinking, prompt_ids
from pipeline.student.tokenizer import load_tokenizer

Sampled = tuple[Completion, int]
BATCH = 512
"""Rows decoded together without vLLM."""


def sample(model: str, tokenizer_folder: str, chats: list[Messages], n: int,
           sampling: StudentSampling, seed: int,
           engine: Mapping[str, Any] | None = None) -> list[list[Sampled]]:
    """Return n (completion, tokens) for each chat, in order; tokens count the end of turn.

    `engine` are options of vllm.LLM, used if vLLM and a GPU are available.
    """
    [(_, groups)] = sample_sets(model, tokenizer_folder, {"": chats}, n, sampling, seed, engine)
    return groups


def sample_sets(model: str, tokenizer_folder: str, sets: Mapping[str, Sequence[Messages]],
                n: int | Mapping[str, int], sampling: StudentSampling, seed: int,
                engine: Mapping[str, Any] | None = None
                ) -> Iterator[tuple[str, list[list[Sampled]]]]:
    """Yield each set's name and samples as it is done; the model is loaded once for all.

    `n` samples a chat, or so many of each set.
    Without vLLM a set's samples do not depend on those before it, so that a run may go on.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    times = n if isinstance(n, Mapping) else dict.fromkeys(sets, n)
    prompts = {name: [ids for ids in (prompt_ids(tokenizer, chat) for chat in chats)
                      for _ in range(times[name])] for name, chats in sets.items()}
    loaded = _by_vllm if _vllm_available() else _by_transformers
    eos_token_ids = end_of_turn_ids(tokenizer, model)
    longest = max((len(ids) for rows in prompts.values() for ids in rows), default=0)
    prompt_opens_thinking = opens_thinking(tokenizer)
    say("evaluate", sampling_beyond(model, longest, sampling.max_tokens,
                                    "evaluate.sampling.max_tokens"))
    with loaded(model, eos_token_ids, longest, sampling, seed, engine or {}) as run:
        for name, rows in prompts.items():
            done = [complete(tokenizer, ids, prompt_opens_thinking, eos_token_ids)
                    for ids in (run(rows) if rows else [])]
            yield name, [done[i:i + times[name]] for i in range(0, len(done), times[name])]


def complete(tokenizer: Any, ids: list[int], prompt_opens_thinking: bool,
             eos_token_ids: Collection[int]) -> Sampled:
    """Return (completion, tokens) of sampled `ids`; truncated unless they end in an end of turn."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    finish = "stop" if ids and ids[-1] in eos_token_ids else "length"
    return split_completion(text, opened=prompt_opens_thinking, finish_reason=finish), len(ids)


def _vllm_available() -> bool:
    import torch

    from pipeline.serving.vllm_server import has_vllm

    return torch.cuda.is_available() and has_vllm()


Run = Callable[[list[list[int]]], list[list[int]]]
"""Returns a completion, as token ids, of each prompt."""


@contextmanager
def _by_vllm(model: str, eos_token_ids: list[int], longest_prompt: int, sampling: StudentSampling,
             seed: int, engine: Mapping[str, Any]) -> Iterator[Run]:
    # A forked engine would find CUDA initialised by this process.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm import LLM, SamplingParams

    from pipeline.serving.engine_group import start_engines

    # vLLM refuses to go beyond the model's positions; what reaches them counts as truncated.
    longest = min(longest_prompt + sampling.max_tokens, positions(model) or sys.maxsize)
    defaults = {"dtype": "bfloat16", "max_model_len": longest, "gpu_memory_utilization": 0.85}
    llm = start_engines(LLM, {"model": model, "seed": seed, **defaults, **engine})
    params = SamplingParams(temperature=sampling.temperature, top_p=sampling.top_p,
                            max_tokens=sampling.max_tokens, stop_token_ids=eos_token_ids)
    try:
        yield lambda prompts: [list(output.outputs[0].token_ids) for output in llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], params)]
    finally:
        llm.llm_engine.engine_core.shutdown()      # frees the GPU's memory for the next engine


@contextmanager
def _by_transformers(model: str, eos_token_ids: list[int], longest_prompt: int,
                     sampling: StudentSampling, seed: int,
                     engine: Mapping[str, Any]) -> Iterator[Run]:
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    from pipeline.student.decode import decode, keep_freed_memory

    keep_freed_memory()
    quiet_libraries()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        student: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    except (OSError, ValueError) as error:
        raise UserError(f"model {model!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    student = student.to(device).eval()

    def run(prompts: list[list[int]]) -> list[list[int]]:
        set_seed(seed)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))   # keeps padding small
        out: list[list[int]] = [[] for _ in prompts]
        with progress(f"sampling {'/'.join(model.split('/')[-2:])}", len(prompts)) as advance:
            for start in range(0, len(order), BATCH):
                batch = order[start:start + BATCH]
                rows = decode(student, [prompts[i] for i in batch], max_tokens=sampling.max_tokens,
                              temperature=sampling.temperature, top_p=sampling.top_p,
                              eos_token_ids=eos_token_ids)
                for index, row in zip(batch, rows, strict=True):
                    out[index] = row
                advance(len(batch))
        return out

    yield run
