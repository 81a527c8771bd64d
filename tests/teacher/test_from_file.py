"""Traces that exist already: every form of them becomes what a teacher's answer becomes."""

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables
from pipeline.config.teacher import FileTeacher
from pipeline.errors import UserError
from pipeline.teacher.from_file import import_traces

SHARED = Path(__file__).resolve().parents[3] / "shared"
PROBLEMS = tables.table_of(tables.Problem, [
    {"problem_id": name, "problem": text, "answer": "4", "kind": "math", "source": "made",
     "split": "train", "meta": "{}"} for name, text in (("a", "What is 2+2?"), ("b", "And 1+3?"))])
TEXT = "<think>two and two</think>\\boxed{4}"


def read(tmp_path, rows, samples=4, **teacher):
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    frames = []
    counts = import_traces(FileTeacher(traces=str(path), **teacher), PROBLEMS, samples,
                          frames.append)
    return pl.concat(frames), counts


@pytest.mark.parametrize("completion", [
    TEXT, [TEXT], {"role": "assistant", "content": TEXT},
    {"role": "assistant", "reasoning_content": "two and two", "content": "\\boxed{4}"},
    [{"role": "user", "content": "?"}, {"role": "assistant", "content": TEXT}],
    [{"from": "human", "value": "?"}, {"from": "gpt", "value": TEXT}]])
def test_texts_messages_and_conversations_are_taken_apart_alike(tmp_path, completion):
    rows = [{"problem": "What is\n 2+2? ", "completion": completion}]
    traces, counts = read(tmp_path, rows, model="r1")
    (trace,) = traces.to_dicts()
    assert (trace["problem_id"], trace["sample"], trace["model"]) == ("a", 0, "r1")
    assert (trace["thinking"], trace["answer"]) == ("two and two", "\\boxed{4}")
    assert trace["complete"] and trace["finish_reason"] == "stop"
    assert trace["completion_tokens"] == 5 and counts["cost_usd"] == 0


def test_what_did_not_end_is_cut_off_and_what_is_empty_no_trace(tmp_path):
    rows = [{"problem": "And 1+3?", "completion": ["<think>one", "", "</think>"]},
            {"problem": "What is 2+2?", "completion": TEXT, "finish_reason": "length"},
            {"problem": "What is 2+2?", "completion": [TEXT, TEXT],
             "finish_reasons": ["length", "stop"]},
            {"problem": "What is 2+2?", "completion": TEXT, "finish_reasons": "stop"}]
    traces, counts = read(tmp_path, rows)
    assert traces["complete"].to_list() == [False] * 3 + [True] * 2 and counts["cut_off"] == 3
    assert counts["left_out"] == {"empty": 2}


def test_a_problem_gets_its_first_samples_in_the_order_of_the_file(tmp_path, capsys):
    rows = [{"q": {"text": "What is 2+2?"}, "out": f"<think>{i}</think>4"} for i in range(5)]
    traces, counts = read(tmp_path, [*rows, {"q": {"text": "Who?"}, "out": "x"}], samples=3,
                          problem_column="q.text", completion_column="out")
    assert traces["thinking"].to_list() == ["0", "1", "2"]
    assert traces["sample"].to_list() == [0, 1, 2]
    assert counts["left_out"] == {"beyond generate.samples": 2, "of no prepared problem": 1}
    said = capsys.readouterr().err
    assert "1 problems have no trace" in said and "'Who?'" in said


def test_what_prepare_takes_for_one_problem_is_one_problem_to_its_traces(tmp_path):
    from stages.prepare import _distinct

    asked = ["What is 2+2?", "what is 2+2", "What is  2+2 ?", "What is 2-2?"]
    kept = [row["problem"] for row in _distinct(
        [{"problem_id": str(i), "problem": text} for i, text in enumerate(asked)])[0]]
    assert kept == ["What is 2+2?", "What is 2-2?"]
    traces, counts = read(tmp_path, [{"problem": text, "completion": TEXT} for text in asked])
    assert traces["problem_id"].to_list() == ["a"] * 3
    assert counts["left_out"] == {"of no prepared problem": 1}


@pytest.mark.parametrize(("rows", "message"), [
    ([{"problem": "Who?", "completion": TEXT}, {"problem": "And 1+3?", "completion": None}],
     r"has any text \(1 are empty\); set generate.teacher.completion_column"),
    ([], r"has any text \(0 are empty\)"),
    ([{"problem": "Who?", "completion": "x"}], "no trace of .* belongs to a prepared problem"),
    ([{"problem": "And 1+3?", "text": "x"}], "has no column 'completion', only problem, text;")])
def test_traces_of_other_problems_or_columns_are_refused_in_one_sentence(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, rows)


@pytest.mark.parametrize(("overrides", "message"), [
    (["evaluate.models=[sft, teacher]"], "leave `teacher` out of evaluate.models"),
    (["sft.method={type: logits, source: {type: offline}}", "logits.scorer.type=traces",
      "generate.sampling.top_logprobs=5"], "set logits.scorer.type=transformers")])
def test_what_only_an_answering_teacher_can_do_is_refused_before_any_work(
        tmp_path, overrides, message):
    from pipeline.config.experiment import Experiment
    from pipeline.config.load import load
    from stages.make import make

    (tmp_path / "t.jsonl").write_text('{"problem": "1+1?", "completion": "2"}')
    root = Path(__file__).parents[2]
    experiment = load(Experiment, [root / "configs/default.yaml"], [
        f"generate.teacher={{type: file, traces: {tmp_path}/t.jsonl}}",
        f"runtime.artifacts={tmp_path}/a", *overrides])
    with pytest.raises(UserError, match=message):
        make(experiment, "evaluate")
    assert not (tmp_path / "a").exists()


