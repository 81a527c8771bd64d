"""What an endpoint answered, in whichever dialect, as (thinking, answer, finish_reason, complete).

Dialects: `reasoning_content` (DeepSeek, SGLang, llama.cpp, older vLLM), `reasoning` (OpenRouter,
newer vLLM, Ollama), `reasoning_details`, content parts, and inline `<think>` (Together,
transformers serve, vLLM without a reasoning parser), opened by the model or by the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.completion import CLOSE, OPEN, split_completion
from pipeline.teacher.answer import Choice, MalformedReplyError, Reply, clean_text, read_usage

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
REASONING_LIKE = re.compile("reason|think|thought", re.IGNORECASE)
FINISH = {"eos": "stop", "eos_token": "stop", "end_turn": "stop", "stop_sequence": "stop",
          "max_tokens": "length", "model_length": "length", "max_length": "length"}
BROKEN = {None, "", "error", "abort", "insufficient_system_resource", "network_error"}


@contextmanager
def malformed_on_error() -> Iterator[None]:
    """What is not built as the protocol says is damage, whichever way it is not."""
    try:
        yield
    except (AttributeError, TypeError, KeyError, RecursionError):
        raise MalformedReplyError("a body of an unknown shape") from None


@malformed_on_error()
def read_json(body: Any, *, opened: bool = False) -> Reply:
    """The reply in a chat completion object; DamagedError where it holds none."""
    refuse_error(body)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise MalformedReplyError("a body without choices")
    whole: dict[int, Choice] = {}
    broken: dict[int, str] = {}
    for index, raw in zip(_indices(choices), choices, strict=True):
        try:
            refuse_error(raw)
            whole[index] = read_choice(raw, opened)
        except MalformedReplyError as error:
            broken[index] = str(error)
    if not whole:
        raise MalformedReplyError(next(iter(broken.values())))
    model = clean_text(str(body.get("model") or ""))
    return Reply(whole, read_usage(body.get("usage")), model, broken)


def _indices(choices: list[Any]) -> Iterable[int]:
    """The index of each choice; their places where they are not told apart by whole numbers."""
    given: list[Any] = [raw.get("index") if isinstance(raw, Mapping) else None for raw in choices]
    sound = all(isinstance(index, int) for index in given) and len(set(given)) == len(given)
    return given if sound else range(len(given))


def refuse_error(body: Any) -> None:
    """Raise DamagedError on what is no object or carries an error, as OpenRouter's 200s may."""
    if not isinstance(body, Mapping):
        raise MalformedReplyError("a body that is no JSON object")
    error = body.get("error")
    if not error:
        return
    detail = error if isinstance(error, Mapping) else {"message": error}
    code = str(detail.get("code"))
    status = int(code) if code.isdigit() else None
    message = str(detail.get("message") or code)[:200]
    raise MalformedReplyError(f"an error inside the answer: {message}", status)


def read_choice(raw: Mapping, opened: bool) -> Choice:
    """One element of `choices`; DamagedError where it is empty or did not end."""
    reason = raw.get("finish_reason") or raw.get("native_finish_reason")
    if reason in BROKEN or not isinstance(reason, str):
        raise MalformedReplyError(f"an answer that did not end (finish_reason {reason!r})")
    message = raw.get("message")
    if not isinstance(message, Mapping):
        raise MalformedReplyError("a choice without a message")
    finish = FINISH.get(reason, reason)
    thinking, answer, closed = _split(message, opened)
    if not answer and not thinking:
        raise MalformedReplyError("an empty answer")
    return Choice(thinking, answer, finish, finish == "stop" and closed and bool(answer),
                  _logprobs(raw.get("logprobs")))


def _logprobs(raw: Any) -> list[dict] | None:
    """The entries of `logprobs.content`, one a token, where they are what they should be."""
    content = raw.get("content") if isinstance(raw, Mapping) else None
    return content if isinstance(content, list) and all(map(_is_token, content)) else None


def _is_token(entry: Any) -> bool:
    """Whether it holds a token and its log-probability, and so do those it was chosen from."""
    tops = entry.get("top_logprobs") or [] if isinstance(entry, Mapping) else None
    if not isinstance(tops, list) or not isinstance(entry.get("token"), str):
        return False
    value = entry.get("logprob")
    number = isinstance(value, float) or (isinstance(value, int) and abs(value) < 1e30)
    return number and all(map(_is_token, tops))


def _split(message: Mapping, opened: bool) -> tuple[str | None, str, bool]:
    """(thinking, answer, closed) of a message. A field for thinking rules over inline tags."""
    in_parts, content = _parts(message.get("content"))
    thinking = _reasoning(message)
    thinking = in_parts if thinking is None else thinking
    content = clean_text(content)
    if thinking is None:
        split = split_completion(content, opened=opened)
        return split.thinking, split.answer, split.closed
    thinking = clean_text(thinking).strip().removeprefix(OPEN).removesuffix(CLOSE).strip()
    if not content.lstrip().startswith((OPEN, CLOSE)):
        return thinking, content.strip(), True
    split = split_completion(content)
    return thinking or split.thinking, split.answer, split.closed


def _reasoning(message: Mapping) -> str | None:
    """The first field for thinking that says something; "" where one is there but empty."""
    names = [*REASONING_FIELDS, *(name for name in message if REASONING_LIKE.search(name))]
    found = [_text(message[name]) for name in names if message.get(name) is not None]
    return next((text for text in found if text.strip()), "" if found else None)


def _parts(content: Any) -> tuple[str | None, str]:
    """(thinking, text) of a message's content, a string or a list of typed parts."""
    if not isinstance(content, list):
        return None, _text(content)
    thoughts = [part for part in content if isinstance(part, Mapping)
                and REASONING_LIKE.search(str(part.get("type")))]
    texts = [part for part in content if part not in thoughts]
    return (_text(thoughts) if thoughts else None), _text(texts)


def _text(value: Any) -> str:
    """All text in a string, a part or a list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text, value))
    if isinstance(value, Mapping):
        return next((_text(value[name]) for name in ("text", "thinking", "summary", "reasoning")
                     if value.get(name)), "")
    return ""
