"""Code answers: HumanEval, MBPP and stdin/stdout tests, run in two boxes or compared outside.

meta of a code problem holds one of: `test` and `entry_point` (HumanEval), `test_list` and
`test_imports` (MBPP), or `inputs` and `outputs` (lists of strings, one per run). With `fn_name` an
input is the arguments of that function, a JSON value a line, and an output its JSON value; with
`numbers` lines are equal too if they hold the same numbers. Both are LiveCodeBench's.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any

from pipeline.errors import UserError
from pipeline.judge.code import sandbox
from pipeline.judge.code.sandbox import Box, Limits
from pipeline.judge.verdict import Judgement, Problem, judgement

_FENCE = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)```", re.S | re.I)


def program_of(text: str, problem: Problem) -> str | None:
    """Return the last fenced block of `text`, or the text itself if it compiles, or None."""
    # a bare body is put after the problem's own header (HumanEval's completion form)
    blocks = _FENCE.findall(text) if text.count("```") <= 200 else []
    program = blocks[-1] if blocks else text.strip("\n")
    name = problem.meta.get("entry_point")
    if name and f"def {name}" not in program and f"def {name}" in problem.problem:
        program = problem.problem + program
    return program if blocks or _compiles(program) else None


def _compiles(program: str) -> bool:
    try:
        compile(program, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


FORMS = {"inputs": ("inputs", "outputs"), "test": ("test", "entry_point"),
         "test_list": ("test_list",)}


def check_tests(problem: Problem) -> None:
    """Check that `problem.meta` holds tests in one of the three forms. Raises UserError if not."""
    form = next((FORMS[name] for name in FORMS if name in problem.meta), None)
    named = f"code problem {problem.problem_id!r}"
    if form is None:
        raise UserError(f"{named} has no tests in its meta: give test and entry_point, test_list, "
                        "or inputs and outputs")
    values: list[Any] = [problem.meta.get(name) for name in form]
    if form == FORMS["test"]:
        if not all(isinstance(one, str) for one in values):
            raise UserError(f"{named}: test and entry_point in its meta must both be text")
    elif not all(isinstance(one, list) and all(isinstance(test, str) for test in one)
                 for one in values):
        raise UserError(f"{named}: {' and '.join(form)} in its meta must be lists of strings")
    elif not all(values):
        raise UserError(f"{named} has an empty list of tests")
    elif len(values[0]) != len(values[-1]):
        raise UserError(f"{named}: inputs and outputs in its meta differ in length")
    elif not str(problem.meta.get("fn_name", "f")).isidentifier():
        raise UserError(f"{named}: fn_name in its meta must be the name of a function")


def grade(text: str, _: Sequence[str], problem: Problem) -> Judgement:
    """Grade a program by its tests. Raises UserError without tests or a working sandbox."""
    check_tests(problem)
    program = program_of(text, problem)
    if program is None:
        return judgement("no_answer", None, "sandbox")
    meta = problem.meta
    if "inputs" in meta:
        if "fn_name" in meta:
            program = f"{_IMPORTS}\n{program}\n{_CALL.format(name=meta['fn_name'])}"
        passed = run_stdio(program, meta["inputs"], meta["outputs"], bool(meta.get("numbers")))
    elif "test" in meta:  # which may use the imports of the problem's own header
        header = [line for line in problem.problem.splitlines()
                  if line.startswith(("import ", "from "))]
        passed = run_tests(program, [f"{meta['test']}\ncheck({meta['entry_point']})"],
                           "\n".join(header))
    else:
        passed = run_tests(program, meta["test_list"], "\n".join(meta.get("test_imports") or []))
    return judgement("correct" if all(passed) else "wrong", program, "sandbox")


_IMPORTS = """import bisect, collections, functools, heapq, itertools, math, operator, random, re
import string
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
"""
"""What LiveCodeBench lets a solution take for granted."""
_CALL = """
def _call():
    import json, sys
    given = [json.loads(line) for line in sys.stdin.read().split("\\n") if line.strip()]
    owner = globals().get("Solution")
    found = getattr(owner(), "{name}") if owner else globals()["{name}"]
    print(json.dumps(found(*given)))
_call()
"""


def run_stdio(program: str, inputs: Sequence[str], outputs: Sequence[str],
              numbers: bool = False) -> list[bool]:
    """Run once per input; compare outputs here, by lines without trailing space.

    With `numbers` a line is right too if its numbers are: 1.0 is 1.
    """
    passed = []
    for stdin, expected in zip(inputs, outputs, strict=True):
        result = sandbox.run(program, stdin)
        passed.append(result.ended == "exit" and result.code == 0
                      and _same_lines(result.output, expected, numbers))
        if not passed[-1]:
            break
    return passed + [False] * (len(inputs) - len(passed))


def _same_lines(output: str, expected: str, numbers: bool) -> bool:
    said, right = _lines(output), _lines(expected)
    return said == right or (numbers and len(said) == len(right) and all(
        one.strip() == other.strip() or _same_numbers(one, other)
        for one, other in zip(said, right, strict=True)))


def _same_numbers(line: str, expected: str) -> bool:
    try:
        return list(map(Decimal, line.split())) == list(map(Decimal, expected.split()))
    except InvalidOperation:
        with suppress(ValueError):      # a JSON value, spaced in another way
            return json.loads(line) == json.loads(expected)
        return False


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def run_tests(program: str, cases: Sequence[str], setup: str = "",
              limits: Limits = Limits(), test_seconds: float = 2.0) -> list[bool]:  # noqa: B008
    """Tell which tests pass. A test that hangs or ends the program costs itself alone."""
    sandbox.probe()
    passed: list[bool] = []
    while len(passed) < len(cases):
        results, loaded = _session(program, cases[len(passed):], setup, limits, test_seconds)
        passed += results
        if not loaded:
            return passed + [False] * (len(cases) - len(passed))
        if len(passed) < len(cases):
            passed.append(False)
    return passed


def _session(program: str, cases: Sequence[str], setup: str, limits: Limits,
             test_seconds: float) -> tuple[list[bool], bool]:
    """Results up to the first test that ends a box, and whether the program loaded."""
    passed: list[bool] = []
    with Box("solution", {"code": program}, limits) as solution, \
            Box("tests", {"setup": setup, "cases": list(cases)}, limits) as tests:
        if "value" not in (solution.line() or {}):
            return [], False
        while len(passed) < len(cases):
            tests.deadline = solution.deadline = time.monotonic() + test_seconds
            result = _relay(tests, solution)
            if result is None:
                break
            passed.append(result)
    return passed, True


def _relay(tests: Box, solution: Box) -> bool | None:
    """Carry questions until the test reports; None if either box ended."""
    while message := tests.line():
        if "passed" in message:
            return message["passed"] is True
        solution.send(message["ask"])
        answer = solution.line()
        if answer is None:
            return None
        tests.send(answer)
    return None


def check_gold(problem: Problem) -> Judgement:
    """Accept a problem with tests: it needs no program. Raises UserError without tests."""
    check_tests(problem)
    return judgement("correct", None, "unchecked")
