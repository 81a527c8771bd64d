"""What a machine lacks, or a library would fail on, is one sentence and no traceback."""

import pytest
import tiny_sft

from pipeline.config.rl import RlConfig
from pipeline.config.sft import SftConfig
from pipeline.errors import UserError
from pipeline.rl.schedule import check_phases, grpo_config, phase_settings
from pipeline.sft import trainer as sft
from pipeline.train import launch


@pytest.mark.parametrize(("given", "said"), [
    ({"trainer": {"report_to": ["swanlab"]}}, "rl.report_to names swanlab, which is not installed"),
    ({"trainer": {"report_to": "dvclive"}}, "pip install dvclive"),
    ({"trainer": {"report_to": ["wand"]}}, "'wand', which is no tracker"),
    ({"trainer": {"push_to_hub": True}}, "rl.trainer.push_to_hub: .* upload the finished model"),
    ({"report_to": ["trackio"]}, "rl.report_to names trackio")])
def test_rl_refuses_trackers_that_are_not_there_and_pushes(given, said, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.train.arguments.find_spec", lambda name: name == "tensorboard")
    with pytest.raises(UserError, match=said):
        grpo_config(phase_settings(RlConfig.model_validate(given))[0], tmp_path, 0)


def test_rl_reports_to_a_tracker_that_is_there_beside_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.train.arguments.find_spec", lambda name: True)
    config = RlConfig(report_to=["wandb"])
    args = grpo_config(phase_settings(config)[0], tmp_path, 0)
    assert args.report_to == ["tensorboard", "wandb"]
    assert "report_to" not in RlConfig().model_dump()       # keys stay
    both = RlConfig(report_to=["wandb"], trainer={"report_to": []})
    with pytest.raises(UserError, match="both name trackers"):
        check_phases(both)


@pytest.mark.parametrize("trainer", [{"push_to_hub": True}])
def test_sft_refuses_to_push(trainer, tmp_path):
    with pytest.raises(UserError, match=r"sft.trainer.push_to_hub"):
        sft.arguments(SftConfig(trainer=trainer), tmp_path, 0)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK"])
def test_a_schedulers_rank_without_an_address_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setenv(name, "3")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=f"{name}=3 is set.*unset RANK"):
        sft.arguments(SftConfig(), tmp_path, 0)


def test_a_missing_package_of_the_optimizer_is_one_sentence(tmp_path):
    job = tiny_sft.job(tiny_sft.build(tmp_path / "tiny", 8), tmp_path / "out", optim="lomo")
    with pytest.raises(UserError, match=r"sft: .*lomo"):
        sft.train(job)


def test_sharding_without_a_gpu_is_refused_where_it_would_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    job = tiny_sft.job(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match=r"use_fsdp shards over GPUs and this machine shows none"):
        launch.launch(job, "pipeline.sft.trainer", {"use_fsdp": True, "num_processes": 2})
    assert not list(job.out.iterdir())


def test_output_that_is_not_utf8_escapes_what_it_cannot_spell(limbeck):
    done = limbeck("config", "name=é → 😀", PYTHONIOENCODING="ascii")
    assert r"\xe9 \u2192 \U0001f600" in done.stdout
    assert limbeck("plan", "runtime.artifacts=é", PYTHONIOENCODING="ascii").stdout
