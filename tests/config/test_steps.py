"""Experiments of several steps: overlays, references between them, rounds, seeds and sweeps."""

import time

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load, sweep
from pipeline.errors import UserError
from stages.chat import _found
from stages.graph import STAGES, plans
from stages.make import goals, plan_of, show_plan, stage_targets
from stages.push import push

R1 = """
generate: {teacher: {type: solver}, samples: 2}
steps:
  base: {goal: sft, sft: {trainer: {max_steps: 3}}}
  zero: {goal: rl, student: {model: base.sft}, rl: {start: base}}
  cold: {goal: sft, student: {model: base.sft}, generate: {samples: 1}}
  reason: {goal: rl, student: {model: cold.sft}, rl: {start: base}}
  reject:
    {goal: sft, student: {model: base.sft}, generate: {teacher: {type: vllm, model: reason.rl}}}
  last: {goal: rl, student: {model: reject.sft}, rl: {start: base}}
"""


@pytest.fixture
def recipe(tmp_path):
    """Load the recipe of six steps with overrides."""
    (tmp_path / "r1.yaml").write_text(R1)

    def loaded(*overrides):
        return load(Experiment, [tmp_path / "r1.yaml"],
                    [f"runtime.artifacts={tmp_path / 'made'}", *overrides])

    return loaded


def keys(experiment):
    return {name: plan.key for name, plan in plans(experiment, *goals(experiment)).items()}


