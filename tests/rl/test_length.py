"""A prompt names a length, and a reward pays for keeping to it."""

import json

import polars as pl
import pytest
import tiny_rl

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.prompts import ROOT
from pipeline.rl.rewards import length_reward
from stages import rl


def experiment(*more):
    files = [ROOT / "configs/default.yaml", ROOT / "configs/length.yaml"]
    return load(Experiment, files, list(more))


def test_the_reward_is_the_distance_to_the_length_asked_for():
    logged = {}
    rewards = length_reward()([], ["", "", ""], completion_ids=[[1] * 10, [1] * 4, []],
                              target_tokens=[7, 4, 5], log_metric=logged.__setitem__)
    assert rewards == [-3.0, 0.0, -5.0] and logged == {"length/missed": 8 / 3}


def test_each_problem_asks_for_a_length_of_its_own_that_no_other_problem_changes(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "prompt"} for row in tiny_rl.problems(30)]
    tables.write(tables.Problem, pl.DataFrame(rows), tmp_path / "all.parquet")
    tables.write(tables.Problem, pl.DataFrame(rows[5:]), tmp_path / "some.parquet")
    given = experiment("rl.lengths=[20, 40]")
    every, some = (rl._asked(given, tmp_path / f"{name}.parquet") for name in ("all", "some"))
    targets = [row["target_tokens"] for row in every]
    assert every[5:] == some and len(set(targets)) > 8
    assert min(targets) >= 20 and max(targets) <= 40
    assert all(row["prompt"][-1]["content"].endswith(f"Think for {row['target_tokens']} tokens.")
               for row in every)


def test_a_refinement_is_rewarded_for_its_length(tmp_path, monkeypatch):
    real = tiny_rl.problems
    monkeypatch.setattr(tiny_rl, "problems", lambda count: [
        {**row, "target_tokens": 5} for row in real(count)])
    tiny_rl.refined(tiny_rl.build(tmp_path), tmp_path / "out",
                    rewards={"accuracy": 1.0, "length": 0.01}, trainer={"max_steps": 2})
    steps = [json.loads(line) for line in (tmp_path / "out/log.jsonl").open()]
    assert all(step["rewards/length/mean"] == pytest.approx(-step["length/missed"])
               for step in steps if "length/missed" in step)
    assert any(step.get("length/missed", 0) > 0 for step in steps)


@pytest.mark.parametrize(("given", "said"), [
    ("rl.lengths=null", "rl.rewards.length and rl.lengths .* go together"),
    ("rl.lengths=[9, 3]", "the shortest comes first")])
def test_a_length_without_bounds_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        rl.check(experiment(given))
