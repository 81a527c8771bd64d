"""What two people say of a run's traces is what the filter does, also after changes."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import polars as pl
import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.curate.reviews import EDITED_FROM, append_reviews, latest, read_reviews, reviews_path
from pipeline.evaluate.numbers import people_counts
from pipeline.evaluate.page import people
from pipeline.prompts import ROOT
from pipeline.view.workspace import Places, Workspace
from stages.commands import preview_filter
from stages.graph import plans
from stages.make import make, plan_of
from stages.show import show_stage
from stages.view import export_reviews, split_targets, take_reviews

SMALL = ("prepare.limit=40", "prepare.held_out=5", "generate.samples=4")
OBEY = "filter.reviews={obey: true}"


def experiment(*more):
    return load(Experiment, [ROOT / "configs/default.yaml"], [*SMALL, *more])


def judged(one):
    return pl.read_parquet(plan_of(one, "filter").folder / "judged.parquet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which a small run is filtered."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        make(experiment(), "filter")
    return folder


@pytest.fixture
def reviewed(made, tmp_path, monkeypatch):
    """A filtered run of which Ada and Bob have called ten traces each good or bad."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    plain = experiment()
    source = plan_of(plain, "filter").folder.name
    space = Workspace(Places([plain.runtime.artifacts], [], plain.runtime.traces,
                             tmp_path / "cache", {}))
    table = judged(plain).with_row_index().unique("thinking", keep="first", maintain_order=True)
    chosen = [*table.filter("kept")["index"].head(10), *table.filter(~pl.col("kept"),
              reason="wrong")["index"].head(10)]
    said = {}
    for place, row in enumerate(chosen):
        shown = space.trace(source, row)
        said[shown["key"]] = "bad" if place < 10 else "good"
        space.review([{"key": shown["key"], "problem_key": shown["problem_key"],
                       "reviewer": ("Ada", "Bob")[place % 2], "verdict": said[shown["key"]]}])
    yield SimpleNamespace(plain=plain, said=said, space=space, source=source)
    space.close()


def kept_keys(one, space):
    """{key: kept} of the traces of a filter, as the page keys them."""
    source = plan_of(one, "filter").folder.name
    rows = range(len(judged(one)))
    traces = [space.trace(source, row) for row in rows]
    return {trace["key"]: trace["columns"]["kept"] for trace in reversed(traces)}


def test_what_was_said_is_done_and_kept_over_changes(reviewed, capsys):
    said, plain = reviewed.said, reviewed.plain
    changes = [(), ("filter.keep=tokens < 90",), ("prepare.limit=38", "filter.rules=[no_summary]")]
    for change in changes:
        one = experiment(OBEY, *change)
        make(one, "filter")
        kept = kept_keys(one, reviewed.space)
        there = {key: word == "good" for key, word in said.items() if key in kept}
        assert {key: kept[key] for key in there} == there
        assert len(there) >= 15
    assert "people called" in capsys.readouterr().err
    assert plan_of(plain, "filter").key == plan_of(experiment(), "filter").key


def test_only_a_filter_that_asks_is_made_again_by_a_verdict(reviewed):
    path = reviews_path(reviewed.plain.runtime.traces)
    asking = ("filter.keep=verdict == \"correct\" and review != \"bad\"",), (OBEY,)
    before = [plan_of(experiment(*more), "filter").key for more in ((), *asking)]
    append_reviews(path, [{"key": "k", "reviewer": "Ada", "verdict": "good"}])
    after = [plan_of(experiment(*more), "filter").key for more in ((), *asking)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False]


def test_an_edited_trace_is_judged_kept_and_packed(reviewed):
    shown = reviewed.space.trace(reviewed.source, 0)
    reviewed.space.review([{
        "key": shown["key"], "problem_key": shown["problem_key"], "reviewer": "Ada",
        "verdict": "bad", "edit": {"thinking": "Shorter.",
                                   "answer": f"\\boxed{{{shown['gold']}}}"}}])
    one = experiment(OBEY)
    make(one, "pack")
    edited = judged(one).filter(pl.col("sample") >= EDITED_FROM)
    assert edited.select("kept", "verdict", "model").rows() == [(True, "correct", "edited by Ada")]
    rows = pl.read_parquet(plan_of(one, "pack").folder / "rows.parquet", columns=["sample"])
    assert rows["sample"].list.contains(EDITED_FROM).any() if rows["sample"].dtype == pl.List \
        else EDITED_FROM in rows["sample"]
    source = plan_of(one, "filter").folder.name
    place = judged(one).with_row_index().filter(sample=EDITED_FROM)["index"][0]
    tokens = reviewed.space.tokens(source, place)["tokens"]
    text = "".join(text for text, trained, _ in tokens if trained)
    assert "Shorter." in text
    assert tokens[0][1] == 0 and tokens[-1][1] == 1
    assert reviewed.space.trace(source, place)["review"] == "good"


def test_show_and_preview_know_what_people_said(reviewed, capsys):
    show_stage(reviewed.plain, "filter", 30, 'review == "good"')
    assert "judged.parquet, 10 shown" in capsys.readouterr().out
    one = experiment(OBEY)
    preview_filter(plans(one, "filter")["filter"])
    assert "reviewed bad" in capsys.readouterr().out


def test_verdicts_travel_to_another_machine(reviewed, tmp_path, capsys):
    export_reviews(reviewed.plain, tmp_path / "said.jsonl")
    other = experiment(f"runtime.traces={tmp_path / 'elsewhere'}")
    take_reviews(other, str(tmp_path / "said.jsonl"))
    take_reviews(other, str(tmp_path / "said.jsonl"))
    said = capsys.readouterr().err
    assert "20 new, 0 known" in said
    assert "0 new, 20 known" in said
    lines = read_reviews(reviews_path(other.runtime.traces))
    assert set(latest(lines)) == set(reviewed.said)
    assert json.loads((tmp_path / "said.jsonl").read_text().splitlines()[0]) == lines[0]


def test_the_report_says_how_people_and_judge_differ(reviewed):
    folders = {name: plan.folder for name, plan in plans(reviewed.plain, "filter").items()}
    found = people_counts(reviews_path(reviewed.plain.runtime.traces), folders)
    # Ten right ones were called bad and ten wrong ones good.
    assert (found["seen"], found["compared"], found["differ"]) == (20, 20, 20)
    assert "2 people read 20 of the traces and differ from the judge on 20 of 20." in people(found)
    assert people_counts(folders["filter"] / "none.jsonl", folders) is None
    assert people(None) == ""


def test_a_path_a_setting_and_nothing_are_told_apart(tmp_path):
    from pipeline.errors import UserError

    file = tmp_path / "a=b.jsonl"
    file.write_text("{}")
    assert split_targets([str(file), "seed=3"]) == ([file], ["seed=3"])
    with pytest.raises(UserError, match="does not exist; name a file of traces"):
        split_targets([str(tmp_path / "gone.jsonl")])
