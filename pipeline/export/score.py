"""Scores an exported student on a benchmark, judged as every other model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.completion import Messages
from pipeline.config.evaluate import StudentSampling
from pipeline.evaluate.judged import judged_rows
from pipeline.evaluate.metrics import summarise
from pipeline.export.llama_cpp import LlamaCpp
from pipeline.judge import JudgePool
from pipeline.progress import progress
from pipeline.student.sample import Sampled, complete, sample
from pipeline.student.template import opens_thinking, prompt_ids


def score(server: LlamaCpp, slots: int, tokenizer: Any, ends: list[int], rows: Sequence[dict],
          chats: Mapping[str, Messages], sampling: StudentSampling, samples: int, seed: int,
          workers: int, name: str) -> dict[str, Any]:
    """Return the metrics of `samples` answers to each problem of `rows`; `slots` at a time."""
    opened = opens_thinking(tokenizer)
    wanted = [(row["problem_id"], index) for row in rows for index in range(samples)]

    def answer(one: tuple[str, int]) -> Sampled:
        done = server.complete(prompt_ids(tokenizer, chats[one[0]]), sampling.max_tokens,
                               temperature=sampling.temperature, top_p=sampling.top_p,
                               seed=hash((seed, one[1])) % 2**31)
        ended = done["stop_type"] == "eos" and done["tokens"][-1:] != [ends[0]]
        return complete(tokenizer, done["tokens"] + ([ends[0]] if ended else []), opened, ends)

    got: list[tuple] = []
    with progress(f"scoring {name}", len(wanted)) as advance, ThreadPoolExecutor(slots) as pool:
        for (problem, index), (completion, tokens) in zip(wanted, pool.map(answer, wanted),
                                                          strict=True):
            got.append((problem, index, completion, tokens, 0.0))
            advance(1)
    return _judged(got, rows, workers, name)


def score_folder(folder: Path, rows: Sequence[dict], chats: Mapping[str, Messages],
                 sampling: StudentSampling, samples: int, seed: int,
                 workers: int) -> dict[str, Any]:
    """Return the same metrics of a checkpoint folder: by vLLM if there is a GPU for it."""
    groups = sample(str(folder), str(folder), [chats[row["problem_id"]] for row in rows], samples,
                    sampling, seed)
    got = [(row["problem_id"], index, completion, tokens, 0.0)
           for row, group in zip(rows, groups, strict=True)
           for index, (completion, tokens) in enumerate(group)]
    return _judged(got, rows, workers, folder.name)


def _judged(got: list[tuple], rows: Sequence[dict], workers: int, name: str) -> dict[str, Any]:
    with JudgePool(workers) as judges:
        judged = judged_rows(judges, name, {row["problem_id"]: row for row in rows}, got)
    return {**summarise(judged), "reasoned": sum(row["thinking"] is not None and not row["cut_off"]
                                                 for row in judged) / len(judged)}
