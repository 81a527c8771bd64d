"""Steps that go wrong stop the run; a killed run ends at the weights of an uninterrupted one."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_sft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import modeling_utils

from pipeline.config.sft import SftJob
from pipeline.errors import UserError
from pipeline.serving import disk
from pipeline.sft.trainer import make_trainer, train
from pipeline.train import checkpoints, launch, step_check
from pipeline.train.fit import fit

REPOSITORY = Path(__file__).parents[2]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_sft.build(tmp_path_factory.mktemp("tiny"))


def run_with(tiny, out, sabotage, sft=None, **trainer):
    """Train after `sabotage(trainer)`; the UserError that must come, and the folder."""
    made, guard, tokenizer = make_trainer(tiny_sft.job(tiny, out, sft, **trainer))
    sabotage(made)
    with pytest.raises(UserError) as error:
        fit(made, guard, out, tokenizer)
    return str(error.value)


def at_step(trainer, step, change):
    """`change(output)` of the model's last norm at the given 1-based step of training."""
    def hook(module, given, output):
        return change(output) if trainer.state.global_step + 1 == step else output

    trainer.model.model.norm.register_forward_hook(hook)


def saved(out):
    return [path for path in checkpoints.steps(out / "checkpoints")
            if checkpoints.is_complete(path)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_at_that_step_and_names_its_rows(tiny, tmp_path,
                                                                                bad):
    seen = []

    def sabotage(trainer):
        at_step(trainer, 4, lambda output: output * bad)
        step = trainer.training_step
        trainer.training_step = lambda model, inputs, n=None: (seen.append(inputs["rows"]),
                                                               step(model, inputs, n))[1]

    message = run_with(tiny, tmp_path, sabotage, save_steps=1, logging_steps=100)
    assert "step 4" in message and "not finite" in message
    assert len(seen) == 4 and all(f"sum-{index}#0" in message for index in seen[-1])
    assert json.loads((tmp_path / "bad_batch.json").read_text())["step"] == 4
    assert [path.name for path in saved(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    assert not (tmp_path / "model").exists()
    for path in saved(tmp_path):
        weights = load_file(path / "model.safetensors")
        assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_one_bad_micro_batch_of_a_step_is_named_alone(tiny, tmp_path):
    calls = []

    def sabotage(trainer):
        def hook(module, given, output):
            calls.append(1)
            return output * float("nan") if len(calls) == 2 else output

        trainer.model.model.norm.register_forward_hook(hook)

    message = run_with(tiny, tmp_path, sabotage, per_device_train_batch_size=2,
                       gradient_accumulation_steps=4)
    assert "step 1" in message and message.count("#0") == 2


def test_a_bad_loss_of_another_process_is_named_and_not_ones_own_rows(tiny, tmp_path, monkeypatch):
    seen = []

    def of_two(mine):
        seen.append(mine)
        return mine if len(seen) < 3 else [*mine, ([40, 41], float("nan"))]

    monkeypatch.setattr(step_check, "gather_object", of_two)
    message = run_with(tiny, tmp_path, lambda trainer: None)
    assert "not finite at step 3, on sum-40#0, sum-41#0;" in message and len(seen[0][0][0]) == 8


@pytest.mark.slow
def test_of_two_processes_both_name_the_rows_of_the_one_whose_loss_is_bad(tiny, tmp_path, capfd,
                                                                          monkeypatch):
    (tmp_path / "poisoned.py").write_text(POISONED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = tiny_sft.job(tiny, tmp_path / "out", train_sampling_strategy="sequential",
                       per_device_train_batch_size=4)
    with pytest.raises(UserError, match=r"step 2, on sum-12#0, sum-13#0, sum-14#0, sum-15#0;"):
        launch.launch(job, "poisoned", tiny_sft.TWO)
    named = json.loads((tmp_path / "out/bad_batch.json").read_text())["rows"]
    assert named == [f"sum-{i}#0" for i in range(12, 16)]
    assert "norm is" not in capfd.readouterr().err


POISONED = """
from pipeline.sft import trainer as sft
from pipeline.train.launch import worker_main
from pipeline.config.sft import SftJob

real = sft.StudentTrainer.compute_loss


def poisoned(self, model, inputs, *given, **more):
    bad = 13 in inputs["rows"]
    loss = real(self, model, inputs, *given, **more)
    return loss * float("nan") if bad else loss


sft.StudentTrainer.compute_loss = poisoned
worker_main(SftJob, sft.train)
"""


def test_under_deepspeed_no_one_says_that_the_weights_are_as_before(tiny, tmp_path):
    def sabotage(trainer):
        at_step(trainer, 1, lambda output: output * float("nan"))
        stop = trainer._stop

        def under_deepspeed(*given):        # its engine is not needed to word the sentence
            trainer.is_deepspeed_enabled = True
            stop(*given)

        trainer._stop = under_deepspeed

    message = run_with(tiny, tmp_path, sabotage)
    assert "before that step changed" not in message and "that step not saved" in message


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(tiny, tmp_path):
    def sabotage(trainer):
        def poison(output):
            output.register_hook(lambda grad: grad * float("nan"))
            return output

        at_step(trainer, 2, poison)

    message = run_with(tiny, tmp_path, sabotage, max_grad_norm=0.0, logging_steps=100)
    assert "gradient" in message and "step 2" in message and "#0" in message


def test_a_loss_of_exactly_zero_stops_the_run_at_the_first_step(tiny, tmp_path):
    def sabotage(trainer):
        compute = trainer.compute_loss
        trainer.compute_loss = lambda *a, **k: compute(*a, **k) * 0.0

    message = run_with(tiny, tmp_path, sabotage, logging_steps=100)
    assert "exactly 0" in message and "step 1" in message


def test_a_held_out_loss_that_is_not_finite_stops_the_run(tmp_path):
    def sabotage(trainer):
        compute = trainer.compute_loss
        trainer.compute_loss = lambda model, *a, **k: compute(model, *a, **k) * (
            1.0 if model.training else float("nan"))

    many = tiny_sft.build(tmp_path / "many", rows=56)
    message = run_with(many, tmp_path / "out", sabotage, {"held_out": 1}, eval_steps=2)
    assert "eval_loss is nan at step 2" in message


def test_weights_that_became_infinite_are_not_saved(tiny, tmp_path):
    def sabotage(trainer):
        def hook(optimizer, args, kwargs):
            if trainer.state.global_step == 2:
                trainer.model.model.norm.weight.data[0] = float("inf")

        trainer.create_optimizer().register_step_post_hook(hook)

    message = run_with(tiny, tmp_path, sabotage, save_steps=1)
    assert "norm.weight" in message and "step 3" in message
    assert [path.name for path in saved(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    assert not (tmp_path / "checkpoints" / "checkpoint-3").exists()


def test_a_student_with_nan_weights_is_refused_before_the_first_step(tiny, tmp_path):
    def sabotage(trainer):
        trainer.model.model.norm.weight.data[0] = float("nan")

    assert "before the first step" in run_with(tiny, tmp_path, sabotage)


def test_a_checkpoint_that_is_damaged_or_asks_for_more_is_refused_in_a_sentence(tiny, tmp_path):
    from types import SimpleNamespace

    from pipeline.train.fit import load_student

    model = shutil.copytree(tiny / "model", tmp_path / "model")
    with pytest.raises(UserError, match=r"cannot load .* with these settings"):
        load_student(model, SimpleNamespace(model_init_kwargs={
            "attn_implementation": "flash_attention_2"}))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="are damaged"):
        load_student(model, SimpleNamespace(model_init_kwargs=None))
    weights.unlink()
    with pytest.raises(UserError, match="no file named model"):
        load_student(model, SimpleNamespace(model_init_kwargs=None))


@pytest.mark.parametrize(("where", "name", "error"), [
    (modeling_utils, "safe_save_file", SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)")),
    (torch, "save", RuntimeError(
        "[enforce fail at inline_container.cc:672] . unexpected pos 202048 vs 201940")),
    (checkpoints, "mark_complete", OSError(errno.ENOSPC, "No space left on device"))],
    ids=lambda case: case if isinstance(case, str) else "")
def test_a_full_disk_is_one_sentence_no_torn_checkpoint_stays_and_the_next_run_goes_on(
        where, name, error, tiny, tmp_path, monkeypatch, capfd):
    real = getattr(where, name)

    def full(*given, **more):
        if any("checkpoint-4" in str(one) for one in (*given, *more.values())):
            raise error
        return real(*given, **more)

    path = tmp_path / "job.json"
    path.write_text(tiny_sft.job(tiny, tmp_path, save_steps=2).model_dump_json())
    monkeypatch.setattr(sys, "argv", ["sft", str(path)])
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(where, name, full)
        launch.worker_main(SftJob, train)
    said = (tmp_path / "failure.txt").read_text()
    assert str(tmp_path) in said and str(error) in said and "run the same command again" in said
    assert capfd.readouterr().err.splitlines()[-1] == said
    assert [path.name for path in checkpoints.steps(tmp_path / "checkpoints")] == ["checkpoint-2"]
    launch.worker_main(SftJob, train)
    assert "resuming from checkpoint-2" in capfd.readouterr().err
    assert json.loads((tmp_path / "counts.json").read_text())["steps"] == 8


def test_a_checkpoint_with_a_file_missing_or_changed_is_passed_over(tiny, tmp_path):
    train(tiny_sft.job(tiny, tmp_path, save_steps=2, save_total_limit=3))
    older, newest = saved(tmp_path)[-2:]
    weights = newest / "model.safetensors"
    whole = weights.read_bytes()
    for spoil in (lambda: weights.unlink(), lambda: weights.write_bytes(whole[:-1]),
                  lambda: weights.write_bytes(whole[:50] + b"\0" + whole[51:]),
                  lambda: (newest / "trainer_state.json").unlink(),
                  lambda: (newest / "whole.json").unlink()):
        copy = {p: p.read_bytes() for p in newest.iterdir()}
        spoil()
        assert checkpoints.last_complete(tmp_path / "checkpoints") == older
        assert not newest.exists()
        newest.mkdir()
        for path, content in copy.items():
            path.write_bytes(content)
        assert checkpoints.last_complete(tmp_path / "checkpoints") == newest


def test_the_older_checkpoint_goes_only_when_the_newer_is_whole(tiny, tmp_path, monkeypatch):
    seen = []
    mark = checkpoints.mark_complete

    def watch(path):
        seen.append(len(saved(tmp_path)))
        mark(path)

    monkeypatch.setattr(checkpoints, "mark_complete", watch)
    train(tiny_sft.job(tiny, tmp_path, save_steps=2, save_total_limit=1))
    assert seen == [0, 1, 1, 1] and len(saved(tmp_path)) == 1


def weights_after_kills(tiny, out, kills, seed, **trainer):
    """Kill the run -9 `kills` times, every other time while a checkpoint is written; finish it."""
    job = tiny_sft.job(tiny, out, save_steps=1, num_train_epochs=3, **trainer)
    path = out / "job.json"
    path.write_text(job.model_dump_json())
    draw, killed_saving, whole_before = random.Random(seed), 0, 0
    line = [sys.executable, "-m", "pipeline.sft.trainer", str(path)]
    for kill in range(kills):
        process = subprocess.Popen(line, cwd=REPOSITORY, env=ALONE, stderr=subprocess.DEVNULL)
        at = whole_before + draw.randint(1, max(1, 22 // kills))
        while process.poll() is None and not _due(out, at, saving=kill % 2 == 0):
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        newest = checkpoints.steps(out / "checkpoints")[-1]
        killed_saving += not checkpoints.is_complete(newest)
        last = saved(out)[-1] if saved(out) else None
        whole_before = int(last.name[11:]) if last else 0
        assert whole_before >= at - 1
    subprocess.run(line, cwd=REPOSITORY, env=ALONE, check=True, stderr=subprocess.DEVNULL)
    return load_file(out / "model" / "model.safetensors"), killed_saving


def _due(out, step, saving):
    """Whether checkpoint `step` is being written (saving), or finished."""
    folder = out / "checkpoints" / f"checkpoint-{step}"
    return folder.exists() and (saving or (folder / disk.WHOLE_FILES).exists())


def assert_killed_equals_uninterrupted(tiny, tmp_path, kills, **trainer):
    train(tiny_sft.job(tiny, tmp_path / "calm", num_train_epochs=3, save_steps=1, **trainer))
    calm = load_file(tmp_path / "calm" / "model" / "model.safetensors")
    killed, while_saving = weights_after_kills(tiny, tmp_path / "killed", kills, 1, **trainer)
    assert while_saving >= 1
    assert calm.keys() == killed.keys()
    assert all(torch.equal(calm[name], killed[name]) for name in calm)
    steps = [json.loads(line)["step"] for line in
             (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 25)) and steps == sorted(steps)


def test_killed_three_times_a_run_ends_at_the_weights_of_an_uninterrupted_one(tiny, tmp_path):
    assert_killed_equals_uninterrupted(tiny, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twenty_times_a_run_ends_at_the_weights_of_an_uninterrupted_one(tiny, tmp_path):
    assert_killed_equals_uninterrupted(tiny, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_runs_in_random_order_end_at_the_same_weights(tiny, tmp_path):
    assert_killed_equals_uninterrupted(tiny, tmp_path, 3, train_sampling_strategy="random",
                                       per_device_train_batch_size=4,
                                       gradient_accumulation_steps=2)
