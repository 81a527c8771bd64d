"""Reads a chat completion in whichever dialect it comes: where the endpoint puts the thinking.

DIALECTS is the one list of them. A new dialect is a function here and a line there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeGuard

from pipeline.completion import find_marks, finish_reason_of, split_completion
from pipeline.teacher.answer import Choice, MalformedReplyError, Reply, clean_text, read_usage

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
REASONING_LIKE = re.compile("reason|think|thought", re.IGNORECASE)
BROKEN_REASONS = {"", "null", "none", "error", "abort", "aborted", "cancelled",
                  "insufficient_system_resource", "network_error"}
"""In lower case; the answer is asked for again."""


def is_end(reason: Any) -> TypeGuard[str]:
    """Whether `reason` says that a completion ended, in whatever way."""
    return isinstance(reason, str) and reason.strip().casefold() not in BROKEN_REASONS


@contextmanager
def malformed_on_error() -> Iterator[None]:
    """Turn the errors of reading an unexpected structure into MalformedReplyError."""
    try:
        yield
    except (AttributeError, TypeError, KeyError, RecursionError):
        raise MalformedReplyError("a body of unknown structure") from None


@malformed_on_error()
def read_json(body: Any, *, prompt_opens_thinking: bool = False) -> Reply:
    """Read a chat completion object. Raises MalformedReplyError if no choice is complete."""
    check_no_error(body)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise MalformedReplyError("a body without choices")
    complete: dict[int, Choice] = {}
    broken: dict[int, str] = {}
    for index, raw in zip(_indices(choices), choices, strict=True):
        try:
            check_no_error(raw)
            complete[index] = read_choice(raw, prompt_opens_thinking)
        except MalformedReplyError as error:
            broken[index] = str(error)
    if not complete:
        raise MalformedReplyError(next(iter(broken.values())))
    model = clean_text(str(body.get("model") or ""))
    return Reply(complete, read_usage(body.get("usage")), model, broken)


def _indices(choices: list[Any]) -> Iterable[int]:
    """The index of each choice; their positions unless the indices are distinct integers."""
    stated: list[Any] = [raw.get("index") if isinstance(raw, Mapping) else None for raw in choices]
    sound = all(isinstance(index, int) for index in stated) and len(set(stated)) == len(stated)
    return stated if sound else range(len(stated))


def check_no_error(body: Any) -> None:
    """Raises MalformedReplyError if `body` is no object or holds an error, as OpenRouter's may."""
    if not isinstance(body, Mapping):
        raise MalformedReplyError("a body that is not a JSON object")
    error = body.get("error")
    if not error:
        return
    detail = error if isinstance(error, Mapping) else {"message": error}
    code = str(detail.get("code"))
    status = int(code) if code.isdigit() else None
    message = str(detail.get("message") or code)[:200]
    raise MalformedReplyError(f"an error inside the answer: {message}", status)


def read_choice(raw: Mapping, prompt_opens_thinking: bool) -> Choice:
    """Read one element of `choices`. Raises MalformedReplyError if it is empty or unfinished."""
    reason = raw.get("finish_reason") or raw.get("native_finish_reason")
    if not is_end(reason):
        raise MalformedReplyError(f"an unfinished answer (finish_reason {reason!r})")
    message = raw.get("message")
    if not isinstance(message, Mapping):
        raise MalformedReplyError("a choice without a message")
    finish = finish_reason_of(clean_text(reason))
    read = read_message(message, prompt_opens_thinking)
    if not read.answer and not read.thinking:
        raise MalformedReplyError("an empty answer")
    complete = finish == "stop" and read.closed and bool(read.answer)
    return Choice(read.thinking, read.answer, finish, complete, _logprobs(raw.get("logprobs")))


def _logprobs(raw: Any) -> list[dict] | None:
    """The entries of `logprobs.content`, one a token; None if any is malformed."""
    content = raw.get("content") if isinstance(raw, Mapping) else None
    return content if isinstance(content, list) and all(map(_is_token, content)) else None


def _is_token(entry: Any) -> bool:
    """Whether `entry` and its `top_logprobs` hold a token and its log-probability."""
    tops = entry.get("top_logprobs") or [] if isinstance(entry, Mapping) else None
    if not isinstance(tops, list) or not isinstance(entry.get("token"), str):
        return False
    value = entry.get("logprob")
    number = isinstance(value, float) or (isinstance(value, int) and abs(value) < 1e30)
    return number and all(map(_is_token, tops))


