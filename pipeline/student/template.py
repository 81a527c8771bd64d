"""One tokenisation for pack, sft, rl and evaluate: messages to token ids and a loss mask.

The prompt a student sees when it generates is, token for token, the head of its training row;
the completion's tokens and the end of its turn carry the loss, nothing else does. A control token
that is spelt out in a problem or a trace is text: its pieces are no control token.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import Any

from pipeline.completion import CLOSE, OPEN, Messages
from pipeline.errors import UserError

MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Unicode noncharacters, never part of real text; one of them marks where a spelt-out token is cut.
"""


def render_prompt(tokenizer: Any, messages: Messages) -> str:
    """The text a model is given before it answers `messages`."""
    return render(tokenizer, messages, add_generation_prompt=True)


def render(tokenizer: Any, messages: Messages, **options: Any) -> str:
    """The text of `messages` by the chat template; a UserError where that cannot render them."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except TemplateError as error:
        raise UserError(f"the chat template cannot render this conversation ({error}); set "
                        "student.chat_template to one of prompts/chat_templates/") from None


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of rendered text: control tokens are read as such, none are added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of the prompt for `messages`; what they spell out is never a control token."""
    mark = _free_mark(messages)
    return _encode_marked(tokenizer, render_prompt(tokenizer, _guard(tokenizer, messages, mark)),
                          mark)


def end_ids(tokenizer: Any, model: str) -> list[int]:
    """The tokens that end a turn: the tokenizer's, and those that `model` declares, as generation
    by transformers, vLLM and TRL takes them."""
    from transformers import AutoConfig, GenerationConfig

    known: Any = None
    for kind in (AutoConfig, GenerationConfig):         # the second decides where it is there
        with suppress(OSError, ValueError):
            known = getattr(kind.from_pretrained(model), "eos_token_id", None)
    more = known if isinstance(known, list) else [known]
    return list(dict.fromkeys(i for i in (tokenizer.eos_token_id, *more) if i is not None))


def opens_thinking(tokenizer: Any) -> bool:
    """Whether the template's generation prompt itself ends in `<think>`."""
    prompt = render_prompt(tokenizer, [{"role": "user", "content": "x"}])
    return prompt.rstrip().endswith(OPEN)


def training_row(tokenizer: Any, messages: Messages, thinking: str | None,
                 answer: str) -> tuple[list[int], list[int]]:
    """(input_ids, completion_mask) of one conversation; the mask is 1 where the loss counts.

    Thinking and answer are taken without the white space round them. Raises a UserError where the
    template loses the thinking, breaks the prefix property, or the answer says nothing.
    """
    turn = _turn(tokenizer, thinking, answer)
    mark = _free_mark([*messages, *({"content": part} for part in turn.values())])
    tags = {name: _cut(tokenizer, part, mark, (OPEN, CLOSE)) for name, part in turn.items()}
    guarded = _guard(tokenizer, messages, mark)
    content = f"{OPEN}\n{tags['thinking']}\n{CLOSE}\n" if "thinking" in tags else ""
    prompt = render_prompt(tokenizer, guarded)
    spoken = {"role": "assistant", "content": content + tags["answer"]}
    full = render(tokenizer, [*guarded, spoken])
    if not full.startswith(prompt):
        raise UserError("the chat template's generation prompt is not the start of the "
                        "conversation it renders; set student.chat_template to one that keeps it")
    if tags.get("thinking", "") not in full:
        raise UserError("the chat template drops the thinking of an assistant message; "
                        "set student.chat_template to one of prompts/chat_templates/")
    completion = _until_end_of_turn(full[len(prompt):], tokenizer.eos_token)
    head, tail = (_encode_marked(tokenizer, text, mark) for text in (prompt, completion))
    return head + tail, [0] * len(head) + [1] * len(tail)


def _turn(tokenizer: Any, thinking: str | None, answer: str) -> dict[str, str]:
    """What the assistant says; a prompt that opens the thinking gets one to close."""
    if not answer.strip():
        raise UserError("a trace without an answer after its thinking would teach the student "
                        "not to answer; let filter.keep leave it out")
    if thinking is None and opens_thinking(tokenizer):
        thinking = ""
    said = {} if thinking is None else {"thinking": thinking.strip()}
    return {**said, "answer": answer.strip()}


def _free_mark(messages: Messages) -> str:
    """A mark that none of the messages contains."""
    text = "".join(message["content"] for message in messages)
    for mark in MARKS:
        if mark not in text:
            return mark
    raise UserError("a text holds every Unicode noncharacter from U+FDD0 to U+FDEF; clean it")


def _guard(tokenizer: Any, messages: Messages, mark: str) -> Messages:
    return [{**message, "content": _cut(tokenizer, message["content"], mark)}
            for message in messages]


def _cut(tokenizer: Any, text: str, mark: str, more: tuple[str, ...] = ()) -> str:
    """`text` with `mark` after the first character of every control token it spells out."""
    return _control((*tokenizer.get_added_vocab(), *more)).sub(lambda found: found[0] + mark, text)


@lru_cache(maxsize=16)
def _control(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the first character of each token; by look-ahead, so that overlaps are found too."""
    ways = [f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in tokens
            if len(token) > 1]
    return re.compile("|".join(ways) or "(?!)")


def _encode_marked(tokenizer: Any, text: str, mark: str) -> list[int]:
    """Token ids of `text`, encoded piece by piece between the marks, which vanish."""
    return [index for piece in text.split(mark) if piece for index in encode(tokenizer, piece)]


def _until_end_of_turn(text: str, end: str) -> str:
    """`text` cut right after its last end-of-turn token, which is added where it is missing."""
    before, found, after = text.rpartition(end)
    return before + end if found and not after.strip() else text.rstrip("\n") + end
