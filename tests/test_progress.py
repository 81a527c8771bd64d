"""Without a terminal a stage says once a minute how far it is."""

from types import SimpleNamespace

import pytest
import tiny_sft

from pipeline import progress as module
from pipeline.progress import progress
from pipeline.sft import trainer as sft
from pipeline.train import guard


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_line_a_minute_has_rate_and_time_left(clock, capsys):
    with progress("sft", 1000) as advance:
        advance(400)        # of an earlier run: no part of the rate
        for _ in range(13):
            clock[0] += 10
            advance(20, note="loss 0.5")
    assert capsys.readouterr().err.splitlines() == [
        "sft: 520/1,000, 2.0/s, 0:04:00 left, loss 0.5",
        "sft: 640/1,000, 2.0/s, 0:03:00 left, loss 0.5"]


def test_slow_steps_are_counted_by_the_minute_and_a_total_may_be_unknown(clock, capsys):
    with progress("rl", None) as advance:
        advance(0)
        clock[0] += 120
        advance(1)
    assert capsys.readouterr().err == "rl: 1, 0.5/min\n"


def test_a_time_limit_that_comes_before_the_last_step_is_what_is_left(clock, capsys):
    with progress("rl", 400, seconds=300) as advance:
        advance(0)
        for _ in range(2):
            clock[0] += 60
            advance(6)
    assert capsys.readouterr().err.splitlines() == [
        "rl: 6/400, 6.0/min, 0:04:00 left", "rl: 12/400, 6.0/min, 0:03:00 left"]


def test_short_work_says_nothing(clock, capsys):
    with progress("packing", 10) as advance:
        advance(0)
        clock[0] += 59
        advance(10)
    assert capsys.readouterr().err == ""


def test_training_says_its_loss(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.0)
    sft.train(tiny_sft.job(tiny_sft.build(tmp_path / "tiny", 24), tmp_path / "out"))
    said = capsys.readouterr().err
    assert "sft: 3/3, " in said and "left, loss " in said


def test_training_knows_what_is_left_of_its_time_limit(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(guard, "progress", lambda *given: (told.append(given), progress(*given))[1])
    folder = tiny_sft.build(tmp_path / "tiny", 24)
    for minutes in (2.0, None):
        sft.train(tiny_sft.job(folder, tmp_path / f"{minutes}", {"minutes": minutes}))
    assert told == [("sft", 3, 120.0), ("sft", 3, float("inf"))]
