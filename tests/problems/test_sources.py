"""Problem files as people have them: which forms are read, and what is said of the others."""

import bz2
import csv
import gzip
import json
import lzma
import math
import re
from types import SimpleNamespace

import pytest

from pipeline.config.experiment import Runtime
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
    ("p.json", '[{"problem": 1,]', r"p\.json:1 is not a JSON object")])
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
    ({"answer": {"value": 1}}, "instead of a text or a number"),
    ({"problem": [{"text": "1+1?"}]}, "instead of a text or a number"),
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
    counts = prepare.run(SimpleNamespace(prepare=config, seed=0, runtime=Runtime()), {},
                       tmp_path / "out")
    assert (counts["problems"], counts["duplicates"], counts["bad_gold"]) == (7, 2, 1)
    assert "2 duplicates" in prepare.summary(counts) and "1 with a bad" in prepare.summary(counts)


def test_a_problem_that_is_there_twice_with_two_answers_is_said(tmp_path, capsys):
    rows = [{"id": f"{i}", "problem": f"Half of {i}?", "answer": str(i / 2)} for i in range(9)]
    again = [{"id": "a", "problem": "half of 1", "answer": "\\frac{1}{2}"},
             {"id": "b", "problem": "half of 3", "answer": "1"}]
    config = PrepareConfig(problems=str(tmp_path / "p.jsonl"), held_out=2)
    for more, said in ((again[:1], ""), (again, "1 of the repeated problems disagree")):
        problems(tmp_path / "p.jsonl", [*rows, *more])
        prepare.run(SimpleNamespace(prepare=config, seed=0, runtime=Runtime()), {},
                       tmp_path / f"out{len(more)}")
        told = capsys.readouterr().err
        assert (said in told and "b says '1'" in told and "3 says '1.5'" in told) if said else \
            "disagree" not in told


PLAIN = [{"problem": f"Half of {i}?", "answer": str(i / 2)} for i in (1, 2, 3)]
TEXT = "\n".join(map(json.dumps, PLAIN))
TABLE = "problem,answer\n" + "".join(f'"{row["problem"]}",{row["answer"]}\n' for row in PLAIN)
COLUMNS = {name: [row[name] for row in PLAIN] for name in PLAIN[0]}


def arrow(path, stream):
    import pyarrow as pa

    table = pa.Table.from_pylist(PLAIN)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table)


FORMS = {
    "bom.jsonl": TEXT.encode("utf-8-sig"), "wide.jsonl": TEXT.encode("utf-16"),
    "wider.jsonl": TEXT.encode("utf-32"), "bare.csv": TABLE.encode("utf-16-le"),
    "wide.csv": TABLE.encode("utf-16"), "semicolon.csv": TABLE.replace(",", ";").encode(),
    "tabs.csv": TABLE.replace(",", "\t").encode(), "tabs.tsv": TABLE.replace(",", "\t").encode(),
    "pretty.jsonl": json.dumps(PLAIN, indent=2).encode(),
    "objects.json": "\n".join(json.dumps(row, indent=1) for row in PLAIN).encode(),
    "wrapped.json": json.dumps({"version": 1, "data": PLAIN}, indent=1).encode(),
    "viewer.json": json.dumps({"rows": [{"row_idx": 0, "row": row} for row in PLAIN]}).encode(),
    "lists.json": json.dumps(COLUMNS).encode(),
    "pandas.json": json.dumps({name: dict(zip("012", values, strict=True))
                               for name, values in COLUMNS.items()}).encode(),
    "split.json": json.dumps({"columns": [*COLUMNS], "index": [0, 1, 2],
                              "data": [list(row.values()) for row in PLAIN]}).encode(),
    "keyed.json": json.dumps({f"q{i}": row for i, row in enumerate(PLAIN)}).encode(),
    "p.jsonl.gz": gzip.compress(TEXT.encode()), "p.csv.bz2": bz2.compress(TABLE.encode()),
    "p.json.xz": lzma.compress(json.dumps(PLAIN).encode()),
    "named.jsonl": gzip.compress(TEXT.encode("utf-16"))}


@pytest.mark.parametrize("name", [*FORMS, "stream.arrow", "file.arrow"])
def test_a_file_is_read_in_whatever_form_it_came(tmp_path, name):
    path = tmp_path / name
    if name in FORMS:
        path.write_bytes(FORMS[name])
    else:
        arrow(path, stream="stream" in name)
    rows = load_rows(Source(problems=str(path)), 0)
    assert {row["problem"]: row["answer"] for row in rows} == {
        row["problem"]: row["answer"] for row in PLAIN}


