"""The embedded problems and the solver that narrates them."""

import re
from collections import Counter

import pytest

from pipeline.config.problems import Source
from pipeline.errors import UserError
from pipeline.judge import JudgePool, Problem, judge
from pipeline.problems.countdown import instances, tries
from pipeline.problems.sources import load_rows
from pipeline.teacher.solver import SolverOptions, narrate

ASK = [{"role": "user", "content": "Use each of 2, 7 and 8 exactly once, with +, - and *, "
                                   "to make 72."}]
GYM = Problem("p", ASK[0]["content"], "(7+2)*8", "gym",
              meta={"task": "countdown", "numbers": [2, 7, 8], "target": 72})


def share(options, n=300):
    return sum(judge(f"<think>{t}</think>{a}", GYM).score
               for t, a in (narrate(ASK, seed, options) for seed in range(n))) / n


def test_every_instance_is_distinct_and_solvable():
    found = instances(0)
    assert len({(one.numbers, one.target) for one in found}) == len(found) > 1500
    for one in found[:200]:
        assert any(t.value == one.target for t in tries(one.numbers))


def test_the_seed_only_changes_the_order():
    assert instances(0) != instances(1)
    assert set(instances(0)) == set(instances(1))


def test_every_try_uses_each_number_once_and_says_its_true_value():
    for attempt in tries((3, 5, 9)):
        assert Counter(re.findall(r"\d+", attempt.expression)) == Counter("359")
        assert eval(attempt.expression) == attempt.value  # the program's own text, not a model's


def test_a_patient_solver_that_never_slips_is_always_right():
    assert share(SolverOptions(patience={99: 1}, slip=0)) == 1


def test_impatience_and_slips_make_it_wrong_at_times():
    patient = share(SolverOptions(patience={12: 1}, slip=0))
    assert 0 < share(SolverOptions(patience={2: 1}, slip=0)) < patient < 1
    assert share(SolverOptions(patience={99: 1}, slip=0.3)) < 1


def test_the_same_seed_narrates_the_same_and_another_does_not():
    assert narrate(ASK, 1) == narrate(ASK, 1) != narrate(ASK, 2)


def test_it_refuses_what_is_not_countdown():
    with pytest.raises(ValueError, match="only solves countdown"):
        narrate([{"role": "user", "content": "What is love?"}], 0)


@pytest.mark.parametrize(("task", "options"), [
    ("countdown", {"min_numbers": 3, "max_numbers": 4}), ("basic_arithmetic", {}),
    ("spell_backward", {})])
def test_reasoning_gym_tasks_are_problems_whose_gold_the_judge_accepts(task, options):
    source = Source(problems=f"reasoning-gym/{task}", limit=4, options=options)
    rows = load_rows(source, 1)
    assert rows == load_rows(source, 1) != load_rows(source, 2)
    assert len({row["problem_id"] for row in rows}) == 4
    with JudgePool(1) as pool:
        problems = [Problem.from_row(row) for row in rows]
        right = [f"<answer>{row['answer']}</answer>" for row in rows]
        assert [j.score for j in pool.judge_many(right, problems)] == [1.0] * 4
        wrong = pool.judge_many(["<answer>1+1</answer>"] * 4, problems)
        assert [j.score for j in wrong] == [0.0] * 4


def test_reasoning_gym_problems_of_many_processes_are_those_of_one(monkeypatch):
    source = Source(problems="reasoning-gym/countdown", limit=30)
    alone = load_rows(source, 1)
    monkeypatch.setattr("pipeline.problems.sources.ALONE", 0.0)
    assert load_rows(source, 1) == alone


@pytest.mark.parametrize(("task", "options"), [("nothing", {}), ("countdown", {"size_": 1}),
                                               ("countdown", {"min_numbers": 9})])
def test_a_task_or_setting_that_reasoning_gym_lacks_is_named(task, options):
    with pytest.raises(UserError, match=f"makes no '{task}'"):
        load_rows(Source(problems=f"reasoning-gym/{task}", options=options), 0)
