"""The reward terms, and that the adapted judge is the judge."""

from __future__ import annotations

import inspect
import json
import time
from typing import get_args

import pytest

from pipeline.config.rl import RlConfig
from pipeline.judge import JudgePool, Problem, judge
from pipeline.judge.code import sandbox
from pipeline.judge.code.sandbox import SandboxMissingError
from pipeline.rl.rewards import (
    REWARDS,
    SCRIPTS,
    RewardContext,
    accuracy_reward,
    format_reward,
    language_reward,
    repetition_penalty,
    reward_functions,
    text_reward,
)

TEXTS = ["<think>a</think>\\boxed{4}", "<think>\\boxed{4}", "\\boxed{5}", "\\boxed{8/2}", ""]


def test_the_reward_is_the_judges_score_for_strings_and_messages() -> None:
    count = len(TEXTS)
    rows = {"problem_id": ["p"] * count, "problem": ["2+2?"] * count, "answer": ["4"] * count,
            "kind": ["math"] * count, "meta": [json.dumps({})] * count}
    messages = [[{"role": "assistant", "content": text}] for text in TEXTS]
    expected = [judge(text, Problem("p", "2+2?", "4")).score for text in TEXTS]
    with JudgePool(workers=1) as pool:
        score = accuracy_reward(pool)
        assert score(prompts=[""] * count, completions=TEXTS, **rows) == expected
        assert score(prompts=[""] * count, completions=messages, **rows) == expected
    assert expected == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_filter_reward_and_evaluation_give_one_table_equal_scores() -> None:
    import polars as pl

    from pipeline.completion import split_completion
    from pipeline.judge.table import judge_all, judge_traces

    table = [("a</think>\\boxed{4}", True), ("a</think>\\boxed{4} and on", False),
             ("a</think>\\boxed{\\frac{8}{2}}", True), ("\\boxed{4}", True), ("a</think>5", True),
             ("a</think>", True), ("a</think>\\boxed{\\int_0^2 2x\\,dx}", True)]
    problem = {"problem_id": "p", "problem": "2+2?", "answer": "4", "kind": "math", "meta": "{}"}
    split = [split_completion(text, opened=True, finish_reason="stop" if ended else "length")
             for text, ended in table]
    traces = pl.DataFrame([{
        "problem_id": "p", "thinking": one.thinking, "answer": one.answer, "complete": one.closed,
        "finish_reason": one.finish_reason} for one in split])
    with JudgePool(workers=1) as pool:
        filtered = judge_traces(traces, pl.DataFrame([problem]), pool)["score"].to_list()
        problems = [Problem("p", "2+2?", "4")] * len(split)
        evaluated = [j.score for j in judge_all(split, problems, pool)]
        rewarded = accuracy_reward(pool, prompt_opens_thinking=True, eos_token_ids=[7, 8])(
            prompts=[""] * len(table), completions=[text for text, _ in table],
            completion_ids=[[1, 7 + i % 2 if ended else 1]      # either of two ends a turn
                            for i, (_, ended) in enumerate(table)],
            **{name: [value] * len(table) for name, value in problem.items()})
    assert filtered == evaluated == rewarded
    assert rewarded[:6] == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]


R1 = "<think>2+2 is 5, no, 4</think>\n<answer>{}</answer>"
TAGGED = [(R1.format("4"), 1.0), (R1.format("\\boxed{4}"), 1.0), (R1.format("$8/2$"), 1.0),
          (R1.format("The answer is \\boxed{5}"), 0.0), (R1.format("5"), 0.0), (R1.format(""), 0.0),
          ("<think>4</think> 4 <answer>5</answer>", 0.0), ("<answer>4</answer>", 1.0),
          ("<think><answer>4</answer>", 0.0), ("<think>x</think><answer>4", 0.0)]


@pytest.mark.parametrize(("text", "score"), TAGGED)
def test_the_answer_is_taken_from_its_tags_with_or_without_a_box(text: str, score: float) -> None:
    assert judge(text, Problem("p", "2+2?", "4")).score == score


@pytest.mark.parametrize(("text", "kind", "answer", "meta"), [
    (R1.format("(3+1)*2"), "gym", "", {"task": "countdown", "numbers": [1, 2, 3], "target": 8}),
    (R1.format("B"), "choice", "B", {}), (R1.format("\\boxed{(B)}"), "choice", "B", {}),
    (R1.format("Paris"), "exact", "paris", {})])
def test_tags_serve_every_kind_of_problem(text: str, kind: str, answer: str, meta: dict) -> None:
    assert judge(text, Problem("p", "?", answer, kind, meta=meta)).score == 1.0