def test_patterns_folders_home_and_saved_sets_are_read_and_part_of_the_key(tmp_path, monkeypatch):
    from datasets import Dataset, DatasetDict

    from stages.graph import _local

    for number, row in enumerate(PLAIN):
        (tmp_path / "parts" / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"parts/deep/{number}.jsonl").write_text(json.dumps(row))
    Dataset.from_list(PLAIN).save_to_disk(str(tmp_path / "saved"))
    DatasetDict(train=Dataset.from_list(PLAIN), test=Dataset.from_list(PLAIN[:1])).save_to_disk(
        str(tmp_path / "both"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    here = SimpleNamespace(runtime=Runtime())
    for name, files in (("parts/deep/*.jsonl", 3), ("parts/**/[01].jsonl", 2), ("parts", 3),
                        ("~/parts/deep/0.jsonl", 1), ("~/parts", 3), ("saved", 1), ("both", 2)):
        rows = load_rows(Source(problems=name), 0)
        assert len(rows) == (3 if name in ("saved", "both") else files), name
        assert len([path for path in _local(here, name) if path.suffix != ".json"]) == files, name
    assert len(load_rows(Source(problems="both", split="test"), 0)) == 1
    with pytest.raises(UserError, match="no split 'dev', only train, test"):
        load_rows(Source(problems="both", split="dev"), 0)
    with pytest.raises(UserError, match=r"parts/\*\.csv names no file"):
        load_rows(Source(problems="parts/*.csv"), 0)


def test_a_folder_of_splits_gives_the_split_that_is_asked_for(tmp_path):
    for split, row in zip(("train", "test"), PLAIN, strict=False):
        (tmp_path / f"{split}-00000-of-00001.jsonl").write_text(json.dumps(row))
    row, = load_rows(Source(problems=str(tmp_path), split="test"), 0)
    assert row["problem"] == PLAIN[1]["problem"]
    with pytest.raises(UserError, match="no file of the split 'dev'"):
        load_rows(Source(problems=str(tmp_path), split="dev"), 0)


@pytest.mark.parametrize(("name", "data", "said"), [
    ("p.csv", "problem,answer\nCombien d'été ?,5\n".encode("cp1252"), "iconv -f CP1252"),
    ("p.jsonl", '{"problem": "été"}'.encode("latin-1"), "not in UTF-8 (byte 0xe9"),
    ("p.jsonl.gz", gzip.compress(TEXT.encode(), mtime=0)[:40], "is damaged"),
    ("p.csv", b"PK\x03\x04\x14", "Excel workbook"), ("p.arrow", b"nothing", "readable Arrow"),
    ("p.parquet", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ("p.json", b"\n<!DOCTYPE html><html>", "is a web page"),
    ("p.jsonl", b"\x28\xb5\x2f\xfd\x04", "compressed by zstd")])
def test_what_cannot_be_read_is_named_with_its_trouble_and_the_remedy(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=re.escape(said)):
        load_rows(Source(problems=str(tmp_path / name)), 0)


@pytest.mark.parametrize("row", [
    {"prompt": [{"role": "system", "content": "Box."}, {"role": "user", "content": "Half of 1?"}],
     "reward_model": {"ground_truth": "0.5", "style": "rule"}},
    {"prompt": [{"from": "human", "value": "Half of 1?"}, {"from": "gpt", "value": "0.5"}],
     "reward_model": '{"ground_truth": "0.5"}'},
    {"prompt": json.dumps([{"role": "user", "content": [{"type": "text", "text": "Half of 1?"}]}]),
     "reward_model.ground_truth": "0.5"},
    {"prompt": "Half of 1?", "reward_model": {"ground_truth": ["0.5", "1/2"]}}])
def test_a_conversation_asks_the_problem_and_dots_reach_into_a_column(tmp_path, row):
    found, = problems(tmp_path / "p.jsonl", [row], problem_column="prompt",
                      answer_column="reward_model.ground_truth")
    assert (found["problem"], found["answer"]) == ("Half of 1?", "0.5")


HUMANEVAL = {"test": "def check(f):\n    assert f(1) == 2", "entry_point": "f"}
RUNS = {"inputs": ["1\n", "2\n"], "outputs": ["2", "3"]}


@pytest.mark.parametrize(("row", "tests"), [
    ({**HUMANEVAL, "answer": "    return x + 1"}, HUMANEVAL), ({"meta": HUMANEVAL}, HUMANEVAL),
    ({"test_list": ["assert f(1)"], "test_setup_code": "import math", "code": "def f(): 1"},
     {"test_list": ["assert f(1)"], "test_imports": ["import math"]}),
    ({"test_list": "['assert f(1)']", "test_imports": "[]"}, {"test_list": ["assert f(1)"]}),
    ({"meta": json.dumps({"test_list": ["assert f(1)"]}), "answer": "5"},
     {"test_list": ["assert f(1)"]}),
    (RUNS, RUNS), ({"input_output": json.dumps(RUNS)}, RUNS),
    ({"public_tests": {"input": RUNS["inputs"], "output": RUNS["outputs"]}}, RUNS),
    ({"test_cases": [{"input": "1\n", "output": "2"}, {"input": "2\n", "output": "3"}]}, RUNS)])
def test_rows_that_hold_tests_are_code_unless_a_kind_is_named(tmp_path, row, tests):
    one, = problems(tmp_path / "p.jsonl", [{"problem": "Write f.", **row}])
    assert one["kind"] == "code" and json.loads(one["meta"]).items() >= tests.items()
    one, = problems(tmp_path / "p.jsonl", [{"problem": "Write f.", "answer": "5", **row}],
                    kind="math")
    assert one["kind"] == "math"


@pytest.mark.parametrize(("row", "said"), [
    ({"input_output": json.dumps({**RUNS, "fn_name": "f"})}, "prepare.kind=code"),
    ({"meta": {"tests": [{"call": "f(1)"}]}}, "prepare.kind=code"),
    ({"choices": ["4", "6", "7"]}, "prepare.kind=choice"),
    ({"options": {"A": "4", "B": "7"}}, "prepare.kind=choice")])
def test_rows_that_may_not_be_maths_are_refused_unless_a_kind_is_named(tmp_path, row, said):
    rows = [{"problem": "Which is prime?", "answer": 2, **row}]
    with pytest.raises(UserError, match=f"names no kind.*{re.escape(said)}.*prepare.kind=math"):
        problems(tmp_path / "p.jsonl", rows)
    assert problems(tmp_path / "p.jsonl", rows, kind="math")[0]["kind"] == "math"
    plain = [{"problem": "1+1?", "answer": 2, **dict.fromkeys(row)}]
    assert problems(tmp_path / "p.jsonl", plain)[0]["kind"] == "math"


def test_prepare_says_that_tests_decide_and_what_decontaminates_needs_none(tmp_path, capsys):
    rows = [{"problem": f"Write a program that adds {i}.", **RUNS} for i in range(4)]
    problems(tmp_path / "p.jsonl", rows)
    (tmp_path / "e.jsonl").write_text(json.dumps({"problem": "Which?", "choices": ["a"]}))
    config = PrepareConfig(problems=str(tmp_path / "p.jsonl"), held_out=0,
                           decontaminate=[str(tmp_path / "e.jsonl")])
    experiment = SimpleNamespace(prepare=config, seed=0, runtime=Runtime(),
                                 filter=SimpleNamespace(llm_judge=None))
    assert prepare.run(experiment, {}, tmp_path / "out")["problems"] == 4
    assert "4 problems are of kind code" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "refused"), [
    (2, True), ("3", True), ("7", False), ("C", False), (40, False)])
def test_an_answer_that_numbers_an_option_is_no_value(tmp_path, answer, refused):
    path = tmp_path / "options.jsonl"
    text = "Which is prime? (A) 4 (B) 6 (C) 7 (D) 8"
    path.write_text(json.dumps({"problem": text, "answer": answer}) + "\n")
    if refused:
        with pytest.raises(UserError, match=r"options A, B, C, D .* prepare\.kind=choice"):
            load_rows(Source(problems=str(path)), 0)
    else:
        assert load_rows(Source(problems=str(path)), 0)
    assert load_rows(Source(problems=str(path), kind="choice"), 0)[0]["kind"] == "choice"
    plain = {"problem": "Let A. be a set, and B. another. How many?", "answer": "2"}
    path.write_text(json.dumps(plain) + "\n")
    assert load_rows(Source(problems=str(path)), 0)
