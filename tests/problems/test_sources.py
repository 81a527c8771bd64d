"""Problem files as people have them: which forms are read, and what is said of the others."""

import csv
import json
import math
from types import SimpleNamespace

import pytest

from pipeline.config.problems import PrepareConfig, Source
from pipeline.errors import UserError
from pipeline.judge import Problem, check_gold, judge, needs_answer
from pipeline.problems.sources import load_rows
from stages import prepare

ROWS = [{"problem": f"Half of {i}?\u2028Say it.", "answer": str(i / 2)} for i in (1, 2, 3)]


def problems(path, rows, **settings):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_rows(Source(problems=str(path), **settings), 0, needs_answer)


def test_csv_and_json_files_hold_the_same_problems_as_json_lines(tmp_path):
    named = {row["problem"]: row["answer"] for row in ROWS}
    (tmp_path / "p.json").write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8-sig")
    (tmp_path / "p.txt").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    for name, separator in (("p.csv", ","), ("p.tsv", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["problem", "answer", "id", "kind"], delimiter=separator)
            writer.writeheader()
            writer.writerows(ROWS)
    for name in ("p.json", "p.csv", "p.tsv", "p.txt"):
        rows = load_rows(Source(problems=str(tmp_path / name)), 0)
        assert {row["problem"]: row["answer"] for row in rows} == named
        assert {row["kind"] for row in rows} == {"math"}
        assert len({row["problem_id"] for row in rows}) == 3


@pytest.mark.parametrize(("name", "text", "said"), [
    ("p.csv", "problem,answer\na,1\nb,2,3\n", r"p\.csv:3 .*more fields"),
    ("p.csv", 'problem,answer\n"a,1\n', r"p\.csv:\d is not CSV"),
    ("p.json", "[{}, 3]", r"p\.json:2 is not a JSON object"),
    ("p.json", '[{"problem": 1,]', r"p\.json:0 is not a JSON object")])
def test_a_broken_file_is_named_with_its_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_rows(Source(problems=str(tmp_path / name)), 0)


def test_any_spelling_of_a_list_of_golds_is_right_and_nothing_else_is(tmp_path):
    row, = problems(tmp_path / "p.jsonl", [{"problem": "Half of 1?", "answer": [0.5, "1/2", None],
                                            "meta": {"policy": {"tolerance": 0.1}}}])
    problem = Problem.from_row(row)
    assert check_gold(problem).verdict == "correct" and problem.policy.tolerance == 0.1
    verdicts = [judge(rf"\boxed{{{answer}}}", problem).verdict for answer in ("0.5", "1/2", "2")]
    assert verdicts == ["correct", "correct", "wrong"]
    row, = problems(tmp_path / "p.jsonl", [{"problem": "How much?", "answer": [
        "12,500", "12500", "x=12500, y=0"]}])
    problem = Problem.from_row(row)
    verdicts = [judge(rf"\boxed{{{answer}}}", problem).verdict for answer in (
        "12500", "12,500", "y = 0, x = 12500", "12", "500", "0")]
    assert verdicts == ["correct"] * 3 + ["wrong"] * 3
    (tmp_path / "p.csv").write_text("""problem,answer\nHalf?,"['0.5', '1/2']"\n""")
    row, = load_rows(Source(problems=str(tmp_path / "p.csv")), 0)
    assert Problem.from_row(row).golds == ["0.5", "1/2"]
    one, = problems(tmp_path / "p.jsonl", [{"problem": "Hi?", "answer": ["hi"], "kind": "exact"}])
    assert one["answer"] == "hi"


def test_null_is_as_good_as_absent_and_code_needs_no_answer(tmp_path):
    nulls = {"id": None, "kind": math.nan, "source": None, "meta": math.nan}
    tests = {"test_list": ["assert f(1)"], "inputs": None, "outputs": None}
    rows = problems(tmp_path / "p.jsonl", [
        {**nulls, "problem": 1, "answer": 1}, {**nulls, "problem": "b", "answer": 2},
        {"problem": "Write f", "kind": "code", "meta": tests}])
    assert {row["problem_id"] for row in rows} == {"p-0", "p-1", "p-2"}
    assert {row["source"] for row in rows} == {str(tmp_path / "p.jsonl")}
    code = next(row for row in rows if row["kind"] == "code")
    assert json.loads(code["meta"]) == {"test_list": tests["test_list"]}
    assert check_gold(Problem.from_row(code)).grader == "unchecked"


@pytest.mark.parametrize(("row", "said"), [
    ({"answer": {"value": 1}}, "where a text or a number belongs"),
    ({"problem": [{"role": "user", "content": "1+1?"}]}, "where a text or a number belongs"),
    ({"answer": []}, "has no 'answer'"), ({"answer": math.nan}, "has no 'answer'"),
    ({"answer": [math.nan]}, "has no 'answer'"), ({"problem": "a \ud83d"}, "half a character"),
    ({"meta": [1]}, "not a JSON object"),
    ({"meta": "{"}, "not a JSON object"),
    ({"answer": ["a", "b"], "kind": "exact"}, "only kind math takes several")])
def test_what_is_no_text_is_refused_and_never_spelt_out_as_python_would(tmp_path, row, said):
    with pytest.raises(UserError, match=f"row 1 of .*{said}"):
        problems(tmp_path / "p.jsonl", [{"problem": "1+1?", "answer": "2", **row}])


def test_what_prepare_leaves_out_is_counted_and_said(tmp_path):
    rows = [{"problem": f"Half of {i}?", "answer": i / 2} for i in (*range(9), 1, 2)]
    path = tmp_path / "p.jsonl"
    problems(path, [*rows, {"problem": "Why?", "answer": "See the appendix, it is there."}])
    config = PrepareConfig(problems=str(path), held_out=2, bad_gold="drop")
    counts = prepare.run(SimpleNamespace(prepare=config, seed=0), {}, tmp_path / "out")
    assert (counts["problems"], counts["duplicates"], counts["bad_gold"]) == (7, 2, 1)
    assert "2 duplicates" in prepare.summary(counts) and "1 with a bad" in prepare.summary(counts)


def test_a_problem_that_is_there_twice_with_two_answers_is_said(tmp_path, capsys):
    rows = [{"id": f"{i}", "problem": f"Half of {i}?", "answer": str(i / 2)} for i in range(9)]
    again = [{"id": "a", "problem": "half of 1", "answer": "\\frac{1}{2}"},
             {"id": "b", "problem": "half of 3", "answer": "1"}]
    config = PrepareConfig(problems=str(tmp_path / "p.jsonl"), held_out=2)
    for more, said in ((again[:1], ""), (again, "1 of the repeated problems disagree")):
        problems(tmp_path / "p.jsonl", [*rows, *more])
        prepare.run(SimpleNamespace(prepare=config, seed=0), {}, tmp_path / f"out{len(more)}")
        told = capsys.readouterr().err
        assert (said in told and "b says '1'" in told and "3 says '1.5'" in told) if said else \
            "disagree" not in told
