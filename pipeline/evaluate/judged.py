"""Judged samples: one dict each, as completions.parquet holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.judge import JudgePool, Problem
from pipeline.judge.table import is_restatement, judge_all, votes


def judged_rows(pool: JudgePool, model: str, by_id: Mapping[str, dict],
                sampled: Sequence[tuple]) -> list[dict[str, Any]]:
    """Judge `sampled` (problem id, sample, completion, tokens, cost) of `model`."""
    problems = [Problem.from_row(by_id[one[0]]) for one in sampled]
    judgements = judge_all([one[2] for one in sampled], problems, pool, f"judging {model}")
    voted = votes(list(zip(problems, judgements, strict=True)), pool)
    return [{"problem_id": name, "sample": index, "thinking": completion.thinking,
             "answer": completion.answer, "completion_tokens": tokens, "cost_usd": cost,
             "score": judgement.score, "verdict": judgement.verdict,
             "extracted": judgement.extracted, "vote": vote,
             "restated": is_restatement(problem, judgement.score, judgement.extracted),
             "cut_off": completion.finish_reason == "length",
             "problem": by_id[name]["problem"], "gold": by_id[name]["answer"]}
            for (name, index, completion, tokens, cost), problem, judgement, vote
            in zip(sampled, problems, judgements, voted, strict=True)]
