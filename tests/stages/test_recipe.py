"""A recipe of several steps, made tiny: what each step stands on, and a run that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import tiny_rl

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.student.tiny import resolve
from stages.graph import plans
from stages.make import goals, make

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
prepare: {held_out: 8, limit: 40}
generate: {teacher: {type: solver}, samples: 2, sampling: {max_tokens: 256}}
filter: {keep: completion_tokens > 0, distinct: false}
student: {tiny: {layers: 1, width: 32, heads: 2}}
sft: {held_out: 0, trainer: {max_steps: 4, per_device_train_batch_size: 8, bf16: false}}
rl:
  {start: base, patience: 9, trainer: {max_steps: 1, num_generations: 4, save_steps: 1,
   per_device_train_batch_size: 8, max_completion_length: 12, bf16: false,
   learning_rate: 1.0e-3, weight_decay: 1.0}}
evaluate: {samples: 1, sampling: {max_tokens: 12}}
steps:
  base: {goal: sft}
  zero: {goal: rl, student: {model: base.sft}}
  reject:
    goal: sft
    student: {model: base.sft}
    generate:
      {teacher: {type: transformers, model: zero.rl, batch: 16}, samples: 2,
       sampling: {max_tokens: 24}}
  copy: {goal: filter, generate: {samples: 1, teacher: {type: file, traces: reject.filter}}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the recipe, all of whose steps are made, and its experiment."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "recipe.yaml").write_text(RECIPE)
    experiment = load(Experiment, [folder / "recipe.yaml"], settings(folder))
    make(experiment, goals(experiment))
    return folder, experiment


def settings(folder):
    return [f"runtime.artifacts={folder / 'made'}", f"runtime.traces={folder / 'traces'}",
            "runtime.judge_workers=1"]


def weights_and_scores(experiment):
    chain = plans(experiment, *goals(experiment))
    found = {name: tiny_rl.weights(Path(resolve(plan.folder))) for name, plan in chain.items()
             if plan.stage.name in ("sft", "rl")}
    return found, (chain["evaluate"].folder / "scores.json").read_text()


def test_a_checkpoint_that_teaches_is_known_by_its_key_and_the_second_sft_starts_from_the_base(
        made):
    _, experiment = made
    chain = plans(experiment, *goals(experiment))
    teachers = pl.read_parquet(chain["reject.generate"].folder / "traces.parquet")["model"]
    assert set(teachers) == {chain["zero.rl"].folder.name}
    start = Path(resolve(chain["reject.student"].folder))
    base = Path(resolve(chain["base.sft"].folder))
    assert (tiny_rl.weights(start) == tiny_rl.weights(base)).all()
    assert not (tiny_rl.weights(Path(resolve(chain["zero.rl"].folder)))
                == tiny_rl.weights(base)).all()
    copied = pl.read_parquet(chain["copy.generate"].folder / "traces.parquet")
    assert set(copied["model"]) == {chain["zero.rl"].folder.name}
    assert copied["problem_id"].is_unique().all() and len(copied) == 32


def test_the_whole_artifacts_moved_elsewhere_ask_the_student_nothing_again(made, tmp_path):
    folder, experiment = made
    from pipeline.config.teacher import TransformersTeacher
    from pipeline.teacher.request import Keys

    model = plans(experiment, "zero.rl")["zero.rl"].folder / "model"
    (tmp_path / "elsewhere").symlink_to(model.parents[1])
    moved = tmp_path / "elsewhere" / model.parent.name / "model"
    keys = [Keys(TransformersTeacher(model=str(one)), experiment.generate.sampling).origin
            for one in (model, moved)]
    assert keys[0] == keys[1] and str(folder) not in keys[0] and model.parent.name in keys[0]


def test_more_samples_ask_a_student_only_for_those_that_are_missing(made, capsys):
    folder, _ = made
    more = load(Experiment, [folder / "recipe.yaml"],
                [*settings(folder), "steps.reject.generate.samples=3"])
    make(more, "reject.generate")
    assert "96 traces (32 asked, 64 reused" in capsys.readouterr().err


@pytest.mark.parametrize(("override", "said"), [
    ("steps.reject.generate.sampling.top_k=5", "sampling.top_k is for endpoints"),
    ("steps.reject.generate.teacher.model=./nowhere", "no folder with a checkpoint's weights")])
def test_what_a_student_cannot_be_asked_is_refused_before_any_work(made, override, said):
    folder, _ = made
    bad = load(Experiment, [folder / "recipe.yaml"],
               [f"runtime.artifacts={folder / 'none'}", override])
    with pytest.raises(UserError, match=said):
        make(bad, "reject.generate")
    assert not (folder / "none").exists()


def test_vllm_serves_a_student_that_teaches_or_judges_under_its_key(tmp_path, monkeypatch):
    from contextlib import contextmanager

    from pipeline.config.experiment import Runtime
    from pipeline.config.teacher import JudgeRuntime, LLMJudgeConfig, VllmTeacher
    from pipeline.serving import vllm_server
    from pipeline.teacher.ask import running_judge, running_teacher

    (folder := tmp_path / "rl-0123456789ab" / "model").mkdir(parents=True)
    served = []

    @contextmanager
    def serve(model, options, *count, log):
        served.append((model, options["served_model_name"]))
        yield ["http://127.0.0.1:1/v1"] if count else "http://127.0.0.1:1/v1"

    monkeypatch.setattr(vllm_server, "vllm_servers", serve)
    monkeypatch.setattr(vllm_server, "vllm_server", serve)
    teacher, judge = VllmTeacher(model=str(folder)), LLMJudgeConfig(model=str(folder))
    with running_teacher(teacher, Runtime()) as first, \
            running_judge(judge, JudgeRuntime(), tmp_path) as second:
        assert first.base_url == second.base_url == "http://127.0.0.1:1/v1"
    assert served == [(str(folder), ["rl-0123456789ab", str(folder)])] * 2
    assert teacher.identity()["model"] == judge.identity()["model"] == "rl-0123456789ab"
    elsewhere = JudgeRuntime(base_url="http://127.0.0.1:2/v1")
    with running_judge(LLMJudgeConfig(model="gpt-4.1"), elsewhere, tmp_path) as runtime:
        assert runtime is elsewhere


def test_a_step_may_judge_another_steps_traces(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    experiment = load(Experiment, [tmp_path / "recipe.yaml"], [
        *settings(tmp_path), "steps.reject.filter.llm_judge={model: zero.rl}"])
    chain = plans(experiment, "reject.filter")
    assert chain["zero.rl"].folder.name in chain["reject.filter"].ingredients["inputs"]
    chain["reject.filter"].stage.check(chain["reject.filter"].experiment)     # needs no address


def killed(folder, seconds):
    """Run `limbeck all` in `folder` and kill it after `seconds`; its return code."""
    command = [sys.executable, "-m", "stages", "all", "-c", "recipe.yaml",
               "runtime.judge_workers=1"]
    running = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL,
                               start_new_session=True,
                               # As many threads as tiny_sft sets: sums depend on it.
                               env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    try:
        return running.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        return running.wait()


def same_after_kills(made, tmp_path, kills):
    import random

    draw = random.Random(7)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for _ in range(kills):
        killed(tmp_path, draw.uniform(2, 14))
    began = time.monotonic()
    while killed(tmp_path, 280) != 0:
        assert time.monotonic() - began < 600
    experiment = load(Experiment, [tmp_path / "recipe.yaml"], [
        f"runtime.artifacts={tmp_path / 'data/artifacts'}"])
    (weights, scores), (expected, wanted) = map(weights_and_scores, (experiment, made[1]))
    assert weights.keys() == expected.keys() and scores == wanted
    assert not [name for name in weights if not (weights[name] == expected[name]).all()]


def test_a_recipe_killed_in_a_step_goes_on_to_the_same_weights_and_scores(made, tmp_path):
    same_after_kills(made, tmp_path, 1)


@pytest.mark.slow
def test_a_recipe_killed_twenty_times_ends_with_the_same_weights_and_scores(made, tmp_path):
    same_after_kills(made, tmp_path, 20)
