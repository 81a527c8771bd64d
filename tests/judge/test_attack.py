"""Restatements, abstentions and repetitions earn nothing; attacks and explanations are commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.judge import Judgement, JudgePool, Problem, judge
from pipeline.judge.checks.attack import ATTACKS, attack
from pipeline.judge.checks.near_misses import near_misses
from pipeline.judge.verdict import RL_POLICY
from pipeline.rl.rewards import accuracy_reward, judge_shares
from stages.__main__ import app

ROWS = [{"problem_id": "a", "problem": "Compute $17 \\cdot 23$.", "answer": "391"},
        {"problem_id": "b", "problem": "Solve $2x+1=5$.", "answer": "x = 2"},
        {"problem_id": "c", "problem": "Simplify $\\sqrt{242}$.", "answer": "11\\sqrt{2}"}]


def refined(answer: str, gold: str, statement: str) -> Judgement:
    return judge(f"\\boxed{{{answer}}}", Problem("p", statement, gold, policy=RL_POLICY))


@pytest.mark.parametrize(("answer", "gold", "statement"), [
    ("23 \\times 17", "391", "Compute $17 \\cdot 23$."), ("\\frac{6}{8}", "\\frac34",
                                                          "Reduce $\\frac{6}{8}$."),
    ("2x+1=5", "x=2", "Solve $2x+1=5$."), ("x^2=9", "x=\\pm 3", "Solve $x^2=9$."),
    ("(2+3i)(1-i)", "5+i", "Expand $(2+3i)(1-i)$."), ("50\\%", "\\frac12", "Write 50\\%."),
    ("\\sum_{n=1}^{5} n", "15", "Find $\\sum_{n=1}^5 n$.")])
def test_an_answer_that_only_repeats_the_question_earns_nothing_in_rl_alone(
        answer: str, gold: str, statement: str) -> None:
    assert refined(answer, gold, statement).score == 0.0
    assert judge(f"\\boxed{{{answer}}}", Problem("p", statement, gold)).score in (1.0, None)


@pytest.mark.parametrize(("answer", "gold", "statement"), [
    ("17 \\cdot 23 = 391", "391", "Compute $17 \\cdot 23$."), ("2", "x=2", "Solve $2x+1=5$."),
    ("(x+1)(x-1)", "(x-1)(x+1)", "Factor $x^2-1$."),
    ("\\sqrt{5}", "\\sqrt5", "Which of $\\sqrt4$, $\\sqrt5$ is irrational?"),
    ("\\frac{1}{2}", "0.5", "A coin with 2 sides is thrown 1 time."),
    ("m+n = 5", "5", "Find $m+n$.")])
def test_work_is_rewarded(answer: str, gold: str, statement: str) -> None:
    assert refined(answer, gold, statement).score == 1.0


def test_an_answer_that_nobody_can_decide_earns_nothing_and_is_counted() -> None:
    logged: dict[str, float] = {}
    texts = ["\\boxed{5 \\triangleright}", "\\boxed{5}", "5", "\\boxed{6}"]
    columns = {"problem_id": list("abcd"), "problem": ["?"] * 4, "answer": ["5"] * 4,
               "kind": ["math"] * 4, "log_metric": logged.__setitem__}
    with JudgePool(workers=1) as pool:
        earned = accuracy_reward(pool)(["?"] * 4, texts, **columns)
        assert earned == [0.0, 1.0, 0.0, 0.0] and logged["judge/undecided"] == 0.25
        prose = {**columns, "answer": ["It can be any of the numbers"] * 4}
        undecidable = accuracy_reward(pool)(["?"] * 4, texts, **prose)
        text = accuracy_reward(pool)(["?"] * 4, texts, **{**columns, "kind": ["text"] * 4})
    assert undecidable[1] is None and text[3] is None  # the gold, or only a reader, cannot tell
    shares = judge_shares([Judgement(None, "timeout", "", ""), Judgement(0.0, "wrong", "", "")], [])
    assert shares["undecided"] == 0.5


@pytest.mark.parametrize("part", [
    "x+", "2\\cdot", "(", "{", "\\sqrt{", "-", "^2", "!", "\\text{a }", "|", "'", "\\sin ", "\\{",
    "and a ", "\\begin{pmatrix}1\\\\", "\\textcolor{red}{", "half of ", "\\boxed{", "1:", "a and "])
def test_no_repetition_in_a_box_is_an_error_or_hangs(part: str) -> None:
    for count in (60, 450, 1500):
        for end in ("1", "}" * count):
            found = judge(f"\\boxed{{{part * count}{end}}}", Problem("p", "", "x+1"))
            assert found.verdict not in ("error", "timeout", "correct")


def test_near_misses_are_other_texts_and_attacks_score_nothing() -> None:
    found = list(near_misses("\\left( 3, \\frac{\\pi}{2} \\right)"))
    assert len(found) > 20 and len({text for _, text in found}) == len(found)
    outcomes = attack(ROWS)
    assert list(outcomes) == list(ATTACKS)
    assert all(one.tried and not one.scored for one in outcomes.values())


def test_the_commands_attack_and_explain_say_what_they_found(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    said = CliRunner().invoke(app, ["attack", str(file)])
    assert said.exit_code == 0 and "blind" in said.output and "0 of" in said.output
    lenient = CliRunner().invoke(app, ["attack", str(file), "--policy", "restated=accepted",
                                       "--show"])
    assert "17 \\\\cdot 23" in lenient.output
    answers = tmp_path / "a.jsonl"
    answers.write_text(json.dumps({"prediction": "\\boxed{30 \\text{ mm}}", "gold": "3 cm"}) + "\n"
                       + json.dumps({"prediction": "\\boxed{4.667}", "gold": "14/3"}) + "\n"
                       + json.dumps({"prediction": "\\boxed{May 4}", "gold": "4 May"}))
    lines = CliRunner().invoke(app, ["judge", str(answers), "--explain"]).output.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert [row["rule"] for row in rows] == ["trees", "near", "time or date"]
    assert "unit ‹mm›" in rows[0]["answer_read"] and "unit ‹cm›" in rows[0]["gold_read"]
