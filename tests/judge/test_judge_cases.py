"""Agreement with the cases of other graders' suites, and attacks over a whole set of golds.

The files lie beside the checkout (see shared/); without them these tests skip.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import agreement, judge_cases, mutations
from pipeline.judge import Problem, check_gold
from pipeline.judge.checks.attack import ATTACKS, attack
from pipeline.judge.math.forms import moments, notations
from pipeline.problems.files import read_rows

SHARED = Path(__file__).parents[3] / "shared"


def rows(name: str) -> list[dict]:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout")
    return read_rows(path)


def box(text: object) -> str:
    return f"\\boxed{{{text}}}"


def test_core_cases_agree_and_false_positives_are_rare() -> None:
    """HardVerify's golds, some of them sentences and rounded by hand, are counted apart."""
    core = [case for case in rows("cases/verifier_cases.jsonl") if case["core"]]
    for hard, least in ((False, 0.95), (True, 0.85)):
        cases = [case for case in core if ("HardVerify" in case["source_path"]) == hard]
        counts = agreement.agreement(cases)
        wrong = counts["cases"] - counts["right"]
        assert counts["wrong_found_right"] == 0
        assert counts["right_found_right"] + wrong >= least * len(cases)


TABLE = list(judge_cases.cases())
GROUPS = list(dict.fromkeys(case.group for case in TABLE))
KNOWN_RECALL = 0.95
VARIANTS = judge_cases.TABLE.with_name("judge_variants.jsonl")


@pytest.fixture(scope="module")
def said() -> dict[str, list[tuple[judge_cases.Case, str]]]:
    """Every case of the table with what the judge says of it, by class."""
    words = map(judge_cases.said, judge_cases.judged(TABLE))
    told: dict[str, list[tuple[judge_cases.Case, str]]] = {name: [] for name in GROUPS}
    for case, word in zip(TABLE, words, strict=True):
        told[case.group].append((case, word))
    return told


@pytest.mark.parametrize("group", GROUPS)
def test_no_class_of_answers_has_a_wrong_one_accepted_and_right_ones_are_found(
        group: str, said: dict[str, list[tuple[judge_cases.Case, str]]]) -> None:
    rows = said[group]
    assert not [case for case, word in rows if case.expect != "correct" and word == "correct"]
    right = [word for case, word in rows if case.expect == "correct"]
    assert right.count("correct") >= KNOWN_RECALL * len(right)


def test_variants_of_every_class_are_told_apart_too() -> None:
    """judge_variants.jsonl: other words, units, letters and numbers than the table's."""
    table = list(judge_cases.cases(VARIANTS))
    words = list(map(judge_cases.said, judge_cases.judged(table)))
    accepted = [case.completion for case, word in zip(table, words, strict=True)
                if case.expect != "correct" and word == "correct"]
    right = [word for case, word in zip(table, words, strict=True) if case.expect == "correct"]
    assert accepted == []
    assert right.count("correct") >= 0.97 * len(right)


def test_few_answers_of_the_table_stay_undecided(
        said: dict[str, list[tuple[judge_cases.Case, str]]]) -> None:
    words = [word for told in said.values() for _, word in told]
    assert words.count("undecided") <= 0.055 * len(words)


def test_mechanical_changes_of_golds_are_not_the_gold() -> None:
    tried, right = mutations.accepted(rows("data/math500.jsonl")[::4])
    assert tried.total() > 2_500 and right == []


def test_answers_written_beforehand_are_told_apart() -> None:
    """judge_pairs.jsonl: written before the judge was asked, half of them close but wrong."""
    counts = agreement.agreement(agreement.pairs())
    assert not counts["wrong_found_right"]
    assert counts["right_found_right"] >= 0.95 * counts["right"]


def test_every_gold_of_a_set_equals_itself() -> None:
    golds = rows("data/math500.jsonl")
    assert all(check_gold(Problem(row["id"], "", row["answer"])).score == 1.0 for row in golds)


def test_attacks_on_a_problem_set_score_nothing_under_the_policy_of_rl() -> None:
    """Blind answers, hedges, copies of the question, near misses and abstentions."""
    found = attack(rows("data/math500.jsonl")[::5])
    assert list(found) == list(ATTACKS) and all(one.tried > 100 for one in found.values())
    scored = [example for one in found.values() for example in one.examples]
    assert len(scored) <= 0.002 * 100, scored


def test_no_notation_is_passed_over_by_the_look_for_its_marks(
        monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for case in judge_cases.cases() for text in (case.completion, case.gold)]
    looked = [(notations.plain_notation(text), moments.moment.__wrapped__(text, "time"))
              for text in texts]
    monkeypatch.setattr(notations, "_MARK", re.compile(""))
    monkeypatch.setattr(moments, "_FOREIGN", re.compile("(?!)"))
    assert looked == [(notations.plain_notation(text), moments.moment.__wrapped__(text, "time"))
                      for text in texts]
