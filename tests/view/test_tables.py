"""Tables of traces: searches equal a plain reading, features are columns, any file is read."""

import json
import math
import time

import numpy as np
import polars as pl
import pytest
from made_run import made_run

from pipeline.curate.features import add_features
from pipeline.errors import UserError
from pipeline.sft.target_store import encode
from pipeline.view.marks import marks
from pipeline.view.results import flips
from pipeline.view.runs import curves, differences, kept_completions, read_live
from pipeline.view.tokens import chances_of
from pipeline.view.traces_file import as_table
from pipeline.view.word_index import WordIndex, build, words_in
from tests.view.served import workspace

WORDS = ["sum", "Wait", "\\frac{1}{2}", "x=3", "Ünïcode", "數學", "42", "the", "The", "a-b"]


@pytest.fixture
def table(tmp_path):
    """A table of 6,000 made traces, enough for words to be common and rare."""
    draw = np.random.default_rng(0)
    share = np.geomspace(0.9, 0.001, len(WORDS))
    texts = [" ".join(word for word, p in zip(WORDS, share, strict=True) if draw.random() < p)
             for _ in range(6000)]
    frame = pl.DataFrame({"problem_id": [f"p{n // 4}" for n in range(6000)], "thinking": texts,
                          "sample": [n % 4 for n in range(6000)], "answer": ["ok"] * 6000,
                          "completion_tokens": list(range(6000))})
    frame.write_parquet(tmp_path / "traces.parquet", row_group_size=500)
    return tmp_path / "traces.parquet", texts


@pytest.mark.parametrize("search", ["sum", "wait THE", "frac 1", "ünïcode", "Ünïcode", "數學 42",
                                    "3", "nothing", "a b", "ok"])
def test_the_index_finds_what_a_plain_reading_finds(table, tmp_path, search):
    path, texts = table
    build(path, {}, tmp_path / "index")
    index = WordIndex(tmp_path / "index")
    wanted = [words_in(search) <= words_in(f"{text}\nok") for text in texts]
    assert index.rows_with(search).tolist() == wanted
    assert len(index.bits) > 0
    assert len(index.rows) > 0


def test_a_phrase_and_an_unindexed_search_read_the_texts(table, tmp_path):
    path, texts = table
    space = workspace(tmp_path, files=[path])
    found = space.table("file:0")
    found.words = None
    for search, hit in (("wait sum", lambda text: {"wait", "sum"} <= set(text.lower().split())),
                        ('"sum Wait"', lambda text: "sum wait" in text.lower())):
        until = time.monotonic() + 30
        while (page := found.query(search)).searched < 6000:
            assert time.monotonic() < until
        assert page.frame["row"].to_list() == [row for row, text in enumerate(texts) if hit(text)]
    space.close()


def test_features_are_columns_once_they_are_made(table, tmp_path):
    path, _ = table
    space = workspace(tmp_path, files=[path])
    found = space.table("file:0")
    until = time.monotonic() + 60
    while found.features is None and time.monotonic() < until:
        time.sleep(0.1)
    rows = found.query(where="thinking_chars > 30 and has_thinking", sort="tokens",
                       descending=True).frame["row"].to_list()
    plain = add_features(pl.read_parquet(path), ["thinking_chars"], "en").with_row_index()
    assert rows == plain.filter(pl.col("thinking_chars") > 30)["index"].to_list()[::-1]
    found.features = None
    with pytest.raises(UserError, match="so far; ask again"):
        found.query(where="thinking_chars > 30")
    space.close()


