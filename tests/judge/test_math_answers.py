"""What judge() accepts, what it refuses, and what it never does."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.judge import (
    Judgement,
    JudgePool,
    Policy,
    Problem,
    check_broken_share,
    check_gold,
    judge,
)


def verdict(text: str, gold: str, **policy: object) -> str:
    problem = Problem("p", "", gold, policy=Policy(**policy))  # type: ignore[arg-type]
    return judge(text, problem).verdict


def boxed(answer: str, gold: str, **policy: object) -> str:
    return verdict(f"so \\boxed{{{answer}}}.", gold, **policy)


@pytest.mark.parametrize(("answer", "gold"), [
    ("\\frac{3}{8}", "0.375"), ("\\dfrac38", "3/8"), ("12,345", "12345"),
    ("2\\sqrt{12}", "4\\sqrt3"),
    ("x = 11", "11"), ("3, 1", "1,3"), ("\\{3,1\\}", "1, 3"), ("(2, 7)", "\\left(2,7\\right)"),
    ("x > 4", "(4,\\infty)"), ("2 < y \\le 9", "(2,9]"), ("(a+b)^2", "a^2+2ab+b^2"),
    ("40^\\circ", "40"), ("17\\%", "0.17"), ("2 \\pm \\sqrt 5", "2+\\sqrt5, 2-\\sqrt5"),
    ("35\\text{ km}", "35"), ("3:4", "\\frac34"), ("\\text{Tuesday}", "Tuesday"),
    ("0.1\\overline{6}", "\\frac16"), ("0.6667", "2/3"), ("11\\frac{3}{7}", "11.43"),
    ("a = 1, b = 4; a = 2, b = 8", "(1, 4), (2, 8)"),
    ("y = 3x - 6", "6x - 2y = 12"), ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "(1,2)")])
def test_the_same_answer_in_another_form_is_correct(answer: str, gold: str) -> None:
    assert boxed(answer, gold) == "correct"


@pytest.mark.parametrize(("answer", "gold"), [
    ("0.37", "3/8"), ("(7, 2)", "(2, 7)"), ("[1,5)", "(1,5)"), ("x < 4", "x > 4"), ("-3", "3"),
    ("1,2,4", "1,2,3"), ("2021", "\\pm 2021"), ("x^2+1", "y^2+1"),
    ("30\\text{ cm}", "30\\text{ m}"),
    ("2^{31}", "2^{32}"), ("Bob", "Alice"), ("2.72", "2.71"),
    ("0.67", "2/3"), ("-11\\frac37", "11.43"), ("2.718", "2.71828"),
    ("82.54", "82.50"), ("1200,3600", "1200,3601"), ("10^{-40}", "10^{-41}"), ("5", "5.1")])
def test_another_answer_is_wrong(answer: str, gold: str) -> None:
    assert boxed(answer, gold) == "wrong"


@pytest.mark.parametrize("text", ["\\boxed{8 = 5}", "\\boxed{5 = 8}", "\\boxed{5 \\text{ or } 8}",
                                  "\\boxed{8, 5}",
                                  "\\boxed{5} or \\boxed{8}", "\\boxed{8}\\boxed{5}"])
def test_a_hedge_is_not_correct(text: str) -> None:
    assert verdict(text, "5") == "several_answers"


def test_a_congruence_in_a_sentence_is_the_answer_and_not_its_modulus() -> None:
    text = "It holds exactly for the numbers congruent to 1 or 5 modulo 6."
    assert verdict(text, "6k+1, 6k+5") == "correct" != verdict(text, "6")


def test_only_what_follows_closed_thinking_counts() -> None:
    assert verdict("<think>\\boxed{5}", "5") == "unclosed_thinking"
    assert verdict("<think>\\boxed{5}</think>", "5") == "no_answer"
    assert verdict("<think>\\boxed{5}</think> \\boxed{6}", "5") == "wrong"
    assert verdict("<think>\\boxed{6}</think> \\boxed{5}", "5") == "correct"
    opened = judge("\\boxed{5}", Problem("p", "", "5"), prompt_opens_thinking=True)
    assert opened.verdict == "unclosed_thinking"


def test_a_box_that_never_closes_is_no_answer() -> None:
    assert verdict("\\boxed{5", "5") == "no_answer"


def test_countdown_takes_every_number_once_and_exact_arithmetic() -> None:
    problem = Problem("p", "", "", "gym", meta={"task": "countdown", "numbers": [3, 7, 8],
                                                "target": 80})
    assert judge("\\boxed{(3 + 7) \\times 8}", problem).verdict == "correct"
    assert judge("\\boxed{8(3+7)}", problem).verdict == "wrong"
    assert judge("\\boxed{(3+7)*8 = 80}", problem).verdict == "correct"
    assert judge("\\boxed{80}", problem).verdict == "wrong"
    assert judge("\\boxed{(3+7)*8*1}", problem).verdict == "wrong"
    assert judge("\\boxed{__import__('os')}", problem).verdict == "wrong"


@pytest.mark.parametrize(("text", "letter"), [
    ("I think it is (D).", "D"), ("The answer is B, not A", "B"), ("\\boxed{\\text{(C)}}", "C"),
    ("C. It can't be A", "C"), ("c", "C"), ("\\boxed{A} because B fails", "A"),
    ("The answer is C. Notice that B is tempting.", "C"), ("Answer: I believe it is D", "D"),
    ("正确答案是Ｃ。", "C"), ("The answer is **A**, as I tried B and C.", "A"),
    ("The answer is b", "B"), ("\\boxed{D}", "3"), ("\\boxed{A, C, D}", "ACD")])
def test_the_chosen_letter_is_found(text: str, letter: str) -> None:
    assert judge(text, Problem("p", "", letter, "choice")).verdict == "correct"
    other = "E"
    assert judge(text, Problem("p", "", other, "choice")).score == 0.0


@pytest.mark.parametrize(("answer", "gold", "policy", "expected"), [
    ("50\\%", "1/2", {"percent": "number"}, "wrong"),
    ("50\\%", "50", {"percent": "value"}, "wrong"),
    ("6", "6\\text{ cm}", {"units": "required"}, "wrong"),
    ("101", "100", {"tolerance": 0.01}, "correct"),
    ("4.57", "4.5678", {"rounding": "coarse"}, "correct"), ("4.57", "4.5678", {}, "wrong"),
    ("(1, 4)", "[1, 4]", {"ends": "free"}, "correct"),
    ("3\\text{ m}", "300\\text{ cm}", {}, "correct"),
    ("2, 1", "1, 2", {"order": "all"}, "wrong"), ("(2, 1)", "(1, 2)", {"order": "none"}, "correct"),
    ("2", "1, 2", {"gold_is_set": True}, "correct"), ("2/4", "1/2", {"reduced": True}, "wrong")])
def test_a_policy_decides_where_graders_differ(answer: str, gold: str, policy: dict,
                                               expected: str) -> None:
    assert boxed(answer, gold, **policy) == expected


@pytest.mark.parametrize(("gold", "right", "wrong"), [
    ("26000 m", ["26 km", "26000 meters"], ["26 kg", "26000 km", "26000", "26000 m^2", "26000x"]),
    ("250 cm", ["2.5 m"], ["25 m", "2.5 g", "2.5 s"]), ("2 h", ["120 min"], ["120 m", "2 min"]),
    ("26 kg", ["26000 g"], ["2600 g"]), ("2m + 1", [], ["2 km", "3 meters"]),
    ("\\frac{1}{2} l", ["500 \\text{ mL}", "0.5 liters"], ["5 \\text{ mL}"]),
    ("5m", ["5m"], ["5", "5t + 1"])])
def test_a_letter_after_a_number_is_a_unit_beside_another_unit_of_its_kind(
        gold: str, right: list[str], wrong: list[str]) -> None:
    assert [answer for answer in right if boxed(answer, gold) != "correct"] == []
    assert [answer for answer in wrong if boxed(answer, gold) == "correct"] == []


def test_a_gym_answer_that_its_scorer_would_evaluate_is_refused() -> None:
    entry = {"question": "", "answer": "x", "metadata": {}}
    problem = Problem("p", "", "x", "gym", meta={"task": "simple_integration", "entry": entry})
    for answer in ("__import__('os')", "x.__class__", "exec(1)", "().x", "lambda: 1"):
        found = judge(f"\\boxed{{{answer}}}", problem)
        assert found.verdict == "wrong" and found.grader.startswith("refused")


@pytest.mark.parametrize(("gold", "expected"), [
    ("\\frac{3}{7}", "correct"), ("\\text{Friday}", "correct"), ("", "cannot_judge"),
    ("It can be any of the numbers", "cannot_judge"), ("\\frac{3}{", "cannot_judge"),
    ("\\begin{pmatrix} 1 & 2 \\end{pmatrix}", "correct"), ("\\sum_{k=1}^{n} k", "correct")])
def test_a_gold_is_checked_before_anything_is_spent_on_it(gold: str, expected: str) -> None:
    assert check_gold(Problem("p", "", gold)).verdict == expected


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="kind 'riddle'"):
        judge("1", Problem("p", "", "1", "riddle"))


def test_a_batch_with_many_timeouts_stops_the_stage() -> None:
    fine, lost = Judgement(1.0, "correct", "1", "rules"), Judgement(None, "timeout", "1", "rules")
    check_broken_share([fine] * 99 + [lost])
    with pytest.raises(UserError, match="2 of 100"):
        check_broken_share([fine] * 98 + [lost] * 2)


def test_judge_many_keeps_the_order_and_counts_progress() -> None:
    seen: list[int] = []
    texts = [f"\\boxed{{{i}}}" for i in range(5)] + ["\\boxed{\\sum_{k=1}^{3} k}"]
    with JudgePool(workers=1) as pool:
        out = pool.judge_many(texts, [Problem("p", "", "2")] * 5 + [Problem("p", "", "6")],
                              seen.append)
    assert [j.verdict for j in out] == ["wrong", "wrong", "correct", "wrong", "wrong", "correct"]
    assert seen[-1] == 6


@pytest.mark.parametrize(("given", "answer", "gold", "expected"), [
    ("How heavy is the rod?", "4.57", "4.5678", "wrong"),
    ("How heavy is the rod, to four decimal places?", "4.57", "4.5678", "wrong"),
    ("How heavy is the rod, rounded to two decimal places?", "\\frac{457}{100}", "4.57", "correct"),
    ("How heavy is the rod, rounded to two decimal places?", "\\frac{4568}{1000}", "4.57",
     "correct"),
    ("How heavy is the rod?", "\\frac{4568}{1000}", "4.57", "wrong"),
    ("How heavy is the rod?", "4.56", "4.5678", "wrong"),
    ("How heavy is the rod?", "4.6", "4.5678", "wrong"),
    ("On which interval is f monotonically decreasing?", "(1, 4)", "[1, 4]", "correct"),
    ("On which interval is f positive?", "(1, 4)", "[1, 4]", "wrong"),
    ("Solve for x, where k is given.", "2\\pi n", "2\\pi k", "correct"),
    ("Solve for x, where k is given.", "2n", "2k", "wrong")])
def test_the_problem_says_how_exact_an_answer_must_be(given: str, answer: str, gold: str,
                                                      expected: str) -> None:
    assert judge(f"\\boxed{{{answer}}}", Problem("p", given, gold)).verdict == expected
