"""judge(): one completion against one problem. The only place where a verdict is made."""

from __future__ import annotations

import atexit
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.completion import Completion, split_completion
from pipeline.errors import UserError
from pipeline.judge import choice
from pipeline.judge.code.grade import check_tests, judge_code
from pipeline.judge.extract import extract, gold_answers, is_prose
from pipeline.judge.gym import countdown, safe_for_scorer
from pipeline.judge.math.compare import same
from pipeline.judge.math.latex import MAX_ANSWER, clean
from pipeline.judge.math.parse import parse
from pipeline.judge.math.rational import TooLargeError
from pipeline.judge.pool import JudgePool, WorkerKilledError
from pipeline.judge.verdict import Judgement, Policy, Problem, Verdict, judgement


@dataclass(frozen=True)
class WorkerTask:
    """An answer that the rules leave to a worker: the question, and how to read the reply."""

    task: str
    arguments: tuple[Any, ...]
    extracted: str
    grader: str
    read: Callable[[Any], Judgement]


def judge(completion: str | Completion, problem: Problem, *, opened: bool = False,
          pool: JudgePool | None = None) -> Judgement:
    """The verdict on `completion`, in at most the pool's seconds (default 5) whatever the text.

    `opened` says that the prompt itself ended in <think>. Only what follows closed thinking
    counts; the last box decides. Raises UserError for a problem whose kind is unknown or whose
    meta lacks what the kind needs, and nothing else.
    """
    return resolve(judge_by_rules(completion, problem, opened=opened), pool or default_pool())


def judge_answer(answer: str, problem: Problem, pool: JudgePool | None = None) -> Judgement:
    """The verdict on an answer already extracted (no thinking, no box)."""
    step = _by_kind(problem)(answer, [answer] if answer.strip() else [], problem)
    return resolve(step, pool or default_pool())


def judge_by_rules(completion: str | Completion, problem: Problem, *,
          opened: bool = False) -> Judgement | WorkerTask:
    """The verdict where rules suffice, else the question for a worker."""
    grader = _by_kind(problem)
    if isinstance(completion, str):
        completion = split_completion(completion, opened=opened)
    if not completion.closed:
        return judgement("unclosed_thinking", None, "extract")
    if completion.finish_reason == "length":
        return judgement("cut_off", None, "extract")
    if completion.answer.isspace() or not completion.answer:
        return judgement("no_answer", None, "extract")
    if problem.kind == "math" or problem.kind == "gym":
        return grader(completion.answer, extract(completion.answer, problem.policy.marker), problem)
    return grader(completion.answer, [completion.answer], problem)


def resolve(step: Judgement | WorkerTask, pool: JudgePool) -> Judgement:
    """The verdict on a deferred answer, from a worker of `pool`."""
    if isinstance(step, Judgement):
        return step
    try:
        return step.read(pool.ask(step.task, step.arguments))
    except ValueError:
        return judgement("cannot_judge", step.extracted, step.grader)
    except WorkerKilledError as lost:
        verdict: Verdict = "timeout" if lost.args[0] == "timeout" else "error"
        return judgement(verdict, step.extracted, step.grader)


@lru_cache(maxsize=1)
def default_pool() -> JudgePool:
    """The pool of calls that name none: two workers, started when first needed."""
    pool = JudgePool(workers=2)
    atexit.register(pool.close)
    return pool


def check_gold(problem: Problem, pool: JudgePool | None = None) -> Judgement:
    """The gold answer judged against itself, as a completion would state it.

    prepare drops or reports what is not "correct" here, before any teacher token is paid for; a
    code problem without tests that can be run is a UserError. A math gold that is a sentence, or
    that neither the rules nor the engine can read, is cannot_judge: no other wording of it would
    ever be recognised.
    """
    gold = gold_answer(problem.answer) if problem.kind == "math" else ""
    if problem.kind == "math" and not gold.strip():
        return judgement("cannot_judge", None, "rules")
    if gold and (is_prose(gold) or (parse(gold).kind == "opaque" and not _safe(gold))):
        return judgement("cannot_judge", gold, "rules")
    if gold and parse(gold).kind == "opaque":
        return resolve(_to_engine(gold, gold), pool or default_pool())
    if problem.kind == "code":
        check_tests(problem)
    if problem.kind in ("code", "gym"):
        return judge_answer(problem.answer, problem, pool) if problem.answer and \
            problem.kind == "gym" else judgement("correct", None, "unchecked")
    text = problem.answer if problem.kind in ("exact", "text") or "\\boxed" in problem.answer else \
        f"\\boxed{{{problem.answer}}}"
    if problem.policy.marker == "tag":
        text = f"<answer>{problem.answer}</answer>"
    return judge(text, problem, pool=pool)


