"""A model's completion: the text as it came, split into thinking and answer.

Every stage that looks at a completion (teacher dialects, judge, rewards, evaluation) splits it
here, so that "what follows the thinking" means one thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

OPEN, CLOSE = "<think>", "</think>"
Messages = Sequence[Mapping[str, Any]]
"""A chat: role and content of each message."""
Verdict = Literal["correct", "wrong", "no_answer", "unclosed_thinking", "several_answers",
                  "cut_off", "cannot_judge", "timeout", "error"]
"""What the judge may say of a completion."""
VERDICTS: tuple[str, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Completion:
    """One completion, split.

    `thinking` is None where the text holds no thinking at all; `closed` is False where thinking
    was opened (in the text or by the prompt) and never closed: then `answer` is "".
    """

    thinking: str | None
    answer: str
    closed: bool = True
    finish_reason: str = "stop"


def split_completion(text: str, *, opened: bool = False, finish_reason: str = "stop") -> Completion:
    """Split `text` at its last `</think>`; `opened` says the prompt itself ended in `<think>`.

    The last closing tag decides, so that a tag quoted inside the thinking cannot move an answer
    out of it. DeepSeek-R1's card: templates may open the tag, so a lone `</think>` is normal.
    """
    before, tag, answer = text.rpartition(CLOSE)
    if tag:
        return Completion(before.strip().removeprefix(OPEN).strip(), answer.strip(),
                          finish_reason=finish_reason)
    if opened or OPEN in text:
        thinking = text if opened else text.partition(OPEN)[2]
        return Completion(thinking.strip(), "", closed=False, finish_reason=finish_reason)
    return Completion(None, text.strip(), finish_reason=finish_reason)


def completion_text(completion: Any) -> str:
    """The text of a completion as TRL passes it: a string, or messages of which the last counts."""
    if isinstance(completion, str):
        return completion
    message = completion[-1] if completion else {}
    reasoning = message.get("reasoning_content") or ""
    content = message.get("content") or ""
    return f"{OPEN}{reasoning}{CLOSE}{content}" if reasoning else content
