"""The kinds of problems: a kind is a function that grades an answer and a line in KINDS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pipeline.errors import UserError
from pipeline.judge import gym, ifeval, user_judge
from pipeline.judge.verdict import Judgement, Problem, WorkerTask, judgement

Grade = Callable[[str, Sequence[str], Problem], Judgement | WorkerTask]
"""Of the response after its thinking, the answers stated in it, and the problem."""


@dataclass(frozen=True)
class Kind:
    """How a kind is graded, and what the stages need to know of it."""

    grade: Grade
    check_gold: Callable[[Problem], Judgement | WorkerTask | None] = lambda problem: None
    """Judges the gold; None if it is judged as an answer that a response states."""
    graded: bool = True
    """The gold is an answer, which every problem must have."""
    open: bool = False
    """No answer is right: models judge it (pipeline/judge/models), or nothing does."""
    extracts: bool = False
    """Answers are looked for as extract.py says; else `grade` reads the whole response."""
    boxes_gold: bool = True
    """A response would state the gold in a box."""
    llm_chars: int = 0
    """Characters of an answer that a model may compare with the gold; 0 for none."""
    llm_prose: bool = False
    """Answers may be several sentences."""
    audited: bool = True
    """The second grader can judge it."""
    live: bool = True
    """Judged while the teacher is still asked, for the share accepted so far."""
    spellings: bool = False
    """A gold may come in several spellings, and answers are compared beyond their text."""
    aliases: tuple[str, ...] = ()
    """What other suites call it."""


def _by(name: str) -> Callable[..., Any]:
    """The function MODULE.NAME below pipeline.judge, imported at its first call.

    What grades mathematics compiles hundreds of expressions, which `limbeck plan` needs not.
    """
    module, _, function = name.rpartition(".")
    return lambda *given: getattr(import_module(f"pipeline.judge.{module}"), function)(*given)


KINDS: Mapping[str, Kind] = {
    "math": Kind(_by("math.grade_math.grade"), _by("math.grade_math.check_gold"), extracts=True,
                 llm_chars=300, spellings=True, aliases=("skip",)),
    "choice": Kind(_by("choice.grade_choice"), _by("choice.check_gold"),
                   aliases=("multiple_choice",)),
    "exact": Kind(_by("choice.grade_text"), boxes_gold=False, llm_chars=300,
                  aliases=("free_text",)),
    "text": Kind(_by("choice.grade_text"), boxes_gold=False, llm_chars=4000, llm_prose=True,
                 audited=False, live=False),
    "gym": Kind(gym.grade, gym.check_gold, graded=False, extracts=True, audited=False),
    "open": Kind(lambda answer, stated, problem: judgement("cannot_judge", None, "open"),
                 graded=False, open=True, audited=False, live=False),
    "code": Kind(_by("code.grade_code.grade"), _by("code.grade_code.check_gold"), graded=False,
                 audited=False, live=False),
    "ifeval": Kind(ifeval.grade, ifeval.check_gold, graded=False, audited=False, live=False)}
_BY_ALIAS = {alias: name for name, kind in KINDS.items() for alias in kind.aliases}


_USER = Kind(user_judge.grade, user_judge.check_gold, graded=False, extracts=True, audited=False,
             live=False)


def find_kind(name: str) -> Kind | None:
    """Return the kind `name`, built in or a user's function; None if it is unknown."""
    return _USER if user_judge.is_user_kind(name) else KINDS.get(name)


def kind_of(problem: Problem) -> Kind:
    """The kind of `problem`. Raises UserError if there is no such kind."""
    if (kind := find_kind(problem.kind)) is None:
        raise UserError(f"problem {problem.problem_id!r} has kind {problem.kind!r}; known kinds: "
                        + ", ".join(KINDS) + ", and path/to/file.py:function for your own")
    return kind


def kind_name(name: str) -> str:
    """Our name of what another suite calls `name`."""
    return _BY_ALIAS.get(name, name)


def needs_answer(kind: str) -> bool:
    """Whether problems of `kind` are judged by their gold answer, not by tests or a scorer."""
    found = find_kind(kind)
    return found is not None and found.graded


def is_open(kind: str) -> bool:
    """Whether no answer to problems of `kind` is right."""
    found = find_kind(kind)
    return found is not None and found.open


def has_gold(row: Mapping[str, Any]) -> bool:
    """Whether a row of tables.Problem can be judged."""
    return not is_open(row["kind"]) and (
        bool(row["answer"].strip()) or not needs_answer(row["kind"]))
