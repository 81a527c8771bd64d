"""Tells the kind of a row that names none, by the tests or the choices it holds."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipeline.errors import UserError
from pipeline.problems.columns import decoded

TEST_COLUMNS = ("input_output", "test_cases", "tests", "public_tests", "unit_tests", "test")
CHOICE_COLUMNS = ("choices", "options")


def tests_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """The tests in a row's meta or columns, as meta of a code problem holds them; {} if none.

    HumanEval's test and entry_point, MBPP's test_list with imports or set-up code, inputs and
    outputs, also inside one column (APPS, CodeContests) or as a list of pairs.
    """
    meta = decoded(row.get("meta"))
    for held in (meta, row) if isinstance(meta, Mapping) else (row,):
        if found := _of_asserts(held) or _of_runs(held):
            return found
        for name in TEST_COLUMNS:
            if found := _of_runs(_as_runs(_listed(held.get(name)))):
                return found
    return {}


def _of_asserts(held: Mapping[str, Any]) -> dict[str, Any]:
    test, name = held.get("test"), held.get("entry_point")
    if isinstance(test, str) and isinstance(name, str) and test.strip() and name:
        return {"test": test, "entry_point": name}
    tests = _listed(held.get("test_list"))
    if not _is_texts(tests):
        return {}
    imports = _listed(held.get("test_imports")) or []
    setup = held.get("test_setup_code")
    before = [*(imports if _is_texts(imports) else []), *([setup] if setup else [])]
    return {"test_list": tests, **({"test_imports": before} if before else {})}


def _of_runs(held: Any) -> dict[str, Any]:
    """{inputs, outputs} of a mapping that holds them, unless a function is called by name."""
    if not isinstance(held, Mapping) or held.get("fn_name"):
        return {}
    for pair in (("inputs", "outputs"), ("input", "output")):
        inputs, outputs = (_listed(held.get(name)) for name in pair)
        if _is_texts(inputs) and _is_texts(outputs) and len(inputs) == len(outputs):
            return {"inputs": inputs, "outputs": outputs}
    return {}


def _as_runs(value: Any) -> Any:
    """A list of {input, output} as {inputs, outputs}; anything else as it is."""
    if not (isinstance(value, list) and value and all(isinstance(x, Mapping) for x in value)):
        return value
    if any(one.get("fn_name") or one.get("testtype") == "functional" for one in value):
        return None
    return {f"{name}s": [one.get(name) for one in value] for name in ("input", "output")}


def _listed(value: Any) -> Any:
    """`value`, or the list or object that its text spells as JSON or Python, as CSV holds it."""
    value = decoded(value)
    if isinstance(value, str) and value.startswith(("['", '["')):
        with suppress(SyntaxError, ValueError):
            return literal_eval(value)
    return value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, str) for x in value)


def refuse_unlike_math(row: Mapping[str, Any], where: str) -> None:
    """Raises UserError if a row that names no kind holds tests or choices beside its answer."""
    for names, kind, needs in (
            (TEST_COLUMNS, "code", "test_list, test and entry_point, or inputs and outputs"),
            (CHOICE_COLUMNS, "choice", "the options in the problem's text and a letter as answer")):
        meta = decoded(row.get("meta"))
        held = {**(meta if isinstance(meta, Mapping) else {}), **row}
        if name := next((name for name in names if _is_held(_listed(held.get(name)))), None):
            raise UserError(f"{where} has {name!r} and names no kind, so its answer would be "
                            f"compared as maths; set prepare.kind={kind} and give {needs}, or set "
                            "prepare.kind=math if the answer alone decides")


OPTION = re.compile(r"(?:^|[\s(])([A-J])[.):]\s*(.*?)\s*(?=[\s(][A-J][.):]\s|$)", re.DOTALL)
"""An option in a problem's text: its letter and what it says."""


def refuse_option_number(problem: Any, answer: Any, where: str) -> None:
    """Raise UserError if `answer` seems to number one of the options that `problem` lists."""
    options = dict(OPTION.findall(str(problem)))
    number = str(answer).strip()
    if (sorted(options) == list("ABCDEFGHIJ")[:len(options)] and len(options) > 2
            and number.isdecimal() and int(number) <= len(options)
            and not any(re.search(rf"(?<![\d.]){number}(?![\d.])", text)
                        for text in options.values())):     # "(A) } 2\\quad" holds 2
        raise UserError(f"{where} lists the options {', '.join(options)} and its answer {number!r} "
                        "is none of them but seems to number one; set prepare.kind=choice, or "
                        "prepare.kind=math if it is the value")


def _is_held(value: Any) -> bool:
    return isinstance(value, list | Mapping) and bool(value)
