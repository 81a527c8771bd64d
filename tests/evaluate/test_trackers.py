"""One key names the trackers of sft, rl and evaluate."""

import sys
from types import SimpleNamespace

import pytest

from pipeline.config.experiment import Runtime
from pipeline.config.rl import RlConfig
from pipeline.config.sft import SftConfig
from pipeline.errors import UserError
from pipeline.evaluate.trackers import check_trackers, report_scores


def test_scores_are_logged_by_name_to_each_tracker(monkeypatch):
    told = []
    for name in ("trackio", "wandb"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(
            init=lambda name=name, **given: told.append(given), log=told.append,
            finish=lambda: told.append("end")))
    report_scores(["trackio", "wandb"], "mine", {"rl": {"aime24": {
        "avg": 0.3, "gain_over_sft": (0.1, 0.0, 0.2)}}}, {"samples": 4})
    numbers = {"rl/aime24/avg": 0.3, "rl/aime24/gain_over_sft/mean": 0.1,
               "rl/aime24/gain_over_sft/low": 0.0, "rl/aime24/gain_over_sft/high": 0.2}
    assert told[1:3] == [numbers, "end"] and told[4:] == [numbers, "end"]
    assert told[0]["project"] == "limbeck" and told[0]["config"] == {"samples": 4}


def test_the_key_reaches_both_trainings_and_a_missing_package_is_named():
    runtime = Runtime(trackers=["trackio"])
    assert runtime.tracked(SftConfig()).report_to == ["trackio"]
    assert runtime.tracked(RlConfig(report_to=["wandb"])).report_to == ["wandb", "trackio"]
    assert Runtime().tracked(SftConfig()) == SftConfig()
    with pytest.raises(UserError, match="names no_such, which is not installed; pip install"):
        check_trackers(["no_such"])
