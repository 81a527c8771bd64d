"""Splits a model's completion into thinking and answer; every stage splits it here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

OPEN, CLOSE = "<think>", "</think>"
Messages = Sequence[Mapping[str, Any]]
"""A chat: role and content of each message."""
Verdict = Literal["correct", "wrong", "no_answer", "unclosed_thinking", "several_answers",
                  "cut_off", "cannot_judge", "timeout", "error"]
"""What the judge may say of a completion."""
VERDICTS: tuple[str, ...] = get_args(Verdict)
_ENDS = {
    "stop": "stop eos eos_token end_turn end_of_turn end_of_text end stop_sequence stop_token "
            "stop_word stop_str complete completed done finish finished success",
    "length": "length max_tokens max_output_tokens max_completion_tokens max_new_tokens max_length "
              "max_tokens_reached token_limit length_capped model_length context_length "
              "context_length_exceeded model_context_window_exceeded truncated incomplete",
    "content_filter": "content_filter content_filtered safety recitation refusal blocklist "
                      "prohibited_content spii guardrail_intervened sensitive",
    "tool_calls": "tool_calls tool_call tool_use function_call"}
END_OF_WORD = {word: end for end, words in _ENDS.items() for word in words.split()}
"""Our name of what an endpoint calls the end of a completion: OpenAI, Anthropic, Gemini, Bedrock,
Cohere, TGI, Mistral, Ollama."""


def finish_reason_of(said: str) -> str:
    """Return our name of the end an endpoint `said`, in any case; an unknown one as it is."""
    # FinishReason.MAX_TOKENS and maxTokens are one word.
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", said.strip().rpartition(".")[2]).casefold()
    word = re.sub(r"[\s-]+", "_", word).removeprefix("finish_reason_")
    return END_OF_WORD.get(word, said)


@dataclass(frozen=True)
class Completion:
    """One completion, split.

    `thinking` is None if the text holds none; `closed` is False if thinking was opened (in the
    text or by the prompt) and never closed, and then `answer` is "".
    """

    thinking: str | None
    answer: str
    closed: bool = True
    finish_reason: str = "stop"


TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think", "mm:think",
        "longcat_think", "antThinking")
"""Names of XML tags around thinking: DeepSeek, Qwen; Claude; EXAONE, Gemini; Seed; MiniMax; ..."""
_HARMONY = r"(?:<\|end\|>\s*)?(?:<\|start\|>assistant)?<\|channel\|>{}[^<]*<\|message\|>"


class Spelling(NamedTuple):
    """Patterns of the marks that open and close thinking, and of those around an answer.

    Any mark of a spelling holds one of `hints`: most texts need no other search than for these.
    """

    hints: tuple[str, ...]
    opens: str
    closes: str
    around: str = ""
    begins: str = ""
    """What a text may begin with, beside the hints."""


MARKS: tuple[Spelling, ...] = (
    *(Spelling((f"{tag}>",), f"<{tag}>", f"</{tag}>") for tag in TAGS),
    Spelling(("THINK]",), r"\[THINK\]", r"\[/THINK\]"),                     # Magistral
    Spelling(("_of_thought|>",), r"<\|begin_of_thought\|>",                 # OpenThoughts, Sky-T1
             r"<\|end_of_thought\|>", r"<\|(?:begin|end)_of_solution\|>"),
    Spelling(("_THINKING|>",), r"<\|START_THINKING\|>",                     # Command A
             r"<\|END_THINKING\|>", r"<\|(?:START|END)_RESPONSE\|>"),
    Spelling(("think▷",), "◁think▷", "◁/think▷"),                          # Kimi
    Spelling(("channel>thought", "<channel|>"), r"<\|channel>thought\n", r"<channel\|>"),  # Gemma 4
    Spelling(("<|channel|>",), _HARMONY.format("(?:analysis|commentary)"),  # gpt-oss
             _HARMONY.format("final"), r"<\|(?:return|end)\|>"),
    # gpt-oss whose special tokens were dropped in decoding
    Spelling(("assistant",), r"\Aanalysis(?=[^\sa-z])|"
             r"\Aanalysis(?=[\s\S]*assistantfinal)|assistant(?:analysis|commentary)(?=[A-Z])",
             "assistantfinal", begins="analysis"))
"""The only list of spellings: a new one is a line here."""
# A first character that both marks share is searched for fast: the whole text is not tried.
_PATTERNS = [re.compile(
    f"{one.opens[0]}(?:({one.opens[1:]})|{one.closes[1:]})" if one.opens[0] == one.closes[0]
    and one.opens[0] in "<◁" else f"({one.opens})|{one.closes}") for one in MARKS]
_TAGGED = re.compile("<(?:/?(?:" + "|".join(TAGS) + r")>|\|[^\s<]{0,40}|channel\|>)")
"""What any hint that holds ">" is a part of."""
_BARE = tuple(hint for one in MARKS for hint in one.hints if ">" not in hint)
_BEGINS = tuple(one.begins for one in MARKS if one.begins)
_QUOTES = {"`": "`", '"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "(": ")"}
_BEFORE_QUOTED, _AFTER_QUOTED = re.compile(r"[^\W\d_][ \t]+$|,[ \t]+$"), re.compile(
    r"[ \t]+[^\W\d_A-Z]|[ \t]*[,.;:?!)]|[ \t]*\Z")


class Mark(NamedTuple):
    """A mark of thinking in a text; `named` if it stands amid a sentence, as a word would."""

    opens: bool
    text: str
    start: int
    end: int
    spelling: int
    named: bool


def find_marks(text: str) -> list[Mark]:
    """The marks of thinking in `text`, in order and of one spelling; quoted ones are text."""
    # One pass finds every tag: a pass for each spelling would cost more than the verdict.
    tagged = " ".join({match[0] for match in _TAGGED.finditer(text)}) if "<" in text else ""
    if not tagged and not text.startswith(_BEGINS):
        for hint in _BARE:
            if hint in text:
                break
        else:
            return []
    found = [mark for number, one in enumerate(MARKS)
             if (one.begins and text.startswith(one.begins))
             or any(hint in (tagged if ">" in hint else text) for hint in one.hints)
             for match in _PATTERNS[number].finditer(text)
             if (mark := _mark(text, match, number))]
    found.sort(key=lambda mark: mark.start)
    first = next((mark for mark in found if mark.opens and not mark.named),
                 next((mark for mark in found if not mark.named), found[0] if found else None))
    return [mark for mark in found if first is not None and mark.spelling == first.spelling]


def _mark(text: str, match: re.Match[str], spelling: int) -> Mark | None:
    """The mark that `match` found; None if it stands in quotes."""
    start, end = match.span()
    if start and _QUOTES.get(text[start - 1]) == text[end:end + 1]:
        return None
    named = bool(_BEFORE_QUOTED.search(text, max(start - 20, 0), start)
                 and _AFTER_QUOTED.match(text, end))
    return Mark(match[1] is not None, match[0], start, end, spelling, named)


def split_completion(text: str, *, opened: bool = False, finish_reason: str = "stop") -> Completion:
    """Split `text` where its thinking last closes; `opened` says the prompt itself opened it.

    The order of marks decides: thinking that is opened again after it closed, and not closed, has
    no answer. Of several closing marks in a row the last one counts.
    """
    marks = find_marks(text)
    sound = [mark for mark in marks if not mark.named]
    # A mark amid a sentence is meant as a word, unless nothing else closes what was opened.
    if (opened or sound) and not any(not mark.opens for mark in sound):
        sound = sorted(sound + [mark for mark in marks if mark.named and not mark.opens][-1:],
                       key=lambda mark: mark.start)
    if not sound and not opened:
        return Completion(None, text.strip(), finish_reason=finish_reason)
    closed = bool(sound) and not sound[-1].opens
    starts = [0, *(mark.end for mark in sound)]
    parts = [text[start:mark.start] for start, mark in zip(starts, sound, strict=False)]
    answer = _bare_answer(text[starts[-1]:], sound[-1].spelling) if closed else ""
    thinking = filter(None, map(str.strip, [*parts, *([] if closed else [text[starts[-1]:]])]))
    return Completion("\n".join(thinking), answer, closed=closed, finish_reason=finish_reason)


def _bare_answer(text: str, spelling: int) -> str:
    """`text` without the marks around an answer of this spelling."""
    around = MARKS[spelling].around
    text = text.strip()
    return re.sub(rf"\A(?:{around})|(?:{around})\Z", "", text).strip() if around else text


def completion_text(completion: Any) -> str:
    """Return the text of a completion as TRL passes it: a string, or the last of its messages."""
    if isinstance(completion, str):
        return completion
    message = completion[-1] if completion else {}
    reasoning = message.get("reasoning_content") or ""
    content = message.get("content") or ""
    return f"{OPEN}{reasoning}{CLOSE}{content}" if reasoning else content
