"""A student that teaches: traces sampled in this process, through the store of all traces.

Each sample draws from a generator of its own, seeded by the trace's key and index, and the batches
are the same after an interruption: a run that is killed and repeated gives the same traces.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pipeline.config.teacher import Sampling, TeacherRuntime, TransformersTeacher
from pipeline.errors import UserError
from pipeline.stage import model_identity
from pipeline.student.positions import positions
from pipeline.student.sample import complete
from pipeline.student.template import end_of_turn_ids, opens_thinking, prompt_ids
from pipeline.student.tokenizer import load_tokenizer
from pipeline.teacher.outcome import Display, Outcome
from pipeline.teacher.request import Job, Keys, Request
from pipeline.teacher.store import TraceStore
from pipeline.teacher.trace_rows import asked_row

LONGEST = 4096
"""Tokens of a completion where sampling.max_tokens sets none."""


def generate(requests: Iterable[Request], *, teacher: TransformersTeacher, sampling: Sampling,
             runtime: TeacherRuntime, store: TraceStore,
             on_progress: Callable[..., None] | None = None, accept_rate: Any = None) -> Outcome:
    """Sample those of `requests` that `store` lacks; as pipeline.teacher.scheduler.generate."""
    requests, keys = list(requests), Keys(teacher, sampling)
    with store.writing() as leases:
        missing = {(keys.of(one.messages), one.sample)
                   for one in store.missing(requests, teacher, sampling)}
        outcome = Outcome(wanted=len(missing), reused=len(requests) - len(missing),
                          accept_rate=accept_rate)
        display = Display(outcome, on_progress)
        student = LocalStudent(teacher.model, sampling)
        batches = [{f"{keys.of(one.messages)}:{one.sample}": one
                    for one in requests[start:start + teacher.batch]
                    if (keys.of(one.messages), one.sample) in missing}
                   for start in range(0, len(requests), teacher.batch)]
        for batch in leases.shared(batches):
            began = time.monotonic()
            rows = [{**asked_row(Job(keys.of(one.messages), one.messages, range(0)), one.sample,
                                 keys.origin, sampling), **row}
                    for one, row in zip(batch, student.traces(batch, keys), strict=True)]
            seconds = (time.monotonic() - began) / len(rows)
            store.append(*({**row, "seconds": seconds} for row in rows))
            for row in rows:
                leases.end(f"{row['key']}:{row['sample']}", stored=True)
                outcome.count(row)
            display.show(len(rows), len(batch))
        outcome.seconds = time.monotonic() - display.began
        outcome.reused, outcome.wanted = len(requests) - outcome.asked, outcome.asked
    return outcome


class LocalStudent:
    """A checkpoint with its tokenizer, ready to be sampled."""

    def __init__(self, model: str, sampling: Sampling) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from pipeline.progress import quiet_libraries
        from pipeline.student.decode import keep_freed_memory

        keep_freed_memory()
        quiet_libraries()
        self.identity, self.sampling = model_identity(model), sampling
        self.tokenizer = load_tokenizer(model)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        except (OSError, ValueError) as error:
            raise UserError(f"generate.teacher.model {model!r} cannot be loaded: "
                            f"{str(error).splitlines()[0]}") from None
        self.model = loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.eos_token_ids = end_of_turn_ids(self.tokenizer, model)
        self.longest = sampling.max_tokens or min(LONGEST, positions(model) or LONGEST)

    def traces(self, batch: Sequence[Request], keys: Keys) -> list[dict[str, Any]]:
        """Sample one trace of each request; returns the columns that say what came."""
        import torch

        from pipeline.student.decode import decode

        prompts = [prompt_ids(self.tokenizer, list(one.messages)) for one in batch]
        draws = np.stack([_draws(keys.of(one.messages), one.sample, self.sampling.seed,
                                 self.longest) for one in batch])
        temperature = self.sampling.temperature
        ids = decode(self.model, prompts, max_tokens=self.longest,
                     temperature=1.0 if temperature is None else temperature,
                     top_p=self.sampling.top_p or 1.0, eos_token_ids=self.eos_token_ids,
                     draws=torch.from_numpy(draws).to(self.model.device))
        opened = opens_thinking(self.tokenizer)
        out = []
        for prompt, row in zip(prompts, ids, strict=True):
            completion, tokens = complete(self.tokenizer, row, opened, self.eos_token_ids)
            out.append({"thinking": completion.thinking, "answer": completion.answer,
                        "finish_reason": completion.finish_reason,
                        "complete": bool(completion.closed and completion.answer
                                         and completion.finish_reason == "stop"),
                        "prompt_tokens": len(prompt), "completion_tokens": tokens,
                        "cost_usd": 0.0, "model": self.identity})
        return out


def _draws(key: str, sample: int, seed: int | None, count: int) -> np.ndarray:
    """`count` uniform numbers that belong to this sample alone."""
    digest = hashlib.blake2b(f"{key} {sample} {seed}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest)).random(count, dtype=np.float32)
