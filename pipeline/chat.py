"""One tokenisation for pack, sft, rl and evaluate: messages to token ids and a loss mask.

The prompt a student sees when it generates is, token for token, the head of its training row;
the completion's tokens and the end of its turn carry the loss, nothing else does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.completion import CLOSE, OPEN
from pipeline.errors import UserError

Messages = list[dict[str, str]]


def load_tokenizer(model: str | Path, chat_template: Path | None = None) -> Any:
    """The tokenizer of a checkpoint folder or hub id, with `chat_template` in place of its own."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer for {str(model)!r}: {str(error).splitlines()[0]}; "
                        "name a checkpoint folder or a hub id you can reach") from None
    if chat_template is not None:
        tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {str(model)!r} has no chat template; "
                        "set student.chat_template to one of prompts/chat_templates/")
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {str(model)!r} has no end-of-turn token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def render_prompt(tokenizer: Any, messages: Messages) -> str:
    """The text a model is given before it answers `messages`."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of rendered text: control tokens are read as such, none are added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def opens_thinking(tokenizer: Any) -> bool:
    """Whether the template's generation prompt itself ends in `<think>`."""
    prompt = render_prompt(tokenizer, [{"role": "user", "content": "x"}])
    return prompt.rstrip().endswith(OPEN)


def training_row(tokenizer: Any, messages: Messages, thinking: str | None,
                 answer: str) -> tuple[list[int], list[int]]:
    """(input_ids, completion_mask) of one conversation; the mask is 1 where the loss counts.

    Raises a UserError where the template loses the thinking, breaks the prefix property, or ends
    without the end-of-turn token.
    """
    content = answer if thinking is None else f"{OPEN}\n{thinking}\n{CLOSE}\n{answer}"
    prompt = render_prompt(tokenizer, messages)
    full = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": content}],
                                         tokenize=False)
    if not full.startswith(prompt):
        raise UserError("the chat template's generation prompt is not the start of the "
                        "conversation it renders; set student.chat_template to one that keeps it")
    if thinking is not None and thinking not in full:
        raise UserError("the chat template drops the thinking of an assistant message; "
                        "set student.chat_template to one of prompts/chat_templates/")
    completion = encode(tokenizer, _until_end_of_turn(full[len(prompt):], tokenizer.eos_token))
    head = encode(tokenizer, prompt)
    return head + completion, [0] * len(head) + [1] * len(completion)


def _until_end_of_turn(text: str, end: str) -> str:
    """`text` cut right after its last end-of-turn token, which is added where it is missing."""
    before, found, after = text.rpartition(end)
    return before + end if found and not after.strip() else text.rstrip("\n") + end
