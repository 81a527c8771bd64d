"""`limbeck judge` and `limbeck audit`: the judge over a file of answers, and its second grader.

A row has `gold` (or `answer`) and a `completion` or `prediction`. Of a completion only what follows
closed thinking counts. A prediction with a box, an <answer> tag or thinking tags is read the same
way; any other is the answer itself or, if it is prose, what its last sentences state (extract.py).
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.judge.checks.audit import second_grader
from pipeline.judge.checks.explain import explain
from pipeline.judge.judge import JudgePool, default_pool
from pipeline.judge.kinds import find_kind, kind_name, kind_of
from pipeline.judge.llm import LLMJudge
from pipeline.judge.math.grade_math import gold_answer
from pipeline.judge.user_judge import is_user_kind, load_verifier
from pipeline.judge.verdict import Policy, Problem, make_policy
from pipeline.problems.files import read_rows


def parse_policy(settings: Iterable[str], base: Policy = Policy()) -> Policy:  # noqa: B008
    """`key=value` settings over `base`; the value in JSON or as plain text."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--policy {setting!r} is not of the form name=value")
        try:
            overrides[name] = json.loads(text)
        except ValueError:
            overrides[name] = text
    return make_policy(overrides, base)


def to_problem(row: dict[str, Any], number: int, policy: Policy) -> Problem:
    """Turn row `number` (from 1) into a problem. Raises UserError if it has no gold text."""
    gold, named = row.get("gold", row.get("answer")), str(row.get("kind") or "math")
    kind = kind_name(named)
    known = find_kind(kind)
    several = known is not None and known.spellings
    spellings = list(map(str, gold)) if isinstance(gold, list) and several else []
    if isinstance(gold, list) and gold:
        gold = spellings[0] if spellings else ", ".join(map(str, gold))
    if not isinstance(gold, str | int | float) or isinstance(gold, bool):
        raise UserError(f"row {number} has no text in gold (or answer), but {gold!r}")
    problem = Problem.from_row({**row, "problem_id": row.get("id", number), "answer": str(gold),
                                "kind": kind}, policy)
    return replace(problem, meta={**problem.meta, "spellings": spellings}) if spellings else problem


def response_of(row: dict[str, Any], number: int) -> str:
    """Return the response of row `number`. Raises UserError if it has none."""
    for name in ("completion", "prediction"):
        if name in row:
            return "" if row[name] is None else str(row[name])
    raise UserError(f"row {number} has neither completion nor prediction; it has "
                    + ", ".join(row))


def judge_file(source: Path | str, out: Path | None = None, policy: Sequence[str] = (),
               model: LLMJudge | None = None, explained: bool = False,
               kind: str | None = None) -> dict[str, int]:
    """Judge every row of `source`, write rows with their judgement to `out` or standard output.

    `model` decides what the rules leave open; `explained` adds the rule that decided and how both
    sides were read; `kind` is that of rows that name none. Returns {verdict: how often}.
    """
    settings = parse_policy(policy)
    if kind and is_user_kind(kind):
        load_verifier(kind, "--kind")
    rows = [_of_kind(row, kind, i) for i, row in enumerate(read_rows(source), start=1)]
    problems = [to_problem(row, i, settings) for i, row in enumerate(rows, start=1)]
    texts = [response_of(row, i) for i, row in enumerate(rows, start=1)]
    with JudgePool() as pool:
        judgements = pool.judge_many(texts, problems)
    if model is not None:
        judgements = model.review_all(judgements, problems)
    judged = [row | asdict(j) | (explain(j, problem) if explained else {})
              for row, j, problem in zip(rows, judgements, problems, strict=True)]
    _write(judged, out)
    return dict(Counter(j.verdict for j in judgements))


def _of_kind(row: dict[str, Any], kind: str | None, number: int) -> dict[str, Any]:
    """Row `number` with its kind; no row may name a file to run that the caller did not."""
    named = str(row.get("kind") or kind or "math")
    if is_user_kind(named) and named != kind:
        raise UserError(f"row {number} has kind {named!r}, which would run a file of that name; "
                        f"give --kind {named} if it is yours")
    return {**row, "kind": named} if kind else row


def _write(rows: list[dict[str, Any]], out: Path | None) -> None:
    if out is not None and out.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), out.with_suffix(".partial"),
                       write_page_checksum=True)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if out is None:
            sys.stdout.write(text)
            return
        out.with_suffix(".partial").write_text(text, encoding="utf-8")
    out.with_suffix(".partial").replace(out)


def audit(rows: Sequence[dict[str, Any]], n: int = 200, seed: int = 0) -> dict[str, Any]:
    """Judge a sample of `n` rows again with the second grader.

    Returns {"judged", "disagreements", "rate", "table"}: a table row holds id, gold, extracted,
    verdict, grader and `second`, the second grader's opinion. Rows without a score, and kinds
    that are not `audited`, are left out and counted in "left_out".
    """
    sample = random.Random(seed).sample(list(rows), min(n, len(rows)))
    problems = [to_problem(row, i, Policy()) for i, row in enumerate(sample, start=1)]
    texts = [response_of(row, i) for i, row in enumerate(sample, start=1)]
    table, judged = [], 0
    for problem, j in zip(problems, default_pool().judge_many(texts, problems), strict=True):
        if j.score is None or j.extracted is None or not kind_of(problem).audited:
            continue
        judged += 1
        second = any(second_grader(j.extracted, gold_answer(gold)) for gold in problem.golds)
        if second != (j.score == 1.0):
            table.append({"id": problem.problem_id, "gold": problem.answer, "second": second,
                          "extracted": j.extracted, "verdict": j.verdict, "grader": j.grader})
    return {"judged": judged, "left_out": len(sample) - judged, "disagreements": len(table),
            "rate": len(table) / judged if judged else 0.0, "table": table}
