"""Samples completions from a checkpoint: by vLLM if it is installed, else by student.decode."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pipeline.completion import Completion, Messages, split_completion
from pipeline.config.evaluate import StudentSampling
from pipeline.errors import UserError
from pipeline.progress import progress, quiet_libraries
from pipeline.student.positions import positions, sampling_beyond, say
from pipeline.student.template import end_of_turn_ids, opens_thinking, prompt_ids
from pipeline.student.thinking_budget import Budget, BudgetForcer, Sampler
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
                engine: Mapping[str, Any] | None = None,
                budgets: Mapping[str, Budget] | None = None
                ) -> Iterator[tuple[str, list[list[Sampled]]]]:
    """Yield each set's name and samples as it is done; the model is loaded once for all.

    `n` samples a chat, or so many of each set; the sets that `budgets` names think within one.
    Without vLLM a set's samples do not depend on those before it, so that a run may go on.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    times = n if isinstance(n, Mapping) else dict.fromkeys(sets, n)
    prompts = {name: [ids for ids in (prompt_ids(tokenizer, chat) for chat in chats)
                      for _ in range(times[name])] for name, chats in sets.items()}
    eos_token_ids = end_of_turn_ids(tokenizer, model)
    longest = max((len(ids) for rows in prompts.values() for ids in rows), default=0)
    prompt_opens_thinking = opens_thinking(tokenizer)
    forcer = BudgetForcer(tokenizer, eos_token_ids, prompt_opens_thinking)
    forced = {name: one for name, one in (budgets or {}).items() if name in sets}
    most = max([sampling.max_tokens] * (forced.keys() != sets.keys())
               + [one.most + forcer.tags for one in forced.values()])
    say("evaluate", sampling_beyond(model, longest, most, "evaluate.sampling.max_tokens"))
    with sampler(model, eos_token_ids, longest + most, sampling, seed, engine or {}) as run:
        for name, rows in prompts.items():
            sampled = forcer.sample(run, rows, forced[name]) if name in forced else \
                run(rows, [sampling.max_tokens] * len(rows)) if rows else []
            done = [complete(tokenizer, ids, prompt_opens_thinking, eos_token_ids)
                    for ids in sampled]
            yield name, [done[i:i + times[name]] for i in range(0, len(done), times[name])]


def complete(tokenizer: Any, ids: list[int], prompt_opens_thinking: bool,
             eos_token_ids: Collection[int]) -> Sampled:
    """Return (completion, tokens) of sampled `ids`; truncated unless they end in an end of turn."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    finish = "stop" if ids and ids[-1] in eos_token_ids else "length"
    return split_completion(text, opened=prompt_opens_thinking, finish_reason=finish), len(ids)


def sampler(model: str, eos_token_ids: list[int], longest: int, sampling: StudentSampling,
            seed: int, engine: Mapping[str, Any]) -> AbstractContextManager[Sampler]:
    """Load `model` to sample rows of at most `longest` tokens: by vLLM if there is a GPU for it."""
    loaded = _by_vllm if _vllm_available() else _by_transformers
    return loaded(model, eos_token_ids, longest, sampling, seed, engine)


def _vllm_available() -> bool:
    import torch

    from pipeline.config.trainer_keys import has_vllm

    return torch.cuda.is_available() and has_vllm()


@contextmanager
def _by_vllm(model: str, eos_token_ids: list[int], longest: int, sampling: StudentSampling,
             seed: int, engine: Mapping[str, Any]) -> Iterator[Sampler]:
    # A forked engine would find CUDA initialised by this process.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm import LLM, SamplingParams

    from pipeline.serving.engine_group import start_engines

    # vLLM refuses to go beyond the model's positions; what reaches them counts as truncated.
    longest = min(longest, positions(model) or sys.maxsize)
    memory = {} if engine.get("kv_cache_memory_bytes") else {"gpu_memory_utilization": 0.85}
    defaults = {"dtype": "bfloat16", "max_model_len": longest, **memory}
    llm = start_engines(LLM, {"model": model, "seed": seed, **defaults, **engine})

    def params(limit: int) -> Any:
        return SamplingParams(temperature=sampling.temperature, top_p=sampling.top_p,
                              max_tokens=limit, stop_token_ids=eos_token_ids, detokenize=False)

    try:
        yield lambda prompts, limits: [list(output.outputs[0].token_ids) for output in llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], [params(limit) for limit in limits])]
    finally:
        llm.llm_engine.engine_core.shutdown()      # frees the GPU's memory for the next engine


@contextmanager
def _by_transformers(model: str, eos_token_ids: list[int], longest: int,
                     sampling: StudentSampling, seed: int,
                     engine: Mapping[str, Any]) -> Iterator[Sampler]:
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

    def run(prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
        set_seed(seed)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))   # keeps padding small
        out: list[list[int]] = [[] for _ in prompts]
        with progress(f"sampling {'/'.join(model.split('/')[-2:])}", len(prompts)) as advance:
            for start in range(0, len(order), BATCH):
                batch = order[start:start + BATCH]
                rows = decode(student, [prompts[i] for i in batch],
                              max_tokens=[limits[i] for i in batch],
                              temperature=sampling.temperature, top_p=sampling.top_p,
                              eos_token_ids=eos_token_ids)
                for index, row in zip(batch, rows, strict=True):
                    out[index] = row
                advance(len(batch))
        return out

    yield run
