"""The rewards that rl.rewards can name, each a function and a line in REWARDS.

A reward of the text alone returns a value in [0, 1], or a penalty in [-1, 0] if its source has
one; `text_reward` adapts it to TRL's calling convention.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.completion import CLOSE, OPEN, Completion, completion_text, split_completion
from pipeline.config.judges import Judge
from pipeline.curate.language_share import reflection_pattern, share_in
from pipeline.curate.scripts import SCRIPTS, WORD_PER_CHARACTER, name_prefixes
from pipeline.errors import UserError
from pipeline.judge import Judgement, JudgePool, Policy, Problem, check_gold
from pipeline.judge.extract import boxes
from pipeline.judge.kinds import kind_of
from pipeline.judge.models.opinion import Score
from pipeline.judge.verdict import RL_POLICY
from pipeline.rl.judge_reward import judge_reward
from pipeline.rl.process_reward import process_reward
from pipeline.rl.user_reward import Reward, load_user_reward

ANSWER_TAGS = ("<answer>", "</answer>")
_CHARACTER_WORDS = name_prefixes(WORD_PER_CHARACTER)
_WORD = re.compile(r"[^\W\d_]+")
_MARKUP = re.compile(r"\$[^$]*\$|\\\((?:(?!\\[()]).)*\\\)|\\[A-Za-z]+|`[^`]*`", re.DOTALL)


@dataclass(frozen=True)
class RewardContext:
    """What a reward may need to know of the run."""

    pool: Any = None
    """The JudgePool."""
    prompt_opens_thinking: bool = False
    """Whether the prompt ends in `<think>`."""
    max_length: int = 1
    """Longest completion in tokens."""
    language: str = "en"
    languages: Sequence[str] = ()
    """Languages of its script that it is told from."""
    prm: Any = None
    """Config of the process reward model."""
    judges: Mapping[str, tuple[Judge, Score]] = field(default_factory=dict)
    """What scores by the models of `judges`, by name."""
    eos_token_ids: Collection[int] = ()
    """Tokens that end a turn; a completion that ends in none of them is truncated."""
    policy: Policy = RL_POLICY
    """How the judge reads an answer."""


def accuracy_reward(pool: Any, *, prompt_opens_thinking: bool = False,
                    eos_token_ids: Collection[int] = (), policy: Policy = RL_POLICY) -> Reward:
    """The judge's score; 0 for what it cannot decide beside a gold that it can read.

    None (skipped by TRL) remains for faults of the grader, golds that fail their own check, and
    texts, of which only a reader can tell. Columns hold the problem rows' fields as lists:
    problem_id, problem, answer, kind, meta. Without `eos_token_ids` no completion counts as
    truncated. Logs the shares of judge_shares().
    """
    def accuracy(prompts: Sequence[Any], completions: Sequence[Any],
                 **columns: Sequence[Any]) -> list[float | None]:
        names = [n for n in ("problem_id", "problem", "answer", "kind", "meta") if n in columns]
        problems = [Problem.from_row({name: columns[name][i] for name in names}, policy)
                    for i in range(len(completions))]
        ended = [not eos_token_ids or (len(ids) > 0 and ids[-1] in eos_token_ids)
                 for ids in columns.get("completion_ids", completions)]
        split = [split_completion(completion_text(completion), opened=prompt_opens_thinking,
                                  finish_reason="stop" if stopped else "length")
                 for completion, stopped in zip(completions, ended, strict=True)]
        judgements = pool.judge_many(split, problems)
        for name, share in judge_shares(judgements, split).items():
            if log := columns.get("log_metric"):
                log(f"judge/{name}", share)  # type: ignore[operator]
        return [rewarded(judgement, problem, pool)
                for judgement, problem in zip(judgements, problems, strict=True)]

    return accuracy


def rewarded(judgement: Judgement, problem: Problem, pool: JudgePool) -> float | None:
    """The score, or 0 for an answer that is undecided though the gold passes its own check."""
    # An abstention that paid better than a wrong answer would be learnt.
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


def text_reward(function: Callable[..., float], **settings: Any) -> Reward:
    """`function` of a completion's text, with its `settings`, as a TRL reward function."""
    def reward(prompts: Sequence[Any], completions: Sequence[Any],
               **columns: Sequence[Any]) -> list[float | None]:
        return [function(completion_text(completion), **settings) for completion in completions]

    return reward


def format_reward(text: str, *, template: str = "boxed",
                  prompt_opens_thinking: bool = False) -> float:
    """1 if the whole text follows the template, else 0.

    `answer`: <think>…</think> <answer>…</answer> (DeepSeek-R1, arXiv 2501.12948, table 1);
    `boxed`: <think>…</think> and then one \\boxed{}; `think`: any answer after the thinking.
    """
    if prompt_opens_thinking and not text.lstrip().startswith(OPEN):
        text = OPEN + text
    tags = (OPEN, CLOSE, *ANSWER_TAGS) if template == "answer" else (OPEN, CLOSE)
    thinking, _, answer = text.strip().partition(CLOSE)
    answer = answer.strip()
    if not thinking.startswith(OPEN) or not answer or any(text.count(tag) != 1 for tag in tags):
        return 0.0
    if template == "answer":
        return float(answer.startswith(ANSWER_TAGS[0]) and answer.endswith(ANSWER_TAGS[1]))
    return float(template == "think" or (len(boxes(answer)) == 1 and bool(boxes(answer)[0][2])))


