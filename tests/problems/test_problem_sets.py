"""Several problem sets in one run: shares of what is kept, prompts and rules of their own."""

import json
from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.filter import FilterConfig
from pipeline.config.load import load
from pipeline.curate.select import select
from pipeline.curate.shares import apportioned
from pipeline.errors import UserError
from stages import evaluate, generate, prepare
from stages import filter as filter_stage
from stages import pack as pack_stage
from stages.graph import plans


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Sums of which two in three are answered right, and chats that have no gold."""
    sums = [{"problem": f"What is {i} + 1?", "answer": str(i + 1),
             "completion": f"<think>{i} and one</think>\\boxed{{{i + 1 if i % 3 else 0}}}"}
            for i in range(90)]
    chats = [{"prompt": f"Write about thing {i}.",
              "response": f"<think>hm {i}</think>Thing {i} is a fine thing to write about."}
             for i in range(40)]
    return {"sums": write(tmp_path / "sums.jsonl", sums),
            "chats": write(tmp_path / "chats.jsonl", chats)}


def tree(files, **chat):
    return {"prepare": {"sources": [
        {"name": "sums", "problems": files["sums"], "held_out": 10, "share": 3,
         "teacher": {"type": "file", "traces": files["sums"]}},
        {"name": "chat", "problems": files["chats"], "problem_column": "prompt", "kind": "open",
         "held_out": 5, "share": 1, "keep": "complete", "thinking": False,
         "prompt": "r1_zero", "teacher": {"type": "file", "traces": files["chats"],
                                          "problem_column": "prompt",
                                          "completion_column": "response"}, **chat}]},
        "generate": {"teacher": {"type": "solver"}, "samples": 1},
        "evaluate": {"benchmarks": ["heldout", "heldout/sums"]}}


def made(experiment, tmp_path):
    """The folders of prepare, generate and filter."""
    folders = {name: tmp_path / name for name in ("prepare", "generate", "filter")}
    prepare.run(experiment, {}, folders["prepare"])
    generate.run(experiment, folders, folders["generate"])
    inputs = {name: folders[name] for name in ("prepare", "generate")}
    return folders, filter_stage.run(experiment, inputs, folders["filter"])


def test_shares_hold_of_what_is_kept_though_sources_pass_at_unequal_rates(files, tmp_path):
    experiment = Experiment.model_validate(tree(files))
    folders, counts = made(experiment, tmp_path)
    judged = tables.read(tables.Judged, folders["filter"] / "judged.parquet")
    kept = Counter(judged.filter("kept")["source"])
    passing = len(judged.filter(source="sums", verdict="correct"))
    assert kept == apportioned({"sums": 3, "chat": 1}, kept.total()) and 50 < passing < 60
    assert apportioned({"sums": 3, "chat": 1}, kept.total() + 1)["sums"] > passing
    assert set(judged.filter(source="chat", kept=False)["reason"]) == {"over share"}
    assert counts["kept_by_source"] == kept
    held_out = tables.read(tables.Problem, folders["prepare"] / "heldout.parquet")
    assert Counter(held_out["source"]) == {"sums": 10, "chat": 5}
    found = evaluate._benchmarks(experiment, {"prepare": folders["prepare"]})
    assert len(found["heldout"]) == 15 and {r["source"] for r in found["sums"]} == {"sums"}
    traces = tables.read(tables.Trace, folders["generate"] / "traces.parquet")
    assert Counter(traces["source"]) == {"sums": 80, "chat": 35}


def test_a_source_has_its_prompt_and_is_trained_without_thinking_if_it_says_so(files, tmp_path):
    from pipeline.student.tiny import save_tiny
    from tests.tiny_sft import SHAPE, TEMPLATE

    experiment = Experiment.model_validate(tree(files))
    folders, _ = made(experiment, tmp_path)
    folders["student"] = tmp_path / "student"
    save_tiny(["What is thing"], SHAPE, TEMPLATE.read_text("utf-8"), 0,
              folders["student"] / "tokenizer")
    (folders["student"] / "model.txt").write_text(str(folders["student"] / "tokenizer"))
    pack_stage.run(experiment, folders, tmp_path / "pack")
    rows = tables.read(tables.TokenRow, tmp_path / "pack/rows.parquet")
    from pipeline.student.tokenizer import load_tokenizer
    tokenizer = load_tokenizer(folders["student"] / "tokenizer")
    for name, ids in rows.select("problem_id", "input_ids").iter_rows():
        text = tokenizer.decode(ids)
        assert ("hm" in text) is False and (" and one" in text) == name.startswith("sums/")
        assert ("A conversation between" in text) == name.startswith("chat/")


def test_too_few_of_a_source_are_named_with_their_number_before_any_work(files, tmp_path):
    asked = tree(files)
    asked["prepare"]["sources"][1]["limit"] = 20
    asked["filter"] = {"total": 100}
    experiment = Experiment.model_validate(asked)
    with pytest.raises(UserError, match=r"10 of 25 traces of chat are missing \(only 15 could come "
                                        r"from its problems"):
        prepare.check(experiment)
    asked["prepare"]["sources"][1].pop("limit")
    asked["filter"] = {"total": 200}
    experiment = Experiment.model_validate(asked)
    with pytest.raises(UserError, match="70 of 150 traces of sums are missing"):
        prepare.check(experiment)
    with pytest.raises(UserError, match=r"70 of 150 traces of sums are missing .* 15 of 50"):
        prepare.run(experiment, {}, tmp_path / "none")


def test_too_few_that_pass_the_filter_are_one_sentence(files, tmp_path):
    asked = tree(files)
    for source in asked["prepare"]["sources"]:
        source["count"] = {"sums": 60, "chat": 10}[source["name"]]
        source.pop("share")
    with pytest.raises(UserError, match=r"\d of 60 traces of sums are missing \(only 5\d pass"):
        made(Experiment.model_validate(asked), tmp_path)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 500))
def test_an_apportionment_sums_up_and_is_within_one_of_every_quota(shares, total):
    named = {str(i): float(share) for i, share in enumerate(shares)}
    out = apportioned(named, total)
    assert sum(out.values()) == total
    assert all(abs(out[name] - total * share / sum(shares)) < 1 for name, share in named.items())


@given(st.integers(0, 60), st.integers(1, 60), st.integers(1, 5), st.integers(1, 5))
def test_as_many_are_kept_as_the_shares_allow(right, others, one, two):
    rows = [{"problem_id": f"{name}{i}", "sample": 0, "thinking": "t", "answer": str(i),
             "finish_reason": "stop", "complete": True, "prompt_tokens": 1,
             "completion_tokens": 1, "cost_usd": 0.0, "seconds": 0.0, "model": "m",
             "verdict": "correct", "score": 1.0, "extracted": "", "grader": "",
             "judge_version": ""} for name, count in (("a", right), ("b", others))
            for i in range(count)]
    config = FilterConfig.model_validate({"sources": {"a": {"share": one}, "b": {"share": two}}})
    sources = {row["problem_id"]: row["problem_id"][0] for row in rows}
    if right == 0:
        with pytest.raises(UserError, match="traces of a are missing"):
            select(pl.DataFrame(rows), config, sources)
        return
    try:
        out = select(pl.DataFrame(rows), config, sources)
    except UserError:
        assert min(right / one, others / two) < 1       # a whole row of each cannot be had
        return
    kept = Counter(sources[name] for name in out.filter("kept")["problem_id"])
    total = kept["a"] + kept["b"]
    assert kept == apportioned({"a": one, "b": two}, total)
    more = apportioned({"a": one, "b": two}, total + 1)
    assert more["a"] > right or more["b"] > others


def test_what_other_stages_read_of_a_source_is_in_their_keys_alone(files):
    def keys(experiment):
        return {name: plan.key for name, plan in plans(experiment, "pack").items()}

    base = keys(Experiment.model_validate(tree(files)))
    changed = {"keep": "complete and tokens < 9", "thinking": True, "prompt": "boxed"}
    first = {"keep": "filter", "thinking": "pack", "prompt": "generate"}
    for field, value in changed.items():
        now = keys(Experiment.model_validate(tree(files, **{field: value})))
        new = [name for name in base if now[name] != base[name]]
        assert new[0] == first[field], field


def test_an_override_reaches_a_source_and_mistakes_are_one_sentence(files, tmp_path):
    config = tmp_path / "e.yaml"
    config.write_text(json.dumps(tree(files)), encoding="utf-8")
    experiment = load(Experiment, [config], ["filter.sources.chat.share=2"])
    assert experiment.filter.sources["chat"].share == 2
    for override, said in (("filter.sources.chta.share=2", "did you mean 'chat'"),
                           ("prepare.held_out=5", "say held_out in an entry"),
                           ("filter.sources.chat.share=null", "give every source a share")):
        with pytest.raises(UserError, match=said):
            load(Experiment, [config], [override])
    broken = tree(files, keeep="x")
    config.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(UserError, match="did you mean 'keep'"):
        load(Experiment, [config])


def test_a_source_that_only_repeats_those_before_it_is_named(files, tmp_path):
    given = tree(files)
    given["prepare"]["sources"].append({"name": "again", "problems": files["sums"]})
    with pytest.raises(UserError, match=r"every problem of prepare\.sources\.again .* in sums"):
        prepare.run(Experiment.model_validate(given), {}, tmp_path / "prepare")


def test_one_set_stays_one_line():
    experiment = Experiment.model_validate({"generate": {"teacher": {"type": "solver"}}})
    dumped = experiment.model_dump(mode="json")
    assert "sources" not in dumped["prepare"] and "sources" not in dumped["filter"]