class Message(NamedTuple):
    """A message as read: `thinking` is None if it has none, `dialect` says where it stood."""

    thinking: str | None
    answer: str
    closed: bool
    dialect: str


def read_message(message: Mapping, prompt_opens_thinking: bool = False) -> Message:
    """Read a message by the first of DIALECTS that applies."""
    read = (dialect(message, prompt_opens_thinking) for dialect in DIALECTS)
    return next(found for found in read if found is not None)


def in_field(message: Mapping, prompt_opens_thinking: bool) -> Message | None:
    """Thinking in a field of its own: DeepSeek, OpenRouter, SGLang, llama.cpp, vLLM, Ollama."""
    names = [*REASONING_FIELDS, *(name for name in message if REASONING_LIKE.search(name))]
    texts = {name: _text(message[name]) for name in names if message.get(name) is not None}
    if not texts:
        return None
    content, _ = _parts(message)
    name = next((name for name, text in texts.items() if text.strip()), None)
    if name is None:
        return _beside("", content, read_message({"content": message.get("content")}).dialect)
    return _beside(texts[name], content, f"thinking in message.{name}")


def in_parts(message: Mapping, prompt_opens_thinking: bool) -> Message | None:
    """A list of typed content parts, some of them thinking: Mistral."""
    if not isinstance(message.get("content"), list):
        return None
    content, thinking = _parts(message)
    if thinking is None:
        return _inline(content, prompt_opens_thinking, "content parts")
    return _beside(thinking, content, "content parts")


def in_content(message: Mapping, prompt_opens_thinking: bool) -> Message:
    """Inline <think> or the like, or none: Together, transformers serve, vLLM without a parser."""
    content, _ = _parts(message)
    mark = next((mark for mark in find_marks(content) if not mark.named), None)
    if mark is None:
        return _inline(content, prompt_opens_thinking, "plain content")
    by, name = ("the model", mark.text) if mark.opens else (
        "the server's template", mark.text.replace("/", "", 1))
    return _inline(content, prompt_opens_thinking, f"inline {name}, opened by {by}")


DIALECTS: tuple[Callable[[Mapping, bool], Message | None], ...] = (in_field, in_parts, in_content)
"""Tried in this order. Each takes a message and whether the prompt ended in <think>, and returns
None if the message is of another dialect."""


def _inline(content: str, prompt_opens_thinking: bool, dialect: str) -> Message:
    split = split_completion(content, opened=prompt_opens_thinking)
    return Message(split.thinking, split.answer, split.closed, dialect)


def _beside(thinking: str, content: str, dialect: str) -> Message:
    """A message whose thinking came apart from `content`; tags inside the answer are its own."""
    thinking = _without_outer_marks(clean_text(thinking))
    marks = find_marks(content)
    if not marks or content[:marks[0].start].strip():
        return Message(thinking, content.strip(), True, dialect)
    split = split_completion(content)
    return Message(thinking or split.thinking, split.answer, split.closed, dialect)


def _without_outer_marks(thinking: str) -> str:
    """`thinking` without a mark that opens it and one that closes it."""
    marks = find_marks(thinking)
    if marks and marks[-1].end == len(thinking.rstrip()) and not marks[-1].opens:
        thinking = thinking[:marks[-1].start]
    if marks and marks[0].opens and not thinking[:marks[0].start].strip():
        thinking = thinking[marks[0].end:]
    return thinking.strip()


def _parts(message: Mapping) -> tuple[str, str | None]:
    """(text, thinking) of a message's content, a string or a list of typed parts."""
    content = message.get("content")
    if not isinstance(content, list):
        return clean_text(_text(content)), None
    thoughts = [part for part in content if isinstance(part, Mapping)
                and REASONING_LIKE.search(str(part.get("type")))]
    texts = [part for part in content if part not in thoughts]
    return clean_text(_text(texts)), (_text(thoughts) if thoughts else None)


def _text(value: Any) -> str:
    """All text of a string, a part or a list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text, value))
    if isinstance(value, Mapping):
        return next((_text(value[name]) for name in ("text", "thinking", "summary", "reasoning")
                     if value.get(name)), "")
    return ""
