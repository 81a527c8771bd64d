"""People's verdicts: none is lost or torn, and the filter does what was said."""

import json
import multiprocessing
import os
import random
import signal
import time

import polars as pl
import pytest

from pipeline.config.filter import FilterConfig
from pipeline.curate.agreement import (
    against_judge,
    cohen_kappa,
    krippendorff_alpha,
    sign_test,
    summarise_reviews,
)
from pipeline.curate.reviews import (
    EDITED_FROM,
    append_reviews,
    consensus,
    edited_traces,
    import_reviews,
    latest,
    problem_key,
    read_reviews,
    review_columns,
    trace_key,
    trace_key_of,
)
from pipeline.curate.select import needs_reviews, select
from pipeline.errors import UserError
from tests.curate.test_select import WRONG, trace

fork = multiprocessing.get_context("fork")


def verdict(key="k", reviewer="Ada", said="good", **more):
    return {"key": key, "reviewer": reviewer, "verdict": said, **more}


def write_many(path, name, told, long):
    for number in range(10_000):
        note = "x" * random.Random(number).choice([10, 5_000, 200_000] if long else [10])
        kept = append_reviews(path, [verdict(f"{name}-{number}", note=note)])
        os.write(told, f"{kept[0]['id']}\n".encode())


def test_a_killed_writer_loses_and_tears_no_verdict(tmp_path):
    path, draw, kept = tmp_path / "reviews.jsonl", random.Random(1), []
    for turn in range(100):
        ours, theirs = os.pipe()
        writer = fork.Process(target=write_many, args=(path, f"w{turn}", theirs, True))
        writer.start()
        os.close(theirs)
        with os.fdopen(ours) as told:
            kept.append(told.readline().strip())
            time.sleep(draw.random() * 0.03)
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
            kept += [line.strip() for line in told if line.endswith("\n")]
    append_reviews(path, [verdict("last")])         # the next writer clears what was torn
    lines = read_reviews(path)
    assert len(kept) >= 100
    assert set(kept) <= {line["id"] for line in lines}
    assert path.read_bytes().count(b"\n") == len(lines)
    assert all(len(line["note"]) in (10, 5_000, 200_000) for line in lines[:-1])