def test_one_setting_of_a_step_remakes_what_stands_on_it_and_nothing_else(recipe):
    before, after = keys(recipe()), keys(recipe("steps.cold.sft.trainer.max_steps=9"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"cold.sft", "reason.student", "reason.rl", "reject.generate",
                       "reject.filter", "reject.pack", "reject.sft", "last.student", "last.rl",
                       "evaluate", "report"}


def test_what_steps_share_is_one_artifact_and_a_name_is_in_no_key(recipe, tmp_path):
    made = keys(recipe())
    assert made["prepare"] == made["zero.prepare"] == made["last.prepare"]
    assert made["zero.student"] == made["cold.student"] == made["reject.student"]
    (tmp_path / "r1.yaml").write_text(R1.replace("cold", "warm"))
    renamed = keys(recipe())
    assert renamed["last.rl"] == made["last.rl"] and renamed["warm.sft"] == made["cold.sft"]


def test_a_step_is_planned_as_the_experiment_it_spells_out(recipe, tmp_path):
    (tmp_path / "plain.yaml").write_text(
        "generate: {teacher: {type: solver}, samples: 2}\nsft: {trainer: {max_steps: 3}}")
    plain = load(Experiment, [tmp_path / "plain.yaml"], [])
    assert plans(plain, "sft")["sft"].key == plans(recipe(), "base.sft")["base.sft"].key


def test_a_recipe_of_six_steps_is_planned_in_a_second(recipe):
    experiment = recipe()
    began = time.process_time()
    assert len(keys(experiment)) > 25
    assert time.process_time() - began < 1


@pytest.mark.parametrize(("override", "said"), [
    ("steps.base.student.model=last.rl", "base.sft stands on itself.*last.rl"),
    ("steps.zero.rl.start=zero.rl", "zero.rl stands on itself"),
    ("steps.zero.student.model=bsae.sft", "zero.student names bsae.sft: there is no step 'bsae'"),
    ("steps.zero.student.model=base.fit", "names base.fit: a step has no stage 'fit'"),
    ("evaluate.models=[sft]", "'sft' is the model of no step; name base.sft"),
    ("steps.cold.goal=filter evaluate.models=[sft]", "of no step; name base.sft, zero.rl, reason"),
    ("evaluate.models=[nobody.rl]", "there is no step 'nobody'")])
def test_a_reference_that_cannot_hold_is_one_sentence(recipe, override, said):
    with pytest.raises(UserError, match=said):
        keys(recipe(*override.split()))


@pytest.mark.parametrize(("override", "said"), [
    ("seeds=[1, 0, 1]", "seeds has 1 twice"),
    ("each={sft.trainer.max_steps: [3, 3]}", r"sft\.trainer\.max_steps has 3 twice"),
    ("steps.zero.goal=report", r"'steps\.zero\.goal'.*'filter', 'sft' or 'rl'"),
    ("steps.new={}", r"no config file has the step 'new' .*; there are base, zero, .*, and a new "
                     r"one needs steps\.new\.goal=\.\.\."),
    ("steps.zreo.rl.patience=3", "has the step 'zreo'.*; there are base, zero, "),
    ("steps.zero.rl.pacience=3", r"unknown config key 'steps\.zero\.rl\.pacience'.*'patience'"),
    ("steps.zero.evaluate.samples=3", r"steps\.zero\.evaluate: evaluate belongs to the whole"),
    ("steps.a b.goal=rl", "'a b' is no name for a step")])
def test_a_step_that_is_spelt_wrong_is_named_by_its_whole_key(recipe, override, said):
    with pytest.raises(UserError, match=said):
        recipe(override)


def test_rounds_repeat_a_step_each_from_the_one_before(recipe):
    steps = recipe("steps.reject.rounds=3").all_steps()
    teachers = [steps[name].experiment.generate.teacher.model
                for name in ("reject-1", "reject-2", "reject")]
    assert teachers == ["reason.rl", "reject-1.sft", "reject-2.sft"]
    assert {steps[name].experiment.student.model for name in ("reject-1", "reject")} == {"base.sft"}
    refined = recipe("steps.reason.rounds=2").all_steps()
    assert refined["reason-1"].experiment.student.model == "cold.sft"
    assert refined["reason"].experiment.student.model == "reason-1.rl"
    assert recipe().all_steps().keys() == recipe().steps.keys()


def test_seeds_repeat_training_alone_and_the_first_is_that_of_a_run_without(recipe):
    one, many = keys(recipe()), keys(recipe("seeds=[0, 1]"))
    stages = {name: key for name, key in one.items() if name not in ("evaluate", "report")}
    assert stages.items() <= many.items()
    assert "base.sft@seed=1" in many and "last.rl@seed=1" in many
    assert not {name for name in many if name.startswith(("base.generate@", "cold.filter@"))}


def test_a_sweep_makes_one_step_a_value_and_what_is_common_once(recipe):
    made = keys(recipe(sweep("steps.last.rl.trainer.max_steps=3,4")))
    assert [name for name in made if "@" in name] == ["last.rl@max_steps=4"]
    with pytest.raises(UserError, match=r"unknown config key 'steps\.last\.rl\.pacience'"):
        keys(recipe(sweep("steps.last.rl.pacience=3,4")))
    with pytest.raises(UserError, match="is not of the form"):
        sweep("rl.patience")


def test_the_commands_name_steps(recipe):
    experiment = recipe()
    assert stage_targets(experiment, "sft") == ["base.sft", "cold.sft", "reject.sft"]
    assert stage_targets(experiment, "rl", "zero") == ["zero.rl"]
    assert plan_of(experiment, "reject.filter").stage.name == "filter"
    with pytest.raises(UserError, match=r"several steps have a stage sft; name one of base\.sft"):
        plan_of(experiment, "sft")
    with pytest.raises(UserError, match=r"cold is a step; name one .* as cold\.sft"):
        plan_of(experiment, "cold")
    with pytest.raises(UserError, match=r"zero\.rl is not made yet .* `limbeck rl --step zero`"):
        _found(experiment, "zero.rl")
    with pytest.raises(UserError, match=r"filter is not made yet .* `limbeck filter --step zero`"):
        push(experiment, "x", ["data"], model="zero.rl", private=True, accepted=False, out=None)
    with pytest.raises(UserError, match=r"'sft' is the model of no step; name base\.sft, zero.rl"):
        STAGES["export"].check(recipe("export.model=sft"))


def test_a_plan_tells_variants_apart_however_narrow_the_terminal(recipe, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show_plan(recipe(sweep("steps.reject.sft.trainer.learning_rate=1e-5,3e-5")))
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if line.startswith("reject.sft@learning_rate=3e-05 ")]
    assert "would run" in line and "never made" in line and "sft-" in line
