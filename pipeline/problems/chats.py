"""What is asked: the bare problem for the student, and for the teacher what only it may see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config.generate import GenerateConfig
from pipeline.errors import UserError
from pipeline.problems.columns import NoColumnError, column
from pipeline.prompts import chats, messages, render, template_path, variables_of
from pipeline.stage import file_digest

Chat = list[dict[str, str]]


def student_chats(config: GenerateConfig, rows: Iterable[Mapping[str, Any]]) -> dict[str, Chat]:
    """The chat of each problem row, by id: its source's prompt, and nothing of the teacher's own.

    The only chats that pack, sft, rl and evaluate see.
    """
    return chats(config.prompt, rows, config.prompts)


def teacher_chats(config: GenerateConfig, rows: Iterable[Mapping[str, Any]]) -> dict[str, Chat]:
    """The chat of each problem row, by id, as the teacher gets it.

    The student's, after generate.system and generate.examples, and inside generate.hint.
    """
    before = teacher_preface(config)
    return {row["problem_id"]: [*before, *_hinted(config, row)] for row in rows}


def teacher_chat(config: GenerateConfig, problems: pl.DataFrame) -> Callable[[int], Chat]:
    """Return a function that forms the chat of teacher_chats for the problem at a position."""
    before = teacher_preface(config)
    return lambda at: [*before, *_hinted(config, problems.row(at, named=True))]


def teacher_preface(config: GenerateConfig) -> Chat:
    """What stands before each problem for the teacher alone. Raises UserError for bad examples."""
    text = config.system or ""
    said = render(text) if text and template_path(text) else text.strip()
    system = [{"role": "system", "content": said}] if said else []
    return system + [turn for problem, completion in _examples(config) for turn in (
        *messages(config.prompt, problem), {"role": "assistant", "content": completion})]


def _hinted(config: GenerateConfig, row: Mapping[str, Any]) -> Chat:
    """The student's chat, its text put into generate.hint beside the gold if it asks for that."""
    [bare] = student_chats(config, [row]).values()
    if config.hint is None:
        return bare
    gold = {"answer": row["answer"]} if "answer" in variables_of(config.hint) else {}
    return [{"role": "user", "content": render(config.hint, problem=bare[0]["content"], **gold)}]


def _examples(config: GenerateConfig) -> list[tuple[str, str]]:
    if config.examples is None:
        return []
    return _read_examples(config.examples, file_digest(config.examples))


@lru_cache(maxsize=8)       # by the digest, so that an edited file is read again
def _read_examples(path: Path, digest: str) -> list[tuple[str, str]]:
    """(problem, completion) of each row of the file at `path`."""
    from pipeline.problems.files import read_rows

    try:
        found = [(str(column(row, "problem")), str(column(row, "completion")))
                 for row in read_rows(str(path), "train")]
    except NoColumnError as missing:
        raise UserError(f"generate.examples: a row of {path} has no {missing}; each needs "
                        "`problem` and `completion`, a text with its thinking as the teacher "
                        "should write it") from None
    if not found:
        raise UserError(f"generate.examples: {path} holds no example; add some or unset it")
    return found
