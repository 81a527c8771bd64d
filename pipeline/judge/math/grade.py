"""A math answer against its golds: by the rules, else a task for the engine in a worker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from pipeline.completion import Verdict
from pipeline.judge.extract import gold_answers, is_prose
from pipeline.judge.math.compare import same
from pipeline.judge.math.latex import MAX_ANSWER, clean
from pipeline.judge.math.parse import parse
from pipeline.judge.math.rational import TooLargeError
from pipeline.judge.verdict import Judgement, Policy, Problem, WorkerTask, judgement


def grade(_: str, answers: Sequence[str], problem: Problem) -> Judgement | WorkerTask:
    if not answers:
        return judgement("no_answer", None, "extract")
    steps = [_compare(", ".join(answers), gold, problem.policy, problem.problem)
             for gold in problem.golds]
    return min(steps, key=_doubt)


def _doubt(step: Judgement | WorkerTask) -> int:
    """Orders what several spellings of a gold say of an answer: right, undecided, wrong."""
    return 1 if isinstance(step, WorkerTask) or step.score is None else 0 if step.score else 2


@lru_cache(maxsize=100_000)
def _compare(answer: str, gold: str, policy: Policy, statement: str) -> Judgement | WorkerTask:
    verdict: Verdict
    gold = gold_answer(gold)
    if not gold:
        return judgement("cannot_judge", answer, "rules")
    if max(len(answer), len(gold)) > MAX_ANSWER:
        verdict = "correct" if answer.strip() == gold.strip() else \
            "wrong" if len(gold) < MAX_ANSWER // 4 else "cannot_judge"
        return judgement(verdict, answer[:MAX_ANSWER], "rules")
    try:
        result = same(gold, answer, policy, statement)
    except TooLargeError:
        return judgement("cannot_judge", answer, "rules")
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        return judgement("error", answer, "rules")  # a fault of ours: counted, never a zero
    if result is not None:
        verdict = "correct" if result else "wrong"
        if not result and _hedged(gold, answer):
            verdict = "several_answers"
        return judgement(verdict, answer, "rules")
    if not _safe(answer) or not _safe(gold) or _RISKY.search(clean(answer)):
        return judgement("cannot_judge", answer, "rules")
    return _to_engine(gold, answer)


def _to_engine(gold: str, answer: str) -> WorkerTask:
    verdicts: dict[bool | None, Verdict] = {None: "cannot_judge", True: "correct", False: "wrong"}
    return WorkerTask("math", (gold, answer, True), answer, "math-verify",
                    lambda reply: judgement(verdicts[reply], answer, "math-verify"))


@lru_cache(maxsize=50_000)
def gold_answer(text: str) -> str:
    """The answer within a gold: as it stands, or what its solution text boxes or states."""
    if "boxed" in text or is_prose(text):
        return ", ".join(gold_answers(text)) if "boxed" in text or "answer" in text else text
    return text


def _hedged(gold: str, answer: str) -> bool:
    """Whether several different values were offered for one."""
    node = parse(answer)
    return (node.kind in ("list", "set") and parse(gold).kind not in ("list", "set", "union")) \
        or (node.kind == "relation" and parse(gold).kind != "relation")


_ENGINE = re.compile(r"[\w\s\\{}()\[\].,:;+*/^=<>|&$%-]*")
_HEAVY = re.compile(r"\d{12,}|!|\^[^^]*\^|\\binom|\*\*|\d{3,}\s*[)}]*\s*\^|\^\s*[{(]?\s*-?\d{3,}")

_RISKY = re.compile(r"‹|\\(?:text|mbox|rightarrow|approx|sim|equiv|ne|Rightarrow|implies|iff)\b"
                    r"|[?|:]|\d\s+\d|\d\s*\(\s*\d|__")
"""What math-verify would read one part of and drop the other: a way to offer two answers."""


def _safe(text: str) -> bool:
    """Whether the engine may see `text`: short, plain characters, nothing that explodes."""
    return len(text) <= 400 and bool(_ENGINE.fullmatch(text)) and not _HEAVY.search(text) \
        and not is_prose(text)


def check_gold(problem: Problem) -> Judgement | WorkerTask | None:
    """cannot_judge for a gold that no other wording would ever equal; None for one to judge."""
    gold = gold_answer(problem.answer)
    if not gold.strip():
        return judgement("cannot_judge", None, "rules")
    opaque = parse(gold).kind == "opaque"
    if is_prose(gold) or (opaque and not _safe(gold)):
        return judgement("cannot_judge", gold, "rules")
    return _to_engine(gold, gold) if opaque else None
