"""A math answer against its golds: by the rules, else a task for the engine in a worker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from pipeline.completion import Verdict
from pipeline.judge.extract import gold_answers, is_prose
from pipeline.judge.math.compare import same
from pipeline.judge.math.forms.restated import restated
from pipeline.judge.math.forms.wrappings import unwrap
from pipeline.judge.math.latex import MAX_ANSWER, clean
from pipeline.judge.math.parse import parse
from pipeline.judge.math.phrases import chosen
from pipeline.judge.math.rational import TooLargeError
from pipeline.judge.verdict import Judgement, Policy, Problem, WorkerTask, judgement


def grade(_: str, answers: Sequence[str], problem: Problem) -> Judgement | WorkerTask:
    if not answers:
        return judgement("no_answer", None, "extract")
    steps = [_compare(", ".join(answers), gold, problem.policy, problem.problem)
             for gold in problem.golds]
    return steps[0] if len(steps) == 1 else min(steps, key=_doubt)


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
        if result is not False and policy.restated == "refused" and \
                restated(gold, answer, statement):
            return judgement("wrong", answer, "restated")
    except (TooLargeError, RecursionError):
        return judgement("cannot_judge", answer, "rules")
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return judgement("error", answer, "rules")  # a fault of ours: counted, never a zero
    if is_prose(gold) and not result:
        if chosen(gold, answer, statement):
            return judgement("correct", answer, "rules")
        return judgement("cannot_judge", answer, "rules")  # only a reader knows what else says it
    if result is not None:
        verdict = "correct" if result else "wrong"
        if not result and _hedged(gold, answer):
            verdict = "several_answers"
        return judgement(verdict, answer, "rules")
    return _asked_of_engine(gold, answer, policy, statement)


def _asked_of_engine(gold: str, answer: str, policy: Policy,
                     statement: str) -> Judgement | WorkerTask:
    """A task for the engine, if it can read all of both texts; else cannot_judge."""
    node, asked = parse(answer), clean(answer)
    if node.kind == "relation" and set(node.detail.split()) <= {"=", "chain"}:
        open_ = [item.text for item in node.items if item.kind == "opaque"]
        closed = [item for item in node.items if item.kind == "value"]
        if len(open_) == 1 and closed and parse(gold).tree != ("c", "oo") and all(
                same(gold, item.text, policy, statement) for item in closed):
            asked = open_[0]  # a worked equation: its other side is the gold's value
    partly = node.kind == "relation" and asked == clean(answer) and parse(gold).kind != "relation"
    needed = any(_NEEDED.search(text) for text in (asked, clean(gold)))
    if partly or not needed or not _safe(asked) or not _safe(clean(gold)):
        return judgement("cannot_judge", answer, "rules")
    return _to_engine(unwrap(gold), unwrap(answer) if asked == clean(answer) else asked, answer)


def _to_engine(gold: str, asked: str, answer: str) -> WorkerTask:
    verdicts: dict[bool | None, Verdict] = {None: "cannot_judge", True: "correct", False: "wrong"}
    return WorkerTask("math", (gold, asked, True), answer, "math-verify",
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


_ENGINE = re.compile(r"[\w\s\\{}()\[\].,;+*/^=<>&⟦⟧⏎⦃⦄%!-]*")
_COMMANDS = frozenset([
    "frac", "sqrt", "sum", "prod", "int", "lim", "binom", "pi", "infty", "sin", "cos", "tan",
    "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log",
    "exp", "cdot", "le", "ge", "ne", "pm", "cup", "cap", "emptyset", "mathbb", "setminus",
    "circ", "alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega", "rho",
    "sigma", "tau", "epsilon", "rightarrow", "ldots", "det", "lfloor", "rfloor", "lceil",
    "rceil", "Delta", "Omega", "d", "in"])
"""What the engine reads as it stands; of a text with any other command it may read a part."""
_NEEDED = re.compile(r"\\(?:sum|prod|int|lim|setminus|cup|cap|det)\b|⟦")
"""What our own reader lacks: of any other text that it cannot read, the engine reads a part."""
_PART_READ = re.compile(r"(?<![\d^_])\d+\s+\d|\d\s*\(\s*\d|__|^(?!.*\\lim).*\\rightarrow|[⦃⦄%]"
                        r"|\\(?![A-Za-z])|(?<![\\A-Za-z])(?!d[a-z](?![A-Za-z]))[A-Za-z]{2,}")
_HEAVY = re.compile(r"\d{12,}|!|\^[^^]*\^|\\binom|\*\*|\d{3,}\s*[)}]*\s*\^|\^\s*[{(]?\s*-?\d{3,}")


def _safe(text: str) -> bool:
    """Whether the engine may see a cleaned `text`: short, wholly readable, nothing explosive."""
    return len(text) <= 400 and bool(_ENGINE.fullmatch(text)) and not _HEAVY.search(text) \
        and set(re.findall(r"\\([A-Za-z]+)", text)) <= _COMMANDS and not _PART_READ.search(text) \
        and not is_prose(text)


def check_gold(problem: Problem) -> Judgement | WorkerTask | None:
    """cannot_judge for a gold that no other wording would ever equal; None for one to judge."""
    gold = gold_answer(problem.answer)
    if not gold.strip():
        return judgement("cannot_judge", None, "rules")
    opaque = parse(gold).kind == "opaque"
    if is_prose(gold) or (opaque and not _safe(clean(gold))):
        return judgement("cannot_judge", gold, "rules")
    return _to_engine(gold, gold, gold) if opaque else None
