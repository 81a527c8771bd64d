"""A recipe of several steps, made tiny: what each step stands on, and a run that is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
import tiny_rl

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.hub import lineage
from pipeline.student.tiny import resolve
from stages.graph import plans
from stages.make import goals, make
from stages.runs import show_runs

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
    experiment = made[1]
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


def test_each_artifact_of_another_step_is_named_by_its_key_once(made, capsys):
    experiment = made[1]
    plan = plans(experiment, "reject.sft")["reject.sft"]
    told = [*lineage.lines(lineage.read(plan.folder))]
    show_runs([plan.folder.parent], set())
    listed = capsys.readouterr().out.splitlines()
    assert re.search(r"^rl-[0-9a-f]{12} ", "\n".join(told), re.M)
    assert any("on rl-" in line for line in listed)
    assert not [line for line in told + listed if re.search(r"([0-9a-f]{12})-\1", line)]


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
    folder = made[0]
    more = load(Experiment, [folder / "recipe.yaml"],
                [*settings(folder), "steps.reject.generate.samples=3"])
    make(more, "reject.generate")
    assert "96 traces (32 asked, 64 reused" in capsys.readouterr().err


@pytest.mark.parametrize(("override", "said"), [
    ("steps.reject.generate.sampling.top_k=5", "sampling.top_k is for endpoints"),
    ("steps.reject.generate.teacher.model=./nowhere", "no folder with a checkpoint's weights")])
def test_what_a_student_cannot_be_asked_is_refused_before_any_work(made, override, said):
    folder = made[0]
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
    def serve(model, options, *count, log, **watched):
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


RUBRIC = "judges.clear={type: rubric, model: zero.rl, criteria: {It is clear.: 1}}"
REWARD = "judges.clear={type: reward_model, model: %s}"
KEEP = "steps.reject.filter.keep=clear > 0.5"


def with_judge(tmp_path, *overrides):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return load(Experiment, [tmp_path / "recipe.yaml"], [*settings(tmp_path), *overrides])


@pytest.mark.parametrize(("judge", "named"), [(RUBRIC, "zero.rl"),
                                              (REWARD % "zero.student", "zero.student")])
@pytest.mark.parametrize(("stage", "use"), [
    ("reject.filter", KEEP), ("evaluate", "evaluate.judges=[clear]")])
def test_a_judge_may_be_another_steps_model_whose_key_enters_the_key(
        tmp_path, judge, named, stage, use):
    chain = plans(with_judge(tmp_path, judge, use), stage)
    artifact = chain[named].folder.name
    ingredients = chain[stage].ingredients
    assert artifact.partition("-")[2] in ingredients["inputs"].values()
    assert ingredients["config"]["judges"]["clear"]["model"] == artifact
    chain[stage].stage.check(chain[stage].experiment)       # needs no address
    longer = plans(with_judge(tmp_path, judge, use, "steps.base.sft.trainer.max_steps=5"), stage)
    assert longer[stage].key != chain[stage].key


@pytest.mark.parametrize(("overrides", "stage", "said"), [
    ([REWARD % "zero.rl", KEEP], "reject.filter", "gives no score; name a sequence classifier"),
    ([RUBRIC, "steps.late={goal: rl, student: {model: reject.sft}, rl: {rewards: {clear: 1}}}"],
     "late.rl", "vLLM would serve .* on the GPUs that rl trains on"),
    ([RUBRIC.replace("zero.rl", "nought.rl"), KEEP], "reject.filter", "no step 'nought'"),
    ([RUBRIC.replace("zero.rl", "reject.sft"), KEEP], "reject.filter", "stands on itself")])
def test_a_judge_that_cannot_be_had_of_a_step_is_refused(tmp_path, overrides, stage, said):
    with pytest.raises(UserError, match=said):
        plan = plans(with_judge(tmp_path, *overrides), stage)[stage]
        plan.stage.check(plan.experiment)


def begun(folder):
    """Run `limbeck all` in `folder`; as many threads as tiny_sft sets: sums depend on it."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages", "all", "-c", "recipe.yaml", "runtime.judge_workers=1"],
        cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def begun_since(folder, since):
    """The artifacts under way whose making began after `since`, the newest last."""
    begun_at = {}
    for path in (folder / "data/artifacts").glob("*.partial/under_way.json"):
        with suppress(FileNotFoundError):       # that stage has just ended
            begun_at[path.parent.name] = path.stat().st_mtime
    return sorted((name for name, when in begun_at.items() if when > since), key=begun_at.get)


def killed(folder, stages, seconds):
    """Run it, kill it `seconds` after its stage number `stages` began; in which, None if in none.
    """
    since, running, until, seen = time.time(), begun(folder), None, set()
    while running.poll() is None:
        seen |= set(working := begun_since(folder, since))
        if until is None and len(seen) >= stages:
            until = time.monotonic() + seconds
        if until and time.monotonic() > until:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            return working[-1].partition("-")[0] if working else "between two stages"
        time.sleep(0.01)
    assert running.returncode == 0
    return None


def whole(folder, expected):
    """Let it end, and compare all weights and scores; nothing is stored twice."""
    assert begun(folder).wait(600) == 0
    experiment = load(Experiment, [folder / "recipe.yaml"], [
        f"runtime.artifacts={folder / 'data/artifacts'}"])
    (weights, scores), (wanted, expected_scores) = map(weights_and_scores, (experiment, expected))
    assert weights.keys() == wanted.keys() and scores == expected_scores
    assert not [name for name in weights if not (weights[name] == wanted[name]).all()]
    stored = pl.read_parquet(folder / "data/traces/*.parquet", columns=["key", "sample"])
    assert len(stored) and not stored.is_duplicated().any()


def same_after_kills(made, tmp_path, kills):
    """Kill runs until `kills` have hit, in a new folder whenever one was whole; where they hit."""
    import random

    draw, hits, number = random.Random(7), Counter(), 0
    while hits.total() < kills:
        (folder := tmp_path / str(number)).mkdir(exist_ok=True)
        (folder / "recipe.yaml").write_text(RECIPE)
        if hit := killed(folder, draw.randint(1, 4), draw.uniform(0, 3)):
            hits[hit] += 1
        else:
            whole(folder, made[1])
            number += 1
    whole(folder, made[1])
    return hits


def test_a_recipe_killed_in_a_step_goes_on_to_the_same_weights_and_scores(made, tmp_path):
    same_after_kills(made, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_recipe_killed_twenty_times_ends_with_the_same_weights_and_scores(made, tmp_path):
    hits = same_after_kills(made, tmp_path, 20)
    print(dict(hits))
    assert {"generate", "sft", "rl"} <= hits.keys()
