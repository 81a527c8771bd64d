"""Benchmarks by name: each row becomes ours, local files stand in, tests are unpacked safely."""

import base64
import json
import pickle
import zlib

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.config.problems import EvaluationSet
from pipeline.errors import UserError
from pipeline.judge import Problem, judge, needs_answer
from pipeline.problems.benchmarks import BENCHMARKS, local_file
from pipeline.problems.private_tests import unpacked
from pipeline.problems.sources import benchmark_prompts, load_rows, samples_of
from pipeline.prompts import ROOT, prompt_path, render
from stages import evaluate
from stages.graph import STAGES

NAMES = ["gsm8k", "math500", "aime24", "aime25", "amc23", "minerva", "olympiad", "gpqa_diamond",
         "mmlu_pro", "ifeval", "humaneval", "mbpp", "livecodebench"]
GPQA = {"Record ID": "rec1", "Question": "Which  one?", "Correct Answer": "the third",
        "Incorrect Answer 1": "a", "Incorrect Answer 2": "b", "Incorrect Answer 3": "c"}


def private(cases):
    """Tests as LiveCodeBench packs them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


CONTEST = {"question_id": "abc1", "question_content": "Double it.", "starter_code": "",
           "contest_date": "2024-09-01T00:00:00", "metadata": "{}", "difficulty": "easy",
           "public_test_cases": json.dumps([{"input": "1\n", "output": "2\n"}]),
           "private_test_cases": private([{"input": "4\n", "output": "8\n"}])}
FUNCTION = {**CONTEST, "question_id": "lc1", "metadata": json.dumps({"func_name": "twice"}),
            "starter_code": "class Solution:\n    def twice(self, xs: List[int]) -> List[int]:",
            "public_test_cases": "[]",
            "private_test_cases": private([{"input": "[1, 2]", "output": "[2,4]"}])}


def rows_of(name, raw, folder, seed=0):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in raw))
    return load_rows(EvaluationSet(problems=name), seed, needs_answer, folder)


def test_the_registry_names_thirteen_and_each_has_its_prompt():
    assert list(BENCHMARKS) == NAMES
    for one in BENCHMARKS.values():
        prompts = (one.prompt, one.lm_eval and one.lm_eval[1])
        assert all(prompt_path(name).is_file() for name in prompts if name)
        assert 0 < one.published.score < 1 and one.published.source
        assert one.samples in (4, 8, 16, 64)


def test_the_shared_files_stand_in_for_the_hub(shared):
    sizes = {name: len(load_rows(EvaluationSet(problems=name), 0, needs_answer, shared / "data"))
             for name in ("gsm8k", "math500", "aime24", "aime25", "amc23", "minerva", "olympiad",
                          "humaneval", "mbpp")}
    assert sizes == {"gsm8k": 1319, "math500": 500, "aime24": 30, "aime25": 30, "amc23": 40,
                     "minerva": 272, "olympiad": 675, "humaneval": 164, "mbpp": 257}


HUB = {     # a row with the columns of the data set on the hub, and what it becomes
    "gsm8k": ({"question": "6 and 1?", "answer": "6+1=7\n#### 7"}, "6 and 1?", "7"),
    "math500": ({"problem": "x?", "solution": "It is \\boxed{7}.", "answer": "7",
                 "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1.json"}, "x?", "7"),
    "aime24": ({"ID": "2024-I-1", "Problem": "x?", "Solution": "so", "Answer": 204}, "x?", "204"),
    "aime25": ({"problem": "x?", "answer": "70", "id": "0"}, "x?", "70"),
    "amc23": ({"id": 0, "question": "x?", "answer": "27.0", "url": "u"}, "x?", "27.0"),
    "minerva": ({"question": "x?", "answer": "4.5e33"}, "x?", "4.5e33"),
    "olympiad": ({"id": 1606, "question": "x?", "solution": ["so"], "final_answer": ["2"],
                  "context": None, "unit": None, "is_multiple_answer": False,
                  "answer_type": "Numerical", "error": None}, "x?", "2"),
    "humaneval": ({"task_id": "HumanEval/0", "prompt": "def f(x):\n", "entry_point": "f",
                   "canonical_solution": "    return x\n",
                   "test": "def check(f):\n    assert f(1) == 1\n"}, "def f(x):\n", ""),
    "mbpp": ({"source_file": "s", "task_id": 2, "prompt": "Write f.", "code": "def f(): 1",
              "test_imports": [], "test_list": ["assert f() == 1"]},
             "Write f.\nYour code should pass these tests:\nassert f() == 1", "")}


@pytest.mark.parametrize("name", HUB)
def test_columns_of_the_hub_are_read_too(tmp_path, name):
    raw, problem, answer = HUB[name]
    [row] = rows_of(name, [raw], tmp_path)
    assert (row["problem"], row["answer"], row["kind"]) == (problem, answer, BENCHMARKS[name].kind)
    own = {"math500": "test/algebra/1.json", "aime24": "2024-I-1", "humaneval": "HumanEval/0"}
    assert row["problem_id"] == own.get(name, row["problem_id"])


def test_several_answers_stand_in_one_text_on_the_hub_and_all_are_wanted(tmp_path):
    raw = {**HUB["olympiad"][0], "final_answer": ["$1,-3$"], "is_multiple_answer": True}
    [row] = rows_of("olympiad", [raw], tmp_path)
    problem = Problem("x", row["problem"], row["answer"])
    assert judge("The answers are \\boxed{-3, 1}.", problem).score == 1
    assert judge("The answer is \\boxed{1}.", problem).score == 0


def test_choices_are_shuffled_by_a_seed_that_the_problem_keeps(tmp_path):
    [row] = rows_of("gpqa_diamond", [GPQA], tmp_path)
    meta = json.loads(row["meta"])
    assert meta["choice_seed"] == "0:rec1"
    assert sorted(meta["choices"]) == ["a", "b", "c", "the third"]
    assert meta["choices"]["ABCD".index(row["answer"])] == "the third"
    assert row["problem"].startswith("Which  one?\nChoices:\n(A) " + meta["choices"][0])
    both = rows_of("gpqa_diamond", [{**GPQA, "Record ID": "r2"}, GPQA], tmp_path)
    assert [one for one in both if one["problem_id"] == "rec1"] == [row]
    orders = {rows_of("gpqa_diamond", [GPQA], tmp_path, seed)[0]["answer"] for seed in range(12)}
    assert len(orders) > 2
    problem = Problem.from_row(row)
    assert judge(f"It is \\boxed{{{row['answer']}}}", problem).score == 1.0
    assert judge("It is \\boxed{E}", problem).score == 0.0


def test_mmlu_pro_keeps_its_order_and_its_ten_options(tmp_path):
    [row] = rows_of("mmlu_pro", [{"question_id": 7, "question": "Which?", "answer": "J",
                                  "options": [f"o{i}" for i in range(10)]}], tmp_path)
    assert row["problem"].endswith("\nI. o8\nJ. o9") and row["answer"] == "J"
    assert judge("So \\boxed{J}.", Problem.from_row(row)).score == 1.0


def test_livecodebench_runs_its_private_tests_in_the_sandbox(tmp_path):
    old = {**CONTEST, "contest_date": "2023-05-01"}
    programs, function = rows_of("livecodebench", [CONTEST, FUNCTION, old], tmp_path), None
    assert len(programs) == 2
    by_id = {row["problem_id"]: Problem.from_row(row) for row in programs}
    function = by_id["lc1"]
    assert function.meta["fn_name"] == "twice" and "class Solution" in function.problem
    right = "```python\nclass Solution:\n    def twice(self, xs: List[int]):\n" \
            "        return [2 * x for x in xs]\n```"
    assert judge(right, function).score == 1.0
    assert judge(right.replace("2 *", "3 *"), function).score == 0.0
    assert judge("```python\nprint(2.0 * float(input()))\n```", by_id["abc1"]).score == 1.0
    assert judge("```python\nprint(2)\n```", by_id["abc1"]).score == 0.0    # public test alone


class _Attack:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (exec, (f"open({str(self.mark)!r}, 'w')",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    packed = base64.b64encode(zlib.compress(pickle.dumps(_Attack(tmp_path / "run")))).decode()
    with pytest.raises(UserError, match=r"cannot be unpacked \(it names builtins.exec"):
        unpacked(packed)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="download the file again"):
        unpacked("no base64 §")


def test_ifeval_is_judged_by_its_own_checks(tmp_path):
    pytest.importorskip("if_verifiable")
    raw = {"key": 1, "prompt": "Say hi without commas, twice the word hello.",
           "instruction_id_list": ["punctuation:no_comma", "keywords:frequency"],
           "kwargs": [{"relation": None}, {"keyword": "hello", "frequency": 2,
                                           "relation": "at least"}]}
    [row] = rows_of("ifeval", [raw], tmp_path)
    problem = Problem.from_row(row)
    assert judge("<think>a, b</think>hello hello", problem).score == 1.0
    broken = judge("hello, you", problem)
    assert broken.score == 0.0
    assert broken.extracted == "punctuation:no_comma, keywords:frequency"
    assert judge("hello", Problem("x", "", "", "ifeval", meta={
        "instruction_id_list": ["no:such"], "kwargs": [{}]})).verdict == "cannot_judge"


def test_prompts_and_samples_follow_the_registry():
    entries = ["aime24", "gpqa_diamond", "humaneval", "heldout"]
    assert benchmark_prompts(entries, "own", "mine.jinja") == {
        "aime24": "mine.jinja", "gpqa_diamond": "choice", "humaneval": "function",
        "heldout": "mine.jinja"}
    assert benchmark_prompts(entries, "lm_eval", "boxed")["aime24"] == "lm_eval/question"
    assert samples_of(entries, "r1") == {"aime24": 64, "gpqa_diamond": 64, "humaneval": 4,
                                         "heldout": 4}
    assert set(samples_of(entries, 2).values()) == {2}
    assert render("lm_eval/gpqa", problem="P\nChoices:\n(A) x") == (
        "What is the correct answer to this question:P\nChoices:\n(A) x\n"
        "Let's think step by step:")


def experiment(*overrides):
    return load(Experiment, [ROOT / "configs/default.yaml"], list(overrides))


def test_a_wrong_name_and_a_missing_file_are_said_before_any_work(tmp_path):
    with pytest.raises(UserError, match="did you mean aime24"):
        evaluate.check(experiment("evaluate.benchmarks=[aime_24]"))
    given = experiment("evaluate.benchmarks=[aime24]", f"runtime.benchmarks={tmp_path}")
    with pytest.raises(UserError, match=r"no file for aime24; put aime24.jsonl there"):
        STAGES["evaluate"].files(given)
    (tmp_path / "aime2024.json").write_text("[]")
    assert local_file("aime24", tmp_path) in STAGES["evaluate"].files(given)
    with pytest.raises(UserError, match="is no folder"):
        local_file("aime24", tmp_path / "none")


def test_a_benchmark_by_name_is_not_taught():
    with pytest.raises(UserError, match="gsm8k is a benchmark"):
        STAGES["prepare"].check(experiment("prepare.problems=gsm8k"))


def test_decontamination_takes_the_same_names(tmp_path, shared):
    train = tmp_path / "train.jsonl"
    aime = json.loads((shared / "data/aime2024.jsonl").read_text().splitlines()[0])
    own = [{"problem": f"What is {i} times {i + 1}?", "answer": str(i * (i + 1))} for i in range(9)]
    train.write_text("".join(json.dumps(row) + "\n" for row in [
        *own, {"problem": aime["problem"], "answer": aime["answer"]}]))
    from stages import prepare

    counts = prepare.run(experiment(
        f"prepare.problems={train}", "prepare.decontaminate=[aime24]", "prepare.held_out=0",
        f"runtime.benchmarks={shared / 'data'}"), {}, tmp_path)
    assert (counts["contaminated"], counts["problems"]) == (1, 9)