def test_real_r1_traces_are_filtered_as_if_asked_and_an_edited_file_is_read_anew(tmp_path):
    path = SHARED / "data/traces_r1_aime2024.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    from pipeline.config.experiment import Experiment
    from stages.graph import plans
    from stages.make import make

    copy = tmp_path / "r1.jsonl"
    copy.write_text("".join(path.read_text(encoding="utf-8").splitlines(True)[:12]),
                    encoding="utf-8")
    teacher = {"type": "file", "traces": str(copy), "completion_column": "meta.response"}
    experiment = Experiment.model_validate({
        "prepare": {"problems": str(copy), "held_out": 0, "bad_gold": "drop"},
        "generate": {"teacher": teacher}, "runtime": {
            "artifacts": str(tmp_path / "a"), "traces": str(tmp_path / "t"), "judge_workers": 1}})
    make(experiment, "filter", [])
    chain = plans(experiment, "filter")
    judged = tables.read(tables.Judged, chain["filter"].folder / "judged.parquet")
    assert len(judged) == 12 and judged["thinking"].str.len_chars().min() > 1000
    assert judged["kept"].sum() > 0 and set(judged["verdict"]) <= {"correct", "wrong", "cut_off"}
    copy.write_text(copy.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert plans(experiment, "generate")["generate"].key != chain["generate"].key


def turns(*said):
    return [{"from": who, "value": text} for who, text in zip(("human", "gpt") * 3, said,
                                                              strict=False)]


@pytest.mark.parametrize("talk", [
    turns("What is 2+2?", TEXT, "Thanks!", "<think>polite</think>You are welcome, any time."),
    turns("What is 2+2?", TEXT, "Thanks!"),
    turns("And 9+9?", "<think>" + "nine and nine " * 9 + "</think>\\boxed{18}",
          "Solve: What is 2+2? Box it.", TEXT, "So what is 2+2?", "<think>same</think>4"),
    turns("(as above)", TEXT, "Thanks!", "<think>x</think>Bye.")])
def test_the_trace_is_the_turn_that_answers_the_problem(tmp_path, talk):
    (trace,) = read(tmp_path, [{"problem": "What is 2+2?", "completion": talk}])[0].to_dicts()
    assert (trace["thinking"], trace["answer"]) == ("two and two", "\\boxed{4}")


@pytest.mark.parametrize("column", ["problem", "talk"])
def test_a_conversation_asks_its_own_problem(tmp_path, column):
    rows = [{"system": "Think.", "talk": turns("What is 2+2?", TEXT)}]
    (trace,) = read(tmp_path, rows, problem_column=column, completion_column="talk")[0].to_dicts()
    assert (trace["problem_id"], trace["answer"]) == ("a", "\\boxed{4}")


@pytest.mark.parametrize(("thinking", "attempt"), [
    (["two and two"], "\\boxed{4}"), ("two and two", ["\\boxed{4}"]),
    ("<think>two and two</think>", "\\boxed{4}")])
def test_thinking_in_a_column_of_its_own_is_the_traces_thinking(tmp_path, thinking, attempt):
    rows = [{"problem": "What is 2+2?", "said": {"why": thinking}, "attempt": attempt}]
    (trace,) = read(tmp_path, rows, thinking_column="said.why",
                    completion_column="attempt")[0].to_dicts()
    assert (trace["thinking"], trace["answer"], trace["complete"]) == (
        "two and two", "\\boxed{4}", True)
    with pytest.raises(UserError, match=r"1 texts in 'said\.why' and 2 completions"):
        read(tmp_path, [{**rows[0], "attempt": ["a", "b"]}], thinking_column="said.why",
             completion_column="attempt")


def imported(tmp_path, rows, keep='verdict == "correct"'):
    from pipeline.config.experiment import Experiment
    from stages.make import make

    (tmp_path / "p.jsonl").write_text(json.dumps({"problem": "What is 2+2?", "answer": "4"}))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make(Experiment.model_validate({
        "prepare": {"problems": str(tmp_path / "p.jsonl"), "held_out": 0},
        "generate": {"teacher": {"type": "file", "traces": str(tmp_path / "t.jsonl")}},
        "filter": {"keep": keep},
        "runtime": {"artifacts": str(tmp_path / "a"), "traces": str(tmp_path / "s"),
                    "judge_workers": 1}}), "filter", [])


def test_traces_that_do_not_think_are_said_by_generate_and_by_filter(tmp_path, capsys):
    rows = [{"problem": "What is 2+2?", "completion": text} for text in ("\\boxed{4}", TEXT)]
    (tmp_path / "thinks").mkdir()
    imported(tmp_path / "thinks", rows)
    assert "thinking" not in capsys.readouterr().err
    (tmp_path / "not").mkdir()
    imported(tmp_path / "not", rows[:1])
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said if "holds any thinking" in line] == [
        "generate", "filter"]
    assert "generate.teacher.thinking_column" in "".join(said)


def test_an_end_that_is_not_known_is_said_once(tmp_path, capsys):
    ends = ["tired", "tired", "STOP", "MAX_TOKENS"]
    rows = [{"problem": "What is 2+2?", "completion": f"<think>{i}</think>\\boxed{{4}}",
             "finish_reason": end} for i, end in enumerate(ends)]
    imported(tmp_path, rows)
    said = capsys.readouterr().err
    assert said.count("2 traces ended by 'tired', which limbeck does not know") == 1
    path, = tmp_path.glob("a/filter-*/judged.parquet")
    assert pl.read_parquet(path)["reason"].to_list() == ["unknown end", "unknown end", "",
                                                         "cut_off"]