def _by_kind(problem: Problem) -> Callable[[str, list[str], Problem], Judgement | WorkerTask]:
    kinds = {"math": _math, "choice": _choice, "exact": _exact, "text": _exact, "gym": _gym,
             "code": _code}
    if problem.kind not in kinds:
        raise UserError(f"problem {problem.problem_id!r} has kind {problem.kind!r}; known kinds: "
                        + ", ".join(kinds))
    return kinds[problem.kind]


def _math(_: str, answers: list[str], problem: Problem) -> Judgement | WorkerTask:
    if not answers:
        return judgement("no_answer", None, "extract")
    steps = [_compare(", ".join(answers), gold, problem.policy, problem.problem)
             for gold in problem.golds]
    return min(steps, key=_doubt)


def _doubt(step: Judgement | WorkerTask) -> int:
    """Orders what several spellings of a gold say of an answer: right, undecided, wrong."""
    return 1 if isinstance(step, WorkerTask) or step.score is None else 0 if step.score else 2


@lru_cache(maxsize=100_000)
def _compare(answer: str, gold: str, policy: Policy, given: str) -> Judgement | WorkerTask:
    verdict: Verdict
    gold = gold_answer(gold)
    if not gold:
        return judgement("cannot_judge", answer, "rules")
    if max(len(answer), len(gold)) > MAX_ANSWER:
        verdict = "correct" if answer.strip() == gold.strip() else \
            "wrong" if len(gold) < MAX_ANSWER // 4 else "cannot_judge"
        return judgement(verdict, answer[:MAX_ANSWER], "rules")
    try:
        result = same(gold, answer, policy, given)
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


def _choice(text: str, _: list[str], problem: Problem) -> Judgement:
    gold, found = choice.letters(f"\\boxed{{{gold_answer(problem.answer)}}}"), choice.letters(text)
    if not gold:
        return judgement("cannot_judge", ", ".join(found) or None, "choice")
    if not found:
        return judgement("no_answer", None, "choice")
    several = len(found) > 1 and len(gold) == 1
    verdict: Verdict = "correct" if found == gold else "several_answers" if several else "wrong"
    return judgement(verdict, ", ".join(found), "choice")


def _exact(text: str, _: list[str], problem: Problem) -> Judgement:
    """Equal or not; of a text that differs only a reader can tell whether it says the same."""
    unequal: Verdict = "cannot_judge" if problem.kind == "text" else "wrong"
    answer = ", ".join(extract(text, "any")) if "boxed" in text or "<answer>" in text else text
    if not problem.answer.strip():
        return judgement("cannot_judge", answer.strip(), problem.kind)
    right = choice.exact_key(answer) == choice.exact_key(problem.answer)
    return judgement("correct" if right else unequal, answer.strip(), problem.kind)


def _gym(_: str, answers: list[str], problem: Problem) -> Judgement | WorkerTask:
    if not answers:
        return judgement("no_answer", None, "gym")
    meta, answer = problem.meta, answers[-1]
    if meta.get("task") == "countdown" and "numbers" in meta:
        if len(answers) > 1:
            return judgement("several_answers", ", ".join(answers), "countdown")
        verdict = countdown(answer, meta["numbers"], meta["target"])
        return judgement(verdict, answer, "countdown")  # type: ignore[arg-type]
    if "entry" not in meta or "task" not in meta:
        raise UserError(f"problem {problem.problem_id!r} of kind gym needs meta task and entry")
    if not safe_for_scorer(meta["task"], answer):
        return judgement("wrong", answer, "refused: not the form of an answer to this task")
    return WorkerTask("gym", (meta["task"], meta["entry"], answer), answer, "reasoning-gym",
                    lambda score: judgement("correct" if score >= 1 else "wrong", answer,
                                            "reasoning-gym", float(score)))


def _code(text: str, _: list[str], problem: Problem) -> Judgement:
    return judge_code(text, problem)
