"""One tokenisation for pack, sft, rl and evaluate: messages to token ids and a loss mask.

The student's inference prompt is, token for token, the prefix of its training row; only the
completion's tokens and its end of turn carry loss. A control token spelt out in a problem or a
trace is encoded as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from pipeline.completion import CLOSE, OPEN, Messages
from pipeline.errors import UserError

MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Unicode noncharacters, never part of real text; one of them splits spelt-out control tokens."""


def render_prompt(tokenizer: Any, messages: Messages) -> str:
    """Return the text that a model completes to answer `messages`."""
    return render(tokenizer, messages, add_generation_prompt=True)


def render(tokenizer: Any, messages: Messages, **options: Any) -> str:
    """Render `messages` by the chat template; raises UserError if the template fails."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (TemplateError, TypeError) as error:
        raise UserError(f"the chat template cannot render this conversation ({error}); set "
                        "student.chat_template to one of prompts/chat_templates/") from None


def encode(tokenizer: Any, text: str) -> list[int]:
    """Encode rendered text: control tokens are recognised, none are added."""
    return encode_all(tokenizer, [text])[0]


def encode_all(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Encode each text as `encode` does, all at once."""
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """Encode the prompt for `messages`; control tokens that they spell out stay text."""
    mark = _free_mark(messages)
    prompt = render_prompt(tokenizer, _with_marks(tokenizer, messages, mark))
    return _encode_marked(tokenizer, [(prompt, mark)])[0]


def end_of_turn_ids(tokenizer: Any, model: str) -> list[int]:
    """Return the tokens that end a turn: the tokenizer's and those that `model` declares."""
    from transformers import AutoConfig, GenerationConfig

    # As generation by transformers, vLLM and TRL: a generation config overrides the model's.
    declared: Any = None
    for kind in (AutoConfig, GenerationConfig):
        with suppress(OSError, ValueError):
            declared = getattr(kind.from_pretrained(model), "eos_token_id", None)
    ids = (tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared]))
    return list(dict.fromkeys(i for i in ids if i is not None))


def opens_thinking(tokenizer: Any) -> bool:
    """Whether the template's generation prompt ends in `<think>`."""
    prompt = render_prompt(tokenizer, [{"role": "user", "content": "x"}])
    return prompt.rstrip().endswith(OPEN)


Conversation = tuple[Messages, str | None, str]
"""(what is asked, thinking, answer)."""
TrainingRow = tuple[list[int], list[int]]
"""(input_ids, completion_mask); the mask is 1 where loss counts."""


def training_row(tokenizer: Any, messages: Messages, thinking: str | None,
                 answer: str) -> TrainingRow:
    """Return the row of one conversation, as `training_rows`."""
    return training_rows(tokenizer, [(messages, thinking, answer)])[0]


def training_rows(tokenizer: Any, conversations: Iterable[Conversation]) -> list[TrainingRow]:
    """Return the row of each conversation; all are encoded at once, on every core if that is on.

    Thinking and answer are stripped. Raises UserError if the template drops the thinking or breaks
    the prefix property, or if an answer is empty.
    """
    texts = []
    for messages, thinking, answer in conversations:
        turn = _assistant_turn(tokenizer, thinking, answer)
        mark = _free_mark([*messages, *({"content": part} for part in turn.values())])
        prompt, full = _rendered(tokenizer, messages, turn, mark)
        completion = _until_end_of_turn(full[len(prompt):], tokenizer.eos_token)
        texts += [(prompt, mark), (completion, mark)]
    ids = iter(_encode_marked(tokenizer, texts))
    return [(head + tail, [0] * len(head) + [1] * len(tail))
            for head, tail in zip(ids, ids, strict=True)]


def check_template(tokenizer: Any, messages: Messages) -> None:
    """Raise UserError if the template cannot render a conversation that thinks as `training_row`.

    Of `tokenizer` only the template and its special tokens are used.
    """
    prompt, _ = _rendered(tokenizer, messages, {"thinking": "Let me see.", "answer": "42"},
                          MARKS[0])
    if messages[-1]["content"] not in prompt.replace(MARKS[0], ""):
        raise UserError("the chat template leaves out the message that it is given; set "
                        "student.chat_template to one of prompts/chat_templates/")


def _rendered(tokenizer: Any, messages: Messages, turn: Mapping[str, str],
              mark: str) -> tuple[str, str]:
    """The prompt and the whole conversation as text, with marks in what they spell out."""
    marked = {name: _insert_mark(tokenizer, part, mark, (OPEN, CLOSE))
              for name, part in turn.items()}
    asked = _with_marks(tokenizer, messages, mark)
    content = f"{OPEN}\n{marked['thinking']}\n{CLOSE}\n" if "thinking" in marked else ""
    prompt = render_prompt(tokenizer, asked)
    full = render(tokenizer, [*asked, {"role": "assistant", "content": content + marked["answer"]}])
    if not full.startswith(prompt):
        raise UserError("the chat template's generation prompt is not the start of the "
                        "conversation that it renders; set student.chat_template to one of "
                        "prompts/chat_templates/")
    if marked.get("thinking", "") not in full:
        raise UserError("the chat template drops the thinking of an assistant message; "
                        "set student.chat_template to one of prompts/chat_templates/")
    return prompt, full


def _assistant_turn(tokenizer: Any, thinking: str | None, answer: str) -> dict[str, str]:
    """Return the turn's parts; thinking is empty, not absent, if the prompt opens it."""
    if not answer.strip():
        raise UserError("a trace without an answer after its thinking would teach the student "
                        "not to answer; let filter.keep leave it out")
    if thinking is None and opens_thinking(tokenizer):
        thinking = ""
    parts = {} if thinking is None else {"thinking": thinking.strip()}
    return {**parts, "answer": answer.strip()}


def _free_mark(messages: Messages) -> str:
    text = "".join(message["content"] for message in messages)
    for mark in MARKS:
        if mark not in text:
            return mark
    raise UserError("a text contains every Unicode noncharacter from U+FDD0 to U+FDEF; remove them")


def _with_marks(tokenizer: Any, messages: Messages, mark: str) -> Messages:
    return [{**message, "content": _insert_mark(tokenizer, message["content"], mark)}
            for message in messages]


def _insert_mark(tokenizer: Any, text: str, mark: str, tags: tuple[str, ...] = ()) -> str:
    """Insert `mark` after the first character of every control token or tag spelt out in `text`."""
    pattern = _first_characters((*tokenizer.get_added_vocab(), *tags))
    return pattern.sub(lambda found: found[0] + mark, text)


@lru_cache(maxsize=16)
def _first_characters(tokens: tuple[str, ...]) -> re.Pattern[str]:
    # By look-ahead, so that overlapping tokens are found too.
    patterns = [f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in tokens
                if len(token) > 1]
    return re.compile("|".join(patterns) or "(?!)")


def _encode_marked(tokenizer: Any, texts: Iterable[tuple[str, str]]) -> list[list[int]]:
    """Encode the pieces of each (text, mark) between its marks, which are dropped."""
    pieces = [[piece for piece in text.split(mark) if piece] for text, mark in texts]
    flat = [piece for of_text in pieces for piece in of_text]
    ids = iter(encode_all(tokenizer, flat))
    return [[index for _ in of_text for index in next(ids)] for of_text in pieces]


def _until_end_of_turn(text: str, eos_token: str) -> str:
    """Cut `text` right after its end-of-turn token, or add the token if it is missing."""
    before, found, after = text.rpartition(eos_token)
    return before + eos_token if found and not after.strip() else text.rstrip("\n") + eos_token
