"""Phases hand on when they should; the difficulty band keeps what it says."""

import itertools
from types import SimpleNamespace

import polars as pl
import pytest
import tiny_rl
import torch

from pipeline.config.evaluate import StudentSampling
from pipeline.config.rl import RlConfig
from pipeline.errors import UserError
from pipeline.rl.difficulty import (
    check_band,
    outside_band,
    student_scores,
    teacher_scores,
    within_band,
)
from pipeline.rl.schedule import check_phases, phase_settings

LONGER = {"trainer": {"max_completion_length": 16, "num_generations": 8}}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return tiny_rl.build(tmp_path_factory.mktemp("start"))


def test_a_phase_hands_its_model_on_at_its_step(start, tmp_path):
    counts = tiny_rl.refined(start, tmp_path, phases=[{"until_step": 1}, LONGER])
    told = tiny_rl.log(tmp_path)
    assert [(line["step"], line["phase"]) for line in told] == [(1, 0), (2, 1), (3, 1), (4, 1)]
    assert counts["steps"] == 4
    assert [line["completions/max_length"] for line in told] == [12, 16, 16, 16]
    assert told[-1]["num_tokens"] > told[1]["num_tokens"] > told[0]["num_tokens"]
    assert (tmp_path / "model/config.json").is_file()
    second = tiny_rl.refined(tmp_path / "phase-0/model", tmp_path / "alone", phases=[],
                             trainer={**LONGER["trainer"], "max_steps": 3, "seed": 4})
    assert second["steps"] == 3
    alone, model = (tiny_rl.weights(tmp_path / name) for name in ("alone/model", "model"))
    assert torch.equal(alone, model)


def test_a_phase_hands_on_where_completions_are_cut_off(start, tmp_path):
    phases = [{"until_cut_off": 0.5, "cut_off_steps": 2}, {"until_cut_off": 0.99,
              "cut_off_steps": 1, "until_step": 3, **LONGER}, {}]
    tiny_rl.refined(start, tmp_path, phases=phases)
    assert [line["phase"] for line in tiny_rl.log(tmp_path)] == [0, 0, 1, 2]


def test_a_phase_never_cut_off_goes_on_to_the_last_step(start, tmp_path):
    tiny_rl.refined(start, tmp_path, trainer={"max_steps": 2}, phases=[
        {"until_cut_off": 0.99, "cut_off_steps": 9}, LONGER])
    assert [line["phase"] for line in tiny_rl.log(tmp_path)] == [0, 0]
    assert (tmp_path / "model/config.json").is_file()


def test_the_time_limit_is_that_of_all_phases_together(start, tmp_path, monkeypatch):
    clock = itertools.count(step=20.0)      # seconds; read at the start of a phase and at each step
    monkeypatch.setattr("pipeline.train.guard.time", SimpleNamespace(monotonic=clock.__next__))
    counts = tiny_rl.refined(start, tmp_path, minutes=1.0, trainer={"max_steps": 9},
                             phases=[{"until_step": 2}, {"until_step": 6}, {}])
    assert [line["phase"] for line in tiny_rl.log(tmp_path)] == [0, 0, 1]
    assert counts == {"steps": 3, "train_seconds": 60.0}
    assert (tmp_path / "model/config.json").is_file() and not (tmp_path / "phase-2").exists()
    assert tiny_rl.refined(start, tmp_path, minutes=1.0, trainer={"max_steps": 9}, phases=[
        {"until_step": 2}, {"until_step": 6}, {}]) == counts


def test_a_finished_run_is_not_trained_again(start, tmp_path, monkeypatch):
    import pipeline.rl.phases

    given = {"phases": [{"until_step": 1}, {}]}
    tiny_rl.refined(start, tmp_path, **given)
    before = tiny_rl.weights(tmp_path / "model")
    monkeypatch.setattr(pipeline.rl.phases, "make_trainer", None)
    assert tiny_rl.refined(start, tmp_path, **given)["steps"] == 4
    assert torch.equal(tiny_rl.weights(tmp_path / "model"), before)


@pytest.mark.parametrize(("phases", "trainer", "said"), [
    ([{"until_step": 5}, {}], {}, "rl.trainer.max_steps"),
    ([{}, {}], {"max_steps": 9}, "never ends"),
    ([{"until_step": 5}, {"until_step": 9}], {"max_steps": 9}, "last of rl.phases"),
    ([{"until_step": 5}, {"until_step": 5}, {}], {"max_steps": 9}, "must rise"),
    ([{"until_step": 9}, {}], {"max_steps": 9}, "must rise"),
    ([{"trainer": {"max_steps": 3}}], {"max_steps": 9}, "until_step"),
])
def test_phases_that_cannot_follow_each_other_are_refused(phases, trainer, said):
    with pytest.raises(UserError, match=said):
        check_phases(RlConfig.model_validate({"trainer": trainer, "phases": phases}))


def test_a_phase_overrides_the_trainers_keys_which_override_the_defaults():
    phases = [{"until_step": 4, "trainer": {"temperature": 0.7}}, {"until_cut_off": 0.2}, {}]
    trainer = {"max_steps": 9, "beta": 0.5}
    config = RlConfig.model_validate({"trainer": trainer, "phases": phases, "keep_completions": 3})
    defaults = config.trainer_defaults()
    assert {"temperature": 1.0, "beta": 0.0, "log_completions": True}.items() <= defaults.items()
    assert phase_settings(config) == [
        {**defaults, "max_steps": 4, "beta": 0.5, "temperature": 0.7},
        *2 * [{**defaults, **trainer}]]
    plain = RlConfig(trainer={"beta": 0.5})
    assert phase_settings(plain) == [{**plain.trainer_defaults(), "beta": 0.5}]
    assert not plain.trainer_defaults()["log_completions"]
    assert not {"TRAINER_DEFAULTS", *RlConfig.TRAINER_DEFAULTS} & set(plain.model_dump())


def test_the_band_drops_what_is_known_to_lie_outside():
    scores = {"never": [0.0, 0.0], "always": [1.0, 1.0], "some": [0.0, 1.0, None],
              "unjudged": [None], "once": [1.0]}
    assert outside_band("0 < pass_rate < 1", scores) == {"never", "always", "once"}
    assert outside_band("samples < 2 or 0 < pass_rate < 1", scores) == {"never", "always"}
    rows = [{"problem_id": name} for name in [*scores, "unseen"]]
    kept = within_band(rows, "0 < pass_rate < 1", scores, 3)
    assert [row["problem_id"] for row in kept] == ["some", "unjudged", "unseen"]
    with pytest.raises(UserError, match="keeps 3 of 6 problems, but one generation needs 4"):
        within_band(rows, "0 < pass_rate < 1", scores, 4)
    for bad in ("pass_rate", "tokens > 3", "__import__('os')"):
        with pytest.raises(UserError):
            check_band(bad)


def test_scores_are_the_teachers_or_are_sampled_once(start, tmp_path):
    path = tmp_path / "judged.parquet"
    pl.DataFrame({"problem_id": ["a", "b", "a"], "score": [1.0, None, 0.0]}).write_parquet(path)
    assert teacher_scores(path) == {"a": [1.0, 0.0], "b": [None]}
    judged = []
    pool = tiny_rl.Pool(lambda text, problem: judged.append(problem.problem_id) or 1)
    for _ in range(2):
        got = student_scores(str(start), start, tiny_rl.problems(3), 2,
                             StudentSampling(max_tokens=6), pool, 0, tmp_path / "kept.parquet")
        assert got == {f"sum-{i}": [1.0, 1.0] for i in range(3)}
    assert len(judged) == 6