@pytest.mark.parametrize("row", [
    {"problem": "1+1?", "answer": "2", "completion": "<think>t</think>\\boxed{2}"},
    {"question": "1+1?", "gold": "2", "responses": ["<think>t</think>\\boxed{2}"]},
    {"prompt": "1+1?", "expected_answer": 2, "reasoning": "t", "response": "\\boxed{2}"},
    {"problem": "1+1?", "answer": "2", "meta": {"response": "<think>t</think>\\boxed{2}"}},
    {"problem": "1+1?", "gold": "2", "messages": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>t</think>\\boxed{2}"}]}])
def test_a_file_is_read_by_the_names_people_give_columns(row, tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps(row))
    found, problems = as_table(path, tmp_path / "cache")
    (trace,) = pl.read_parquet(found).to_dicts()
    assert (trace["thinking"], trace["answer"], trace["verdict"]) == ("t", "\\boxed{2}", "correct")
    assert problems["0"]["problem"] == "1+1?"


@pytest.mark.parametrize(("text", "said"), [
    ("", "has no rows"), ('{"a": 1}', "row 1 of .* holds no completion"),
    ('{"completion": ""}', "holds no completion"), ("{", "is not")])
def test_a_file_that_is_no_traces_is_one_sentence(text, said, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        as_table(path, tmp_path / "cache")


def test_real_traces_are_judged_and_marked(shared, tmp_path):
    path, problems = as_table(shared / "data" / "traces_r1_aime2024.jsonl", tmp_path)
    table = pl.read_parquet(path)
    assert len(table) == len(problems) == 30
    assert table["verdict"].is_in(["correct", "wrong", "no_answer", "unclosed_thinking"]).all()
    assert (table["score"] == 1).sum() >= 20


def test_marks_stand_where_a_browser_counts():
    said = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen " \
           "fifteen sixteen seventeen eighteen nineteen twenty"
    text = f"😀 {said} 答案是 so {said}!"
    found = marks(text, "en")
    units = text.encode("utf-16-le")
    shown = {one["kind"]: units[2 * one["start"]:2 * one["end"]].decode("utf-16-le")
             for one in found}
    assert shown == {"script": "答案是", "repeated": said}
    assert marks("αβγ ∑ x² ℝ plain", "en") == []
    assert [one["kind"] for one in marks("слово", "en")] == ["script"]
    assert marks("слово", "ru") == []


def test_a_log_that_is_being_written_is_read_as_far_as_it_is_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"st\n[1]\n{"step": 2}\n{"step": 3')
    assert read_live(path) == [{"step": 1}, {"step": 2}]
    assert read_live(tmp_path / "gone") == []


def test_runs_show_curves_differences_and_kept_completions(tmp_path):
    folders = made_run(tmp_path)
    manifest = json.loads((folders["rl"] / "manifest.json").read_text())
    for name, rate in (("rl-aaa", 1.0), ("rl-bbb", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(
            manifest | {"key": name[3:], "config": {"trainer": {"learning_rate": rate}}}))
    space = workspace(tmp_path, [tmp_path])
    one, other = space.artifact("rl-aaa"), space.artifact("rl-bbb")
    assert differences([one, other], space.known()) == [
        {"key": "rl.trainer.learning_rate", "values": [1.0, 2.0]}]
    plots = {plot["key"]: plot for plot in curves(space.artifact("rl-key"))["plots"]}
    assert plots["reward"]["name"] == "Reward"
    assert all(math.isfinite(y) for plot in plots.values() for _, y in plot["points"])
    kept = tmp_path / "rl-aaa" / "phase-0" / "checkpoints" / "completions"
    kept.mkdir(parents=True)
    pl.DataFrame({"step": [7], "prompt": ["p"], "completion": ["c"], "accuracy": [1.0],
                  "format": [0.5], "advantage": [0.1]}).write_parquet(
                      kept / "completions_00007.parquet")
    found = kept_completions(one, None)
    assert (found["step"], found["rewards"]) == (7, ["accuracy", "format", "advantage"])
    (kept / "completions_00009.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="step 9 are being written or are damaged"):
        kept_completions(one, None)


def test_flips_count_problems_that_changed_hands():
    def problem(one, other):
        return {"models": {"a": {"right": one, "samples": 4}, "b": {"right": other, "samples": 4}}}

    assert flips([problem(0, 4), problem(4, 1), problem(2, 2), {"models": {}}], "a", "b") == {
        "gained": 1, "lost": 1, "same": 1}


def test_the_teachers_probabilities_are_those_that_were_stored():
    p = np.array([1.0, 0.5, 0.01, 1e-4])
    assert chances_of(encode(np.log(p))) == pytest.approx(p, rel=0.06)
