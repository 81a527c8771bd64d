"""Sample completions from a checkpoint: by our decoding loop anywhere, by vLLM where it is."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.completion import Completion, Messages, split_completion
from pipeline.config.evaluate import StudentSampling
from pipeline.errors import UserError
from pipeline.progress import progress, quiet_libraries
from pipeline.student.template import end_ids, opens_thinking, prompt_ids
from pipeline.student.tokenizer import load_tokenizer

Sampled = tuple[Completion, int]
BATCH = 512
"""Rows decoded together where vLLM is not."""


def sample(model: str, tokenizer_folder: str, chats: list[Messages], n: int,
           sampling: StudentSampling, seed: int,
           engine: Mapping[str, Any] | None = None) -> list[list[Sampled]]:
    """n (completion, tokens) for each chat, in order; tokens count the end of turn.

    `engine` holds options of vllm.LLM, used where vLLM and a GPU are there.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    prompts = [prompt_ids(tokenizer, chat) for chat in chats]
    run = _by_vllm if _vllm_is_here() else _by_transformers
    asked = [ids for ids in prompts for _ in range(n)]
    end = end_ids(tokenizer, model)
    outputs = run(model, end, asked, sampling, seed, engine or {})
    opened = opens_thinking(tokenizer)
    done = [complete(tokenizer, ids, opened, end) for ids in outputs]
    return [done[i:i + n] for i in range(0, len(done), n)]


def complete(tokenizer: Any, ids: list[int], opened: bool, end: Collection[int]) -> Sampled:
    """(completion, tokens) of sampled `ids`; cut off where they do not end in one of `end`."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    finish = "stop" if ids and ids[-1] in end else "length"
    return split_completion(text, opened=opened, finish_reason=finish), len(ids)


def _vllm_is_here() -> bool:
    import torch

    from pipeline.serving.vllm_server import has_vllm

    return torch.cuda.is_available() and has_vllm()


def _by_vllm(model: str, end: list[int], prompts: list[list[int]], sampling: StudentSampling,
             seed: int, engine: Mapping[str, Any]) -> list[list[int]]:
    # A forked engine finds CUDA taken by this process, which has asked whether there is any.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm import LLM, SamplingParams

    from pipeline.serving.engine_group import start_engines

    longest = max(map(len, prompts)) + sampling.max_tokens
    given = {"dtype": "bfloat16", "max_model_len": longest, "gpu_memory_utilization": 0.85}
    llm = start_engines(LLM, {"model": model, "seed": seed, **given, **engine})
    params = SamplingParams(temperature=sampling.temperature, top_p=sampling.top_p,
                            max_tokens=sampling.max_tokens, stop_token_ids=end)
    try:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
    finally:
        llm.llm_engine.engine_core.shutdown()      # else the next engine finds the memory taken
    return [list(output.outputs[0].token_ids) for output in outputs]


def _by_transformers(model: str, end: list[int], prompts: list[list[int]],
                     sampling: StudentSampling, seed: int,
                     engine: Mapping[str, Any]) -> list[list[int]]:
    """Prompts of like length share a batch, so that padding stays small."""
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    from pipeline.student.decode import decode, keep_freed_memory

    keep_freed_memory()
    quiet_libraries()
    set_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        student: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    except (OSError, ValueError) as error:
        raise UserError(f"model {model!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    student = student.to(device).eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out: list[list[int]] = [[] for _ in prompts]
    with progress(f"sampling {model.rsplit('/', 2)[-2]}", len(prompts)) as advance:
        for start in range(0, len(order), BATCH):
            chosen = order[start:start + BATCH]
            rows = decode(student, [prompts[i] for i in chosen], max_tokens=sampling.max_tokens,
                          temperature=sampling.temperature, top_p=sampling.top_p, end=end)
            for index, row in zip(chosen, rows, strict=True):
                out[index] = row
            advance(len(chosen))
    return out