def test_code_is_rewarded_by_the_judges_sandbox_through_the_same_rows() -> None:
    try:
        sandbox.probe()
    except SandboxMissingError as missing:
        pytest.skip(str(missing))
    meta = {"test_list": ["assert double(2) == 4", "assert double(0) == 0"]}
    texts = [f"<think>x</think>```python\ndef double(n):\n    return {body}\n```"
             for body in ("2 * n", "4", "open('/etc/passwd').read()")]
    rows = {"problem_id": ["p"] * 3, "problem": ["Double a number."] * 3, "answer": [""] * 3,
            "kind": ["code"] * 3, "meta": [json.dumps(meta)] * 3}
    with JudgePool(workers=1) as pool:
        scores = accuracy_reward(pool)(prompts=[""] * 3, completions=texts, **rows)
    assert scores == [1.0, 0.0, 0.0]
    assert scores == [judge(t, Problem("p", "", "", "code", meta=meta)).score for t in texts]


def test_a_gold_that_cannot_be_read_is_skipped_and_not_scored_zero() -> None:
    with JudgePool(workers=1) as pool:
        score = accuracy_reward(pool)
        assert score(prompts=[""], completions=["\\boxed{3}"], answer=[""]) == [None]


@pytest.mark.parametrize(("template", "text", "expected"), [
    ("answer", "<think>a</think>\n<answer>b</answer>", 1.0), ("answer", "<think>a</think>b", 0.0),
    ("boxed", "<think>a</think> \\boxed{1}", 1.0), ("boxed", "<think>a \\boxed{1}</think>", 0.0),
    ("think", "<think>a</think>b", 1.0), ("think", "<think>a</think>b</think>", 0.0),
    ("think", "x<think>a</think>b", 0.0), ("think", "<think>a</think>  ", 0.0)])
def test_format_reward_asks_for_its_template(template: str, text: str, expected: float) -> None:
    assert format_reward(text, template=template) == expected


def test_format_reward_counts_the_tag_that_the_prompt_opened() -> None:
    assert format_reward("a</think> \\boxed{1}", prompt_opens_thinking=True) == 1.0
    assert format_reward("a</think> \\boxed{1}") == 0.0


def test_language_reward_is_the_share_of_target_words() -> None:
    assert language_reward("<think>two words $x$</think>答案") == 1.0
    assert language_reward("<think>one 二</think>") == 0.5
    assert language_reward("<think>一二 three</think>", language="zh") == pytest.approx(2 / 3)


def test_markup_is_no_word_and_takes_time_linear_in_the_text() -> None:
    assert language_reward(r"<think>two \(один\) $два$ `три` \begin words</think>x") == 1.0
    assert language_reward(r"<think>one \(два</think>x") == 0.5
    started = time.monotonic()
    for piece in (r"\(", r"\(a", "$a", "`", "\\"):
        language_reward(piece * (400_000 // len(piece)))
    assert time.monotonic() - started < 10          # quadratic: minutes


def test_the_overlong_penalty_is_linear_in_the_last_fifth_of_the_limit() -> None:
    for limit, lengths, expected in ((100, (80, 90, 100, 500), [0.0, -0.5, -1.0, -1.0]),
                                     (10, (8, 9), [0.0, -0.5]), (4, (3, 4), [0.0, -1.0]),
                                     (1, (0, 1, 2), [0.0, -1.0, -1.0])):
        score = REWARDS["overlong"](RewardContext(max_length=limit))
        texts, ids = [""] * len(lengths), [[1] * length for length in lengths]
        assert score(prompts=texts, completions=texts, completion_ids=ids) == expected


def test_a_reward_is_a_function_and_a_line_and_the_config_names_every_one(monkeypatch) -> None:
    fields = RlConfig.model_fields
    assert all(name in inspect.getsource(RlConfig) for name in REWARDS)
    assert set(get_args(fields["language"].annotation)) <= set(SCRIPTS)
    monkeypatch.setitem(REWARDS, "brief", lambda run: text_reward(lambda text: 1 / len(text)))
    [(weight, brief)] = reward_functions({"brief": 0.2}, RewardContext()).values()
    assert weight == 0.2 and brief(prompts=[""], completions=["four"]) == [0.25]


def test_repetition_costs_and_variety_does_not() -> None:
    assert repetition_penalty("a b c d e f") == 0.0
    assert repetition_penalty("a b c " * 30) < -0.9
    assert text_reward(repetition_penalty)(prompts=[""], completions=["a b c"]) == [0.0]
