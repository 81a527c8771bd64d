"""Verifiers of the user's own: killable, checked at plan, part of the keys of what judges."""

import json
from pathlib import Path

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.judge import JudgePool, Problem, check_broken_share, check_gold
from pipeline.judge.file import judge_file
from stages import prepare
from stages.graph import plans

ROOT = Path(__file__).resolve().parents[2]
KIND = "own.py:judge"
TEXT = '''
import os, time
def judge(response, problem):
    if response == "hang":
        time.sleep(60)
    if response == "die":
        os._exit(3)
    if response == "fail":
        raise KeyError("nothing there")
    if response == "strange":
        return "yes"
    if response == "unsure":
        return None
    return len(response) / 10 if response.isalpha() else response.endswith(problem["answer"])
'''


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(TEXT)


def experiment(*overrides):
    Path("p.jsonl").write_text('{"problem": "Write 7", "answer": "7"}\n' * 1
                               + '{"problem": "Write 8", "answer": "8"}\n')
    return load(Experiment, [ROOT / "configs/default.yaml"],
                ["prepare.problems=p.jsonl", "prepare.held_out=1", f"prepare.kind={KIND}",
                 *overrides])


def test_a_verifier_that_hangs_dies_or_fails_costs_one_undecided_row_with_the_reason():
    problem = Problem("p", "Write 7", "7", KIND)
    with JudgePool(1, seconds=1.0) as pool:
        pool.judge("0 7", problem)      # the first in a worker has time to import
        found = {text: pool.judge(text, problem) for text in (
            "so 7", "so 8", "hang", "die", "fail", "strange", "unsure", "fiver", "so 7 ")}
    assert [found[text].score for text in ("so 7", "so 8", "fiver")] == [1.0, 0.0, 0.5]
    assert {text: found[text].verdict for text in ("hang", "die", "fail", "strange", "unsure")} == {
        "hang": "timeout", "die": "error", "fail": "error", "strange": "error",
        "unsure": "cannot_judge"}
    assert "KeyError in line 9: 'nothing there'" in found["fail"].grader
    assert "neither True nor False" in found["strange"].grader
    assert {found[text].score for text in ("hang", "die", "fail", "strange", "unsure")} == {None}
    with pytest.raises(UserError, match=r"1 of 1 verdicts.*KeyError in line 9"):
        check_broken_share([found["fail"]])


def test_prepare_tries_the_verifier_on_the_golds_and_says_why_it_fails(tmp_path):
    counts = prepare.run(experiment(), {}, tmp_path)
    assert (counts["problems"], counts["held_out"]) == (1, 1)
    assert check_gold(Problem("p", "", "", KIND)).verdict == "correct"
    Path("own.py").write_text("def judge(response, problem):\n    return problem['nothing']\n")
    with pytest.raises(UserError, match=r"gives no verdict.*KeyError in line 2: 'nothing'"):
        prepare.run(experiment(), {}, tmp_path)


@pytest.mark.parametrize(("kind", "text", "said"), [
    ("none.py:judge", TEXT, "file none.py does not exist"),
    (KIND, "def grade(response, problem): pass", "own.py defines no 'judge'"),
    (KIND, "judge = 5", "'judge' of own.py is of type int"),
    (KIND, "def judge(response): pass", "cannot be called with response, problem"),
    (KIND, "import nothing_of_that_name", "own.py cannot be imported.*line 1"),
    ("own", TEXT, "is no kind; there are math, .*path/to/file.py:function")])
def test_a_verifier_that_cannot_run_is_refused_before_any_work(kind, text, said):
    Path("own.py").write_text(text)
    with pytest.raises(UserError, match=said):
        prepare.check(experiment(f"prepare.kind={kind}"))


def test_the_verifiers_text_is_part_of_the_key_of_every_stage_that_judges():
    before = {name: plan.key for name, plan in plans(experiment(), "report").items()}
    Path("own.py").write_text(TEXT + "# other\n")
    after = {name: plan.key for name, plan in plans(experiment(), "report").items()}
    assert {name for name in before if before[name] == after[name]} == {"prepare", "generate"}
    given = f"evaluate.benchmarks=[{{problems: p.jsonl, kind: '{KIND}'}}]"
    plain = experiment("prepare.kind=math", given)
    one = plans(plain, "evaluate")["evaluate"].key
    Path("own.py").write_text(TEXT)
    assert plans(plain, "evaluate")["evaluate"].key != one


def test_only_the_caller_may_name_a_file_to_run_not_a_row_of_data():
    row = {"problem": "Write 7", "answer": "7", "completion": "so 7"}
    Path("rows.jsonl").write_text(json.dumps(row | {"kind": KIND}) + "\n")
    with pytest.raises(UserError, match=f"row 1 has kind '{KIND}', which would run a file"):
        judge_file(Path("rows.jsonl"))
    with pytest.raises(UserError, match="which would run a file"):
        prepare.check(experiment("prepare.problems=rows.jsonl", "prepare.kind=math",
                                 "prepare.held_out=0"))
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    assert judge_file(Path("rows.jsonl"), Path("out.jsonl"), kind=KIND) == {"correct": 1}
