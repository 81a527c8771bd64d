"""The judge as TRL reward functions, and the format, language, repetition and length terms.

Each term is a plain function over a completion's text with values in [0, 1], or a
penalty in [-1, 0] where its source has one; `reward()` adapts it to TRL's calling convention.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pipeline.completion import CLOSE, OPEN, Completion, split_completion
from pipeline.errors import UserError
from pipeline.judge import Judgement, JudgePool, Policy, Problem, check_gold
from pipeline.judge.extract import boxes
from pipeline.judge.kinds import kind_of
from pipeline.judge.verdict import RL_POLICY
from pipeline.rl.user_reward import own_reward

Reward = Callable[..., list[float | None]]
_ANSWER_TAGS = ("<answer>", "</answer>")


def text_of(completion: Any) -> str:
    """The text of a completion as TRL passes it: a string, or messages whose last is it."""
    if isinstance(completion, str):
        return completion
    message = completion[-1] if completion else {}
    reasoning = message.get("reasoning_content") or ""
    content = message.get("content") or ""
    return f"{OPEN}{reasoning}{CLOSE}{content}" if reasoning else content


def accuracy_reward(pool: JudgePool, *, opened: bool = False,
                    end: Collection[int] = (), policy: Policy = RL_POLICY) -> Reward:
    """TRL reward: the judge's score; 0 for what it cannot decide beside a gold that it can read.

    An abstention that paid better than a wrong answer would be learnt. None (skipped by TRL)
    remains for faults of the grader, golds that fail their own check, and texts, of which only a
    reader can tell. Columns hold the problem rows' fields as lists: problem_id, problem, answer,
    kind, meta. Logs the shares of judge_shares().
    `opened` says that the prompt template ends in <think>. `end` holds the end-of-turn tokens:
    where there are any, a completion that does not end in one is cut off, as in evaluation.
    """
    def accuracy(prompts: Sequence[Any], completions: Sequence[Any],
                 **columns: Sequence[Any]) -> list[float | None]:
        names = [n for n in ("problem_id", "problem", "answer", "kind", "meta") if n in columns]
        problems = [Problem.from_row({name: columns[name][i] for name in names}, policy)
                    for i in range(len(completions))]
        ended = [not end or (len(ids) > 0 and ids[-1] in end)
                 for ids in columns.get("completion_ids", completions)]
        judged = [split_completion(text_of(completion), opened=opened,
                                   finish_reason="stop" if stopped else "length")
                  for completion, stopped in zip(completions, ended, strict=True)]
        judgements = pool.judge_many(judged, problems)
        for name, share in judge_shares(judgements, judged).items():
            if log := columns.get("log_metric"):
                log(f"judge/{name}", share)  # type: ignore[operator]
        return [rewarded(j, problem, pool)
                for j, problem in zip(judgements, problems, strict=True)]

    return accuracy


def rewarded(judgement: Judgement, problem: Problem, pool: JudgePool) -> float | None:
    """The score, or 0 for an answer that is undecided though the gold passes its own check."""
    if judgement.score is not None or judgement.verdict == "error" or \
            kind_of(problem).llm_prose:
        return judgement.score
    return 0.0 if check_gold(problem, pool).score == 1.0 else None


def judge_shares(judgements: Sequence[Judgement],
                 completions: Sequence[Completion]) -> dict[str, float]:
    """Shares of undecided answers, restatements, and responses with more than two boxes."""
    count = max(len(judgements), 1)
    return {"undecided": sum(j.verdict in ("cannot_judge", "timeout") for j in judgements) / count,
            "restated": sum(j.grader == "restated" for j in judgements) / count,
            "many_boxes": sum(c.answer.count("\\boxed") > 2 for c in completions) / count}


def reward(term: Callable[..., float], name: str = "", **settings: Any) -> Reward:
    """`term` as a TRL reward function under `name` (its own by default)."""
    def adapted(prompts: Sequence[Any], completions: Sequence[Any],
                **columns: Sequence[Any]) -> list[float | None]:
        return [term(text_of(completion), **settings) for completion in completions]

    adapted.__name__ = name or getattr(term, "__name__", "reward")
    return adapted


def format_reward(text: str, *, template: str = "boxed", opened: bool = False) -> float:
    """1 where the whole text keeps to the template, else 0.

    `answer`: <think>…</think> <answer>…</answer> (DeepSeek-R1, arXiv 2501.12948, table 1);
    `boxed`: <think>…</think> and then one \\boxed{}; `think`: any answer after the thinking.
    `opened` says that the prompt gave the opening tag.
    """
    text = OPEN + text if opened and not text.lstrip().startswith(OPEN) else text
    tags = (OPEN, CLOSE, *_ANSWER_TAGS) if template == "answer" else (OPEN, CLOSE)
    thinking, _, answer = text.strip().partition(CLOSE)
    answer = answer.strip()
    if not thinking.startswith(OPEN) or not answer or any(text.count(tag) != 1 for tag in tags):
        return 0.0
    if template == "answer":
        return float(answer.startswith(_ANSWER_TAGS[0]) and answer.endswith(_ANSWER_TAGS[1]))
    return float(template == "think" or (len(boxes(answer)) == 1 and bool(boxes(answer)[0][2])))


_SCRIPTS = {"en": "LATIN", "de": "LATIN", "fr": "LATIN", "es": "LATIN", "zh": "CJK",
            "ru": "CYRILLIC", "ar": "ARABIC", "ja": "CJK HIRAGANA KATAKANA", "ko": "HANGUL",
            "el": "GREEK", "he": "HEBREW", "hi": "DEVANAGARI", "th": "THAI"}
_WORD = re.compile(r"[^\W\d_]+")
_MARKUP = re.compile(r"\$[^$]*\$|\\\((?:(?!\\[()]).)*\\\)|\\[A-Za-z]+|`[^`]*`", re.DOTALL)


def language_reward(text: str, *, language: str = "en", opened: bool = False) -> float:
    """Share of words in the target language in the thinking (1 where it has no words).

    DeepSeek-R1 (arXiv 2501.12948, 2.3.2) counts target-language words. Languages are told apart
    by script, so what is caught is mixing across scripts (English and Chinese), not English and
    German. A run of CJK counts a word per character.
    """
    completion = split_completion(text, opened=opened)
    scripts = tuple(_SCRIPTS[language].split())
    total = right = 0
    for word in _WORD.findall(_MARKUP.sub(" ", completion.thinking or completion.answer)):
        name = unicodedata.name(word[0], "")
        weight = len(word) if name.startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")) else 1
        total += weight
        right += weight * name.startswith(scripts)
    return right / total if total else 1.0


def overlong_penalty(length: int, *, max_length: int, cache: int) -> float:
    """0 up to max_length - cache tokens, then linear to -1 at max_length and beyond.

    DAPO's soft over-long punishment (arXiv 2503.14476, equation 13).
    """
    if not 0 < cache <= max_length:
        raise ValueError(f"cache must lie in 1 … max_length, not {cache} with {max_length}")
    return min(0.0, max(-1.0, (max_length - cache - length) / cache))


def overlong_reward(*, max_length: int, cache: int) -> Reward:
    """overlong_penalty as TRL reward over `completion_ids`, which TRL passes to every reward."""
    def overlong(prompts: Sequence[Any], completions: Sequence[Any],
                 completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        return [overlong_penalty(len(ids), max_length=max_length, cache=cache)
                for ids in completion_ids]

    return overlong


def repetition_penalty(text: str, *, ngram: int = 3, most: float = -1.0) -> float:
    """(1 - distinct share of word n-grams) · `most`; 0 for texts shorter than n words.

    Yeo et al., Demystifying Long Chain-of-Thought (arXiv 2502.03373, appendix), as in open-r1.
    """
    words = text.lower().split()
    grams = list(zip(*(words[i:] for i in range(ngram)), strict=False))
    return (1 - len(set(grams)) / len(grams)) * most if grams else 0.0


def reward_functions(weights: Mapping[str, float], pool: Any, opened: bool, max_length: int,
                     language: str = "en", prm: Any = None,
                     end: Collection[int] = (),
                     policy: Policy = RL_POLICY) -> dict[str, tuple[float, Any]]:
    """{name: (weight, TRL reward function)} of the terms named in `weights`, own ones included.

    `opened` says that the prompt ends in `<think>`; `max_length` is the completion limit in
    tokens, whose last fifth the over-long term punishes; `prm` scores the `process` term;
    `end` holds the end-of-turn tokens, without one of which an answer is cut off; `policy` is the
    judge's.
    """
    from pipeline.rl import rewards
    from pipeline.rl.process_reward import process_reward

    known = {
        "accuracy": rewards.accuracy_reward(pool, opened=opened, end=end, policy=policy),
        "format": rewards.reward(rewards.format_reward, opened=opened),
        "r1_format": rewards.reward(rewards.format_reward, template="answer", opened=opened),
        "language": rewards.reward(rewards.language_reward, language=language, opened=opened),
        "overlong": rewards.overlong_reward(max_length=max_length, cache=max(1, max_length // 5)),
        "repetition": rewards.reward(rewards.repetition_penalty),
        **({"process": process_reward(prm)} if prm else {}),
    }
    return _named(weights, known)


def _named(weights: Mapping[str, float], known: Mapping[str, Any]) -> dict[str, tuple[float, Any]]:
    """The terms that `weights` names, `known` ones or the user's; each has a name of its own."""
    made: dict[str, tuple[float, Any]] = {}
    for key, weight in weights.items():
        name, function = own_reward(key) if ":" in key else (key, known.get(key))
        if function is None:
            raise UserError(f"rl.rewards names {key!r}; there are {', '.join(known)}, and "
                            "path/to/file.py:function for one of your own")
        if name != key and name in {*made, *known, "process"}:
            raise UserError(f"rl.rewards: there is another reward called {name!r} beside {key}; "
                            "rename the function, the log has one curve a name")
        made[name] = (weight, function)
    return made