def language_reward(text: str, *, language: str = "en", languages: Sequence[str] = (),
                    prompt_opens_thinking: bool = False) -> float:
    """Share of the thinking's words in `language`, 1 if it has no words.

    After DeepSeek-R1 (arXiv 2501.12948, 2.3.2). By script, and inside one script against
    `languages`. A run of CJK counts a word per character.
    """
    completion = split_completion(text, opened=prompt_opens_thinking)
    prefixes = name_prefixes(SCRIPTS[language])
    total = right = 0
    said = completion.thinking or completion.answer
    for word in _WORD.findall(_MARKUP.sub(" ", said)):
        name = unicodedata.name(word[0], "")
        weight = len(word) if name.startswith(_CHARACTER_WORDS) else 1
        total += weight
        right += weight * name.startswith(prefixes)
    return right / total * share_in(said, language, languages) if total else 1.0


def overlong_reward(max_length: int) -> Reward:
    """0, falling to -1 over the last fifth of `max_length` tokens (DAPO, arXiv 2503.14476)."""
    from trl.rewards import get_soft_overlong_punishment

    return get_soft_overlong_punishment(max_length, max(1, max_length // 5))


def repetition_penalty(text: str, *, ngram: int = 3) -> float:
    """The share of repeated word n-grams, negated; 0 for texts shorter than n words.

    Yeo et al., Demystifying Long Chain-of-Thought (arXiv 2502.03373, appendix), as in open-r1.
    """
    words = text.lower().split()
    grams = list(zip(*(words[i:] for i in range(ngram)), strict=False))
    return len(set(grams)) / len(grams) - 1 if grams else 0.0


def length_reward() -> Reward:
    """The tokens by which a completion misses the length that its prompt asks for, negated.

    L1-Exact's second term (Aggarwal and Welleck, arXiv 2503.04697, equation 1), whose weight there
    is 0.0003. Columns: completion_ids, target_tokens.
    """
    def length(prompts: Sequence[Any], completions: Sequence[Any],
               **columns: Sequence[Any]) -> list[float | None]:
        missed = [abs(len(ids) - target) for ids, target in
                  zip(columns["completion_ids"], columns["target_tokens"], strict=True)]
        if log := columns.get("log_metric"):
            log("length/missed", sum(missed) / max(len(missed), 1))  # type: ignore[operator]
        return [-float(tokens) for tokens in missed]

    return length


REWARDS: dict[str, Callable[[RewardContext], Reward]] = {
    "accuracy": lambda run: accuracy_reward(
        run.pool, prompt_opens_thinking=run.prompt_opens_thinking,
        eos_token_ids=run.eos_token_ids, policy=run.policy),
    "format": lambda run: text_reward(
        format_reward, prompt_opens_thinking=run.prompt_opens_thinking),
    "r1_format": lambda run: text_reward(
        format_reward, template="answer", prompt_opens_thinking=run.prompt_opens_thinking),
    "language": lambda run: text_reward(
        language_reward, language=run.language, languages=run.languages,
        prompt_opens_thinking=run.prompt_opens_thinking),
    "overlong": lambda run: overlong_reward(run.max_length),
    "repetition": lambda run: text_reward(repetition_penalty),
    "process": lambda run: process_reward(run.prm),
    "length": lambda run: length_reward(),
}


def reward_functions(weights: Mapping[str, float],
                     context: RewardContext) -> dict[str, tuple[float, Reward]]:
    """{name: (weight, TRL reward function)} of the rewards that `weights` names.

    Raises UserError if one is unknown or two have the same name.
    """
    made: dict[str, tuple[float, Reward]] = {}
    for key, weight in weights.items():
        if ":" in key:
            name, function = load_user_reward(key)
            if name in {*made, *REWARDS}:
                raise UserError(f"rl.rewards: {key} has the name of another reward, {name!r}; "
                                "rename the function, because the log has one curve per name")
        elif key in context.judges:
            config, score = context.judges[key]
            name, function = key, judge_reward(
                config, score, prompt_opens_thinking=context.prompt_opens_thinking)
        elif key in REWARDS:
            name, function = key, REWARDS[key](context)
        else:
            raise UserError(f"rl.rewards names {key!r}; there are {', '.join(REWARDS)}, and "
                            "path/to/file.py:function for your own, and the names of `judges`")
        made[name] = (weight, function)
    return made


def check_rewards(keys: Collection[str], judges: Collection[str] = ()) -> None:
    """Raise UserError if one of rl.rewards is unknown or cannot be loaded, or two share a name."""
    # `overlong` and `process` load libraries and models when they are made.
    named = {key: 1.0 for key in keys if ":" in key or key not in {*REWARDS, *judges}}
    reward_functions(named, RewardContext())


def with_reflection(reward: Reward, *languages: str) -> Reward:
    """`reward`, which also logs the mean count of reflection markers in a completion."""
    markers = reflection_pattern(languages)

    def logged(completions: list, log_metric: Callable | None = None,
               **columns: Any) -> list[float | None]:
        texts = [completion_text(completion) for completion in completions]
        if log_metric is not None:
            log_metric("reflection", sum(len(markers.findall(t)) for t in texts) / len(texts))
        return reward(completions=completions, log_metric=log_metric, **columns)

    return logged