def test_two_writers_lose_nothing_of_each_other(tmp_path):
    path = tmp_path / "reviews.jsonl"
    writers = [fork.Process(target=lambda name=name: [
        append_reviews(path, [verdict(f"{name}{n}", note="y" * 9000)]) for n in range(150)])
        for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    keys = [line["key"] for line in read_reviews(path)]
    assert sorted(keys) == sorted(f"{name}{n}" for name in "ab" for n in range(150))


def test_a_line_that_is_still_being_written_is_not_read_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "reviews.jsonl"
    append_reviews(path, [verdict()])
    with path.open("ab") as file:
        file.write(b'{"key": "half')
    assert len(read_reviews(path)) == 1
    append_reviews(path, [verdict("b")])
    assert [line["key"] for line in read_reviews(path)] == ["k", "b"]
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(UserError, match=r"reviews.jsonl:1 is not a verdict"):
        read_reviews(path)


@pytest.mark.parametrize(("line", "said"), [
    (verdict(said="fine"), "says 'fine'"), (verdict(reviewer=" "), "names no reviewer"),
    (verdict(key=""), "names no trace"), ({"reviewer": "A", "pair": ["a", "b"]}, "prefers None")])
def test_what_is_no_verdict_is_refused_before_anything_is_written(tmp_path, line, said):
    with pytest.raises(UserError, match=said):
        append_reviews(tmp_path / "reviews.jsonl", [verdict(), line])
    assert not (tmp_path / "reviews.jsonl").exists()


def test_verdicts_are_imported_once(tmp_path):
    one, other = tmp_path / "one" / "reviews.jsonl", tmp_path / "other" / "reviews.jsonl"
    append_reviews(one, [verdict("a"), verdict("b", said="bad")])
    assert import_reviews(other, read_reviews(one)) == (2, 0)
    assert import_reviews(other, read_reviews(one)) == (0, 2)
    assert read_reviews(other) == read_reviews(one)


def test_the_newest_verdict_of_a_person_counts_and_may_be_taken_back():
    lines = [verdict(said="good"), verdict(said="bad"), verdict(reviewer="Bob", said=None)]
    by = latest(lines)["k"]
    assert consensus(by) == "bad"
    assert consensus(latest([*lines, verdict(said=None)])["k"]) == ""


@pytest.mark.parametrize(("said", "need", "meant"), [
    (["good"], 1, "good"), (["good"], 2, "unsure"), (["good", "good"], 2, "good"),
    (["good", "bad"], 1, "unsure"), (["bad", "bad", "good"], 2, "bad"), (["unsure"], 1, "unsure")])
def test_so_many_must_agree(said, need, meant):
    by = {str(place): verdict(said=word) for place, word in enumerate(said)}
    assert consensus(by, need) == meant


def test_the_key_follows_the_text_and_not_the_name():
    assert trace_key("What is  1+1?", "t", "2") == trace_key("what is 1+1", " t ", "2\n")
    assert trace_key("What is 1+1?", "t", "2") != trace_key("What is 1+2?", "t", "2")
    assert trace_key("p", "t", "2") == trace_key_of(problem_key("p"), "t", "2")


PROBLEMS = {"p": "What is 40+2?"}


def obeyed(rows, lines, **settings):
    config = FilterConfig(reviews={"obey": True}, **settings)
    table = review_columns(pl.DataFrame(rows, schema_overrides={"score": pl.Float64}), PROBLEMS,
                           lines, config.reviews.need)
    return select(table, config)["reason"].to_list()


def said_of(row, word, **more):
    return verdict(trace_key(PROBLEMS["p"], row["thinking"], row["answer"]), said=word, **more)


def test_the_filter_does_what_people_said():
    rows = [trace(sample=0), trace(sample=1, **WRONG), trace(sample=2), trace(sample=3, **WRONG)]
    lines = [said_of(rows[0], "bad"), said_of(rows[1], "good"), said_of(rows[2], "unsure")]
    assert obeyed(rows, lines) == ["reviewed bad", "", "", "wrong"]


def test_good_ones_are_spared_by_rules_and_limits_but_not_twice_and_not_without_an_answer():
    rows = [trace(sample=0), trace(sample=1, completion_tokens=900), trace(sample=2, answer=""),
            trace(sample=3, thinking=trace(sample=1)["thinking"])]
    lines = [said_of(row, "good") for row in rows[1:]]
    assert obeyed(rows, lines, per_problem=1, keep="tokens < 100 and has_summary") == [
        "", "", "expression", "duplicate"]


def test_a_bad_one_leaves_its_place_to_another():
    rows = [trace(sample=0, completion_tokens=10), trace(sample=1, completion_tokens=20)]
    assert obeyed(rows, [said_of(rows[0], "bad")], per_problem=1) == ["reviewed bad", ""]


def test_expressions_know_what_people_said_without_obeying():
    config = FilterConfig(keep='review == "good" and reviews >= 2')
    rows = [trace(sample=0), trace(sample=1)]
    lines = [said_of(rows[0], "good"), said_of(rows[0], "good", reviewer="Bob"),
             said_of(rows[1], "good")]
    table = review_columns(pl.DataFrame(rows), PROBLEMS, lines)
    assert needs_reviews(config)
    assert select(table, config)["kept"].to_list() == [True, False]
    assert not needs_reviews(FilterConfig())


def test_an_edited_trace_is_a_new_one_of_the_same_problem_under_another_name():
    edit = {"thinking": "Better.", "answer": "\\boxed{42}", "problem_key": problem_key(
        PROBLEMS["p"]), "key": trace_key(PROBLEMS["p"], "Better.", "\\boxed{42}")}
    lines = [verdict("old", said="bad", edit=edit)]
    (row,) = edited_traces({"renamed": "what is 40+2"}, lines)
    assert (row["problem_id"], row["sample"], row["answer"]) == ("renamed", EDITED_FROM,
                                                                 "\\boxed{42}")
    assert consensus(latest(lines)[edit["key"]]) == "good"
    assert edited_traces({"q": "another problem"}, lines) == []


def test_kappa_alpha_and_the_sign_test_give_published_values():
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)         # the textbook's 2 x 2 table
    units = ["111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11",
             "3"]           # Krippendorff 2011, table C, nominal
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert sign_test(9, 1) == pytest.approx(22 / 1024)
    assert sign_test(0, 0) == 1.0
    assert cohen_kappa([("a", "a")]) is None
    assert krippendorff_alpha(["aa"]) is None


def test_people_are_counted_with_each_other_and_against_the_judge():
    lines = [verdict("a"), verdict("b", said="bad"), verdict("a", "Bob"), verdict("b", "Bob"),
             verdict("c", "Bob", "bad"),
             {"reviewer": "Ada", "pair": ["x", "y"], "models": ["m", "n"], "prefer": "a"},
             {"reviewer": "Ada", "pair": ["y", "x"], "models": ["n", "m"], "prefer": "b"}]
    found = summarise_reviews(lines)
    assert (found["people"], found["traces"], found["shared"]) == ({"Bob": 3, "Ada": 2}, 3, 2)
    assert found["kappas"][0]["traces"] == 2
    (pair,) = found["preferences"]          # the same pair once more, the other way round
    assert (pair["one_wins"], pair["other_wins"], pair["ties"]) == (1, 0, 0)
    assert against_judge(latest(lines), {"a": 0.0, "b": 1.0, "c": 0.0}) == {
        "seen": 3, "compared": 2, "differ": 1}


def test_a_verdict_is_one_line_of_ascii_json(tmp_path):
    path = tmp_path / "reviews.jsonl"
    append_reviews(path, [verdict(note="a\nb \u2028 é \ud800")])
    (text,) = path.read_text("ascii").splitlines()
    assert json.loads(text)["note"] == "a\nb \u2028 é \ud800"
