"""`limbeck show --where`: which rows it picks, that they are whole, and that no terminal obeys."""

import polars as pl
import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.prompts import ROOT
from stages.make import make, plan_of
from stages.show import harmless, matching, show_stage, widened
from tests.made_run import made_run

LONG = "Try 7-2=5.\nWait, too low. " * 60
SMALL = ("prepare.limit=40", "prepare.held_out=5", "generate.samples=2")


def filtered(tmp_path):
    """(the filter's table, prepare's folder) of a made run whose problems are known."""
    folders = made_run(tmp_path, LONG)
    problem = {"problem_id": "t0", "problem": "Make 5.", "answer": "7-2", "kind": "gym",
               "source": "made", "split": "problems", "meta": "{}"}
    pl.DataFrame([problem]).write_parquet(folders["prepare"] / "problems.parquet")
    return folders["filter"] / "judged.parquet", folders["prepare"]


@pytest.mark.parametrize("where", [
    'not kept and reason == "wrong"', "kept and tokens > 100", "repetition > 0.5 and sample == 1",
    'difficulty == "medium" and sample == 2', 'problem_id == "t0" and gold == "7-2"',
    'source == "made"'])
def test_the_first_rows_that_hold_come_in_order_with_their_problem(where, tmp_path):
    path, prepared = filtered(tmp_path)
    table = widened(path, prepared, {"tokens", "repetition", "difficulty"}, "en")
    found, every = matching(table, where, 2), matching(table, where, 1000)
    assert found.equals(every[:2]) and 0 < len(every) < 400
    assert set(found["thinking"]) == {LONG}
    ids = pl.read_parquet(path, columns=["problem_id", "sample"]).rows()
    assert [row for row in ids if row in every.select("problem_id", "sample").rows()] == \
        every.select("problem_id", "sample").rows()
    assert set(table.filter(problem_id="t0").collect()["problem"]) == {"Make 5."}


def test_no_character_that_a_terminal_would_obey_is_printed():
    assert harmless("\x1b[2J\r\u202eé 數\u200b\tα\n\x9b") == \
        "\\x1b[2J\\r\\u202eé 數\\u200b\tα\n\\x9b"


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """What `limbeck show` prints of a small run whose rejected traces write in red."""
    monkeypatch.chdir(tmp_path)
    experiment = load(Experiment, [ROOT / "configs/default.yaml"], SMALL)
    make(experiment, "filter")
    path = plan_of(experiment, "filter").folder / "judged.parquet"
    hostile = pl.when("kept").then("thinking").otherwise(pl.col("thinking") + "\x1b[31m" + LONG)
    pl.read_parquet(path).with_columns(thinking=hostile).write_parquet(path)

    def show(stage, where=None, rows=3):
        capsys.readouterr()
        show_stage(experiment, stage, rows, where)
        return capsys.readouterr().out

    show.path = path
    return show


def test_rows_are_whole_readable_and_harmless(shown):
    out = shown("filter", 'not kept and reason == "wrong"')
    assert out.count("\nverdict wrong\n") == out.count("\\x1b[31m" + LONG) == 3
    assert out.index("problem ") < out.index("gold ") < out.index("thinking") < out.index("answer ")
    assert "\x1b" not in out + shown("filter")
    assert "0 shown" in shown("filter", "sample > 99")


def test_each_table_that_has_the_columns_is_searched(shown):
    out = shown("prepare", 'kind == "gym"', 1)
    assert "problems.parquet, 1 shown" in out and "heldout.parquet, 1 shown" in out
    assert "problem " in shown("generate", 'finish_reason == "stop"')


def test_what_cannot_be_shown_is_one_sentence(shown):
    for where, said in (("verdit == 'x'", "'verdit', which is no column"),
                        ("kept ==", "cannot be read"), ("open('x')", "cannot be read"),
                        ("sample > 'a'", "cannot be compared"), ("sample", "not true or false")):
        with pytest.raises(UserError, match=said):
            shown("filter", where)
    with pytest.raises(UserError, match="not made yet"):
        shown("sft", "kept")
    shown.path.write_bytes(shown.path.read_bytes()[:-500])
    for where in ("kept", None):
        with pytest.raises(UserError, match=r"filter-.* cannot be read"):
            shown("filter", where)
    shown.path.unlink()
    with pytest.raises(UserError, match="made no table"):
        shown("filter", "kept")
