"""Alarms: each fires on the log of its trouble, none on a healthy one, once a run."""

import json
import random
from types import SimpleNamespace

import pytest

from pipeline.config.rl import Alarms
from pipeline.rl.alarms import AlarmLogger, crossings
from pipeline.train.log import read_lines

HEALTHY = [{"step": s, "kl": 0.002 * s, "entropy": 0.4 - 0.003 * s, "reward": 0.3 + 0.008 * s,
            "clip_ratio/region_mean": 0.002 * s,
            "reward_std": 0.45, "rewards/own/mean": 0.1 + 0.001 * s, "rewards/own/std": 0.2,
            "completions/clipped_ratio": 0.1 + 0.2 * (s % 7 == 0),
            "frac_reward_zero_std": 0.2 + 0.8 * (s % 9 == 0),
            "completions/mean_length": 300 + 5 * s,
            **({"heldout/accuracy": 0.3 + 0.006 * s} if s % 10 == 0 else {})}
           for s in range(1, 51)]
TROUBLE = {
    "kl": lambda s: {"kl": 0.05 * s},
    "entropy": lambda s: {"entropy": 0.4 / s ** 2},
    "clip_ratio": lambda s: {"clip_ratio/region_mean": 0.01 * s},
    "cut_off": lambda s: {"completions/clipped_ratio": 0.8},
    "zero_variance": lambda s: {"frac_reward_zero_std": 0.95},
    "reward_std": lambda s: {"reward_std": 0.001},
    "undecided": lambda s: {"judge/undecided": 0.2},
    "restated": lambda s: {"judge/restated": 0.2},
    "many_boxes": lambda s: {"judge/many_boxes": 0.5},
    "longer": lambda s: {"completions/mean_length": 300 + s ** 2},
    "shorter": lambda s: {"completions/mean_length": 300 / s},
    "falling": lambda s: {"reward": 3 / (10 + s)},
    "constant": lambda s: {"rewards/own/mean": -0.5, "rewards/own/std": 0.0},
    "hacking": lambda s: {"heldout/accuracy": 0.3} if s % 10 == 0 else {},
}


def test_a_healthy_log_rings_nothing_at_any_step():
    assert all(crossings(HEALTHY[:end], Alarms()) == {} for end in range(len(HEALTHY) + 1))


@pytest.mark.parametrize("kind", TROUBLE)
def test_each_trouble_rings_its_alarm_alone_and_can_be_turned_off(kind):
    log = [{**row, **TROUBLE[kind](row["step"])} for row in HEALTHY]
    found = crossings(log, Alarms())
    assert list(found) == [kind]
    assert not set("\n{}") & set(found[kind]) and not found[kind].endswith(".")
    assert crossings(log, Alarms.model_validate({kind: None})) == {}


def test_without_held_out_problems_accuracy_in_training_tells_a_gamed_reward():
    gamed = [{"step": s, "reward": min(0.05 + 0.02 * s, 0.35), "rewards/accuracy/mean": 0.04}
             for s in range(1, 31)]
    assert list(crossings(gamed, Alarms())) == ["hacking"]
    assert "training accuracy went from 4.0% to 4.0%" in crossings(gamed, Alarms())["hacking"]
    earned = [{**row, "rewards/accuracy/mean": row["reward"] / 2} for row in gamed]
    assert crossings(earned, Alarms()) == {}


def remembering(lead, held_out=0.5):
    """A log of two epochs: problems asked again gain `lead`, held-out ones come to `held_out`."""
    return [{"step": s, "epoch": s / 40, "reward": 0.6,
             **({"asked_again/first": 0.6, "asked_again/accuracy": 0.6 + lead} if s > 40 else {}),
             **({"heldout/accuracy": held_out if s > 40 else 0.5} if s % 10 == 0 else {})}
            for s in range(1, 81)]


def test_gains_on_problems_asked_again_alone_are_told_as_memory():
    found = crossings(remembering(0.15), Alarms(epochs=2))
    assert list(found) == ["memory"]
    assert "75.0% are right of problems asked before, 60.0% when they were new, while held-out " \
        "accuracy went from 50.0% to 50.0%" in found["memory"]
    assert crossings(remembering(0.05), Alarms(epochs=2)) == {}
    assert crossings(remembering(0.15, held_out=0.6), Alarms(epochs=2)) == {}
    assert crossings(remembering(0.15), Alarms(epochs=2, memory=None)) == {}
    away = [{k: v for k, v in row.items() if k[:4] != "held"} for row in remembering(0.15)]
    assert crossings(away, Alarms(epochs=2)) == {}


def test_the_step_after_every_problem_was_asked_is_told():
    rows = remembering(0.0)
    assert crossings(rows[:40], Alarms()) == {}
    assert list(crossings(rows[:41], Alarms())) == ["epochs"]
    assert crossings(rows, Alarms(epochs=None)) == {}


def test_a_reward_that_wavers_rings_nothing_and_neither_do_other_problems():
    for seed in range(20):
        draw = random.Random(seed)
        wavering = [{"step": s, "reward": draw.gauss(0.3, 0.1)} for s in range(200)]
        assert crossings(wavering, Alarms()) == {}
    harder = [{"reward": 3 / (10 + s), "difficulty/replaced": 0.1} for s in range(50)]
    assert crossings(harder, Alarms()) == {}


def test_every_threshold_has_its_trouble():
    assert set(Alarms.model_fields) == {"window", "memory", "epochs", *TROUBLE}


def test_values_that_are_missing_or_not_finite_are_passed_over():
    log = [{"step": s, "kl": float("nan"), "entropy": float("inf")} for s in range(30)]
    assert crossings(log, Alarms()) == {} and crossings([], Alarms()) == {}


def ring(folder, rows, begin=0, done=0):
    """A run's steps through the bell, from step `done` on."""
    bell = AlarmLogger(Alarms(window=2), folder, folder, begin)
    state = SimpleNamespace(global_step=done, is_world_process_zero=True)
    bell.on_train_begin(None, state, None)
    for row in rows:
        state.global_step += 1
        bell.on_log(None, state, None, logs=row)


def test_an_alarm_rings_once_a_run_on_stderr_and_in_its_file(tmp_path, capsys):
    ring(tmp_path, [{"kl": 9.0, "entropy": None}] * 5, begin=10)
    ring(tmp_path, [{"kl": 9.0}] * 5, begin=15)
    rung = read_lines(tmp_path / "alarms.jsonl")
    assert [(row["step"], row["kind"]) for row in rung] == [(12, "kl")]
    assert capsys.readouterr().err == f"rl: step 12: {rung[0]['alarm']}\n"


def test_a_resumed_run_forgets_the_alarms_past_its_checkpoint(tmp_path):
    ring(tmp_path, [{"kl": 9.0}] * 5)
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "kl": 0.0}) + "\n")
    ring(tmp_path, [{"kl": 0.0}] * 3, done=1)
    assert read_lines(tmp_path / "alarms.jsonl") == []
