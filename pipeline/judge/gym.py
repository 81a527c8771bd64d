"""Countdown, judged here: an expression that uses every number once and reaches the target.

Other reasoning-gym tasks go to their own scorer in a worker (worker.gym_score), their answers
past safe_for_scorer().
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from pipeline.completion import Verdict
from pipeline.errors import UserError
from pipeline.judge.verdict import Judgement, Problem, WorkerTask, judgement

_SPELLING = ((re.compile(r"\\(?:times|cdot|ast)|×|·|∗"), "*"), (re.compile(r"\\div|÷"), "/"),
             (re.compile(r"[−–]"), "-"),
             (re.compile(r"\\(?:left|right|,|;|!|\s)|\$|\\[()\[\]]"), ""),
             (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
             (re.compile(r"\\text\{[^{}]*\}"), ""), (re.compile(r"\["), "("),
             (re.compile(r"\]"), ")"))
_ALLOWED = re.compile(r"[\d\s+*/()-]{1,200}")


_EXPRESSIONS = frozenset([
    "countdown", "puzzle24", "simple_integration", "intermediate_integration",
    "polynomial_multiplication", "polynomial_equations"])
_LISTS = frozenset([
    "string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "number_sorting"])
_LIST = re.compile(r"[A-Za-z0-9_,.\s'\"\[\]-]*")
_FORMULA = re.compile(r"(?:sin|cos|tan|exp|log|sqrt|pi|[A-Za-z](?![A-Za-z_])|\d++(?:\.\d++)?"
                      r"|[\s+*/^()-])*")


def safe_for_scorer(task: str, answer: str) -> bool:
    """Whether reasoning-gym's scorer of `task` may see `answer`."""
    # its scorers of these tasks hand the answer to eval() or sympy's parse_expr (version 0.1.25):
    # they get only text that can name nothing and call nothing but elementary functions
    if task in _LISTS:
        return len(answer) <= 2000 and bool(_LIST.fullmatch(answer))
    if task in _EXPRESSIONS:
        return len(answer) <= 300 and bool(_FORMULA.fullmatch(answer))
    return len(answer) <= 20_000


def countdown(answer: str, numbers: Sequence[int], target: int) -> Verdict:
    """Grade e.g. "(25 - 5) * 3 = 60": correct, wrong or no_answer."""
    if "\\" in answer or not answer.isascii():
        for pattern, plain in _SPELLING:
            answer = pattern.sub(plain, answer)
    expression, equals, tail = answer.strip().strip(".").partition("=")
    if not _ALLOWED.fullmatch(expression) or "**" in expression or "//" in expression:
        return "wrong" if expression else "no_answer"
    if equals and tail.strip() != str(target):
        return "wrong"
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        used: Counter[int] = Counter()
        value = _value(tree.body, used)
    except (SyntaxError, ZeroDivisionError, ValueError, RecursionError, MemoryError):
        return "wrong"
    return "correct" if value == target and used == Counter(map(int, numbers)) else "wrong"


_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: Fraction}


def _value(node: ast.expr, used: Counter[int]) -> Fraction | int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used[node.value] += 1
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, used)
    if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATIONS:
        raise ValueError("not arithmetic")
    return _OPERATIONS[type(node.op)](_value(node.left, used), _value(node.right, used))


def grade(_: str, answers: Sequence[str], problem: Problem) -> Judgement | WorkerTask:
    if not answers:
        return judgement("no_answer", None, "gym")
    meta, answer = problem.meta, answers[-1]
    if meta.get("task") == "countdown" and "numbers" in meta:
        if len(answers) > 1:
            return judgement("several_answers", ", ".join(answers), "countdown")
        verdict = countdown(answer, meta["numbers"], meta["target"])
        return judgement(verdict, answer, "countdown")
    if "entry" not in meta or "task" not in meta:
        raise UserError(f"problem {problem.problem_id!r} of kind gym needs meta task and entry")
    if not safe_for_scorer(meta["task"], answer):
        return judgement("wrong", answer, "refused: not the form of an answer to this task")
    return WorkerTask("gym", (meta["task"], meta["entry"], answer), answer, "reasoning-gym",
                    lambda score: judgement("correct" if score >= 1 else "wrong", answer,
                                            "reasoning-gym", float(score)))


def check_gold(problem: Problem) -> Judgement | WorkerTask:
    """Score the gold as an answer; a problem without one is accepted unchecked."""
    if not problem.answer:
        return judgement("correct", None, "unchecked")
    return grade(problem.answer, [problem.answer] if problem.answer.strip() else [], problem)
