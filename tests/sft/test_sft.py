"""Token rows become batches; packed, adapted and launched runs train what they should."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import tiny_sft
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.experiment import Runtime
from pipeline.config.sft import SftConfig
from pipeline.errors import UserError
from pipeline.sft import settings
from pipeline.sft import trainer as sft
from pipeline.student.token_rows import (
    IGNORED,
    Collator,
    EvenSampler,
    held_out_problems,
    read_rows,
)
from pipeline.train import attention, checkpoints, launch
from stages import sft as stage

MODULE = "pipeline.sft.trainer"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_sft.build(tmp_path_factory.mktemp("tiny"))


def packed(tiny, folder, per_block=4):
    """The same rows as blocks of `per_block` samples, under `folder`."""
    rows = pl.read_parquet(tiny / "rows.parquet").with_row_index()
    blocks = rows.group_by(pl.col("index") // per_block, maintain_order=True).agg(
        "problem_id", "sample", pl.col("input_ids").explode(), pl.col("completion_mask").explode(),
        seq_lengths=pl.col("input_ids").list.len().cast(pl.Int64)).drop("index")
    for name in ("model", "tokenizer"):
        (folder / name).symlink_to(tiny / name)
    blocks.write_parquet(folder / "rows.parquet")
    return folder


def loss_and_gradient(job, indices):
    trainer, _, _ = sft.make_trainer(job)
    batch = trainer.data_collator([{"row": index} for index in indices])
    tokens = (batch["labels"][:, 1:] != IGNORED).sum()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=tokens)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in trainer.model.named_parameters()}


def test_metrics_are_read_at_the_log_and_hold_no_graph(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)         # a log outside train() begins TensorBoard's folder here
    trainer, _, _ = sft.make_trainer(tiny_sft.job(tiny, tmp_path, {"head": "limbeck"}))
    batch = trainer.data_collator([{"row": index} for index in range(4)])
    trainer.model.train()
    tokens, labels = int(batch["attention_mask"].sum()), batch["labels"][:, 1:]
    loss = trainer.compute_loss(trainer.model, batch,
                                num_items_in_batch=(labels != IGNORED).sum())
    [metric] = trainer._metrics["train"]["cross_entropy"]
    assert loss.requires_grad and not metric.requires_grad      # else a batch's gradients stay
    trainer.log({"loss": 1.0})
    line = trainer.state.log_history[-1]
    assert line["cross_entropy"] == pytest.approx(loss.item(), rel=1e-5)
    assert line["num_tokens"] == tokens and type(line["cross_entropy"]) is float


def test_both_chunked_heads_give_the_same_loss_and_gradient(tiny, tmp_path):
    found = [loss_and_gradient(tiny_sft.job(tiny, tmp_path, {"head": head}), range(8))
             for head in ("trl", "limbeck")]
    assert abs(found[0][0] - found[1][0]) < 1e-5
    assert all((found[0][1][n] - g).abs().max() < 1e-5 for n, g in found[1][1].items())


@pytest.mark.parametrize("kind", ["sdpa", "eager", "limbeck_varlen"])
def test_loss_and_gradient_of_packed_rows_are_those_of_the_rows_alone(tiny, tmp_path, kind):
    kwargs = {"model_init_kwargs": {"attn_implementation": kind}}
    alone = loss_and_gradient(tiny_sft.job(tiny, tmp_path / "a", padding_free=False, **kwargs),
                              range(8))
    blocks = packed(tiny, tmp_path)
    together = loss_and_gradient(tiny_sft.job(blocks, tmp_path / "b", **kwargs), range(2))
    flat = loss_and_gradient(tiny_sft.job(tiny, tmp_path / "c", padding_free=True, **kwargs),
                             range(8))
    for loss, gradient in (together, flat):
        assert abs(loss - alone[0]) < 1e-5
        assert all((gradient[n] - g).abs().max() < 1e-5 for n, g in alone[1].items())


@pytest.mark.parametrize(("kind", "given", "free"), [
    ("limbeck_varlen", {}, True), ("limbeck_varlen", {"padding_free": False}, False),
    ("sdpa", {}, False), ("sdpa", {"padding_free": True}, True)])
def test_attention_made_for_samples_end_to_end_gets_them_unless_told(tmp_path, kind, given, free):
    trainer = {"model_init_kwargs": {"attn_implementation": kind}, **given}
    assert sft.arguments(SftConfig(trainer=trainer), tmp_path, 0).padding_free is free


def test_a_sample_does_not_see_its_neighbour_in_a_block(tiny, tmp_path):
    rows = read_rows(packed(tiny, tmp_path) / "rows.parquet")
    batch = Collator(rows, 0, padding_free=True)([{"row": 0}])
    model = AutoModelForCausalLM.from_pretrained(tiny / "model").eval()
    bounds = np.cumsum([0, *rows.lengths[0]])
    fed = {"position_ids": batch["position_ids"], "use_cache": False}
    with torch.no_grad():
        before = model(batch["input_ids"], **fed).logits
        other = batch["input_ids"].clone()
        other[0, :bounds[1]] = (other[0, :bounds[1]] + 7) % model.config.vocab_size
        after = model(other, **fed).logits
    assert torch.equal(before[:, bounds[1]:], after[:, bounds[1]:])
    assert not torch.equal(before[:, :bounds[1]], after[:, :bounds[1]])


def test_the_variable_length_kernel_gets_samples_heads_and_bounds(monkeypatch):
    asked = {}

    def kernel(q, k, v, bounds, other, longest, also, dropout, causal, debug, scale):
        asked.update(shapes=[tuple(x.shape) for x in (q, k, v)], bounds=bounds.tolist(),
                     longest=longest, causal=causal, scale=scale)
        return (q,)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", kernel)
    query, key = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8)

    class OnGpu(torch.Tensor):
        is_cuda, dtype = True, torch.bfloat16

    out, _ = attention.varlen_attention(torch.nn.Module(), query.as_subclass(OnGpu), key, key, None,
                                        torch.tensor([0, 4, 9], dtype=torch.int32), 5, 0.25)
    assert asked == {"shapes": [(9, 4, 8), (9, 2, 8), (9, 2, 8)], "bounds": [0, 4, 9],
                     "longest": 5, "causal": True, "scale": 0.25}
    assert out.shape == (1, 9, 4, 8)


@pytest.mark.parametrize("mixed", [True, False])
def test_the_loss_takes_its_products_in_half_precision_where_the_model_does(
        tiny, tmp_path, monkeypatch, mixed):
    import pipeline.sft.divergence as divergence

    seen = []
    real = divergence._project
    monkeypatch.setattr(divergence, "_project", lambda states, matrix, *given, **more:
                        seen.append((states.dtype, matrix.dtype))
                        or real(states, matrix, *given, **more))
    loss_and_gradient(tiny_sft.job(tiny, tmp_path, {"head": "limbeck"}, bf16=mixed), range(8))
    assert set(seen) == {(torch.bfloat16,) * 2 if mixed else (torch.float32,) * 2}


@pytest.mark.parametrize("given", [{"sliding_window": 4}, {"softcap": 30.0}])
def test_attention_that_the_kernel_does_not_know_is_refused(given):
    with pytest.raises(UserError, match=f"{next(iter(given))}.*sdpa"):
        attention.varlen_attention(torch.nn.Module(), *3 * [torch.randn(1, 2, 9, 8)], None, **given)


def test_under_autocast_the_kernel_runs_in_half_precision_though_queries_come_in_float32():
    query = torch.randn(1, 4, 9, 8)
    assert attention.kernel_dtype(query) is None
    assert attention.kernel_dtype(query.half()) == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.kernel_dtype(query) == torch.bfloat16


def test_every_token_of_the_mask_is_trained_and_no_other(tiny, tmp_path):
    rows = pl.read_parquet(tiny / "rows.parquet")
    for source, flat in ((tiny, False), (tiny, True), (packed(tiny, tmp_path), True)):
        found = read_rows(source / "rows.parquet")
        batch = Collator(found, 0, flat)([{"row": i} for i in range(len(found))])
        assert int((batch["labels"] != IGNORED).sum()) == rows["completion_mask"].list.sum().sum()
        trained = batch["labels"] != IGNORED
        assert torch.equal(batch["labels"][trained], batch["input_ids"][trained])


def test_positions_that_restart_mark_samples_as_lengths_do(tiny, tmp_path):
    blocks = pl.read_parquet(packed(tiny, tmp_path) / "rows.parquet")
    positions = [[p for n in lengths for p in range(n)] for lengths in blocks["seq_lengths"]]
    other = tmp_path / "positions.parquet"
    blocks.drop("seq_lengths").with_columns(position_ids=pl.Series(positions)).write_parquet(other)
    assert read_rows(other).lengths == read_rows(tmp_path / "rows.parquet").lengths


@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>"])
def test_the_end_of_turn_is_trained_whatever_the_padding_token_is(tiny, pad):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    rows = read_rows(tiny / "rows.parquet")
    collator = Collator(rows, tokenizer.convert_tokens_to_ids(pad), padding_free=False)
    batch = collator([{"row": i} for i in range(16)])
    ends = (batch["labels"] == tokenizer.eos_token_id).sum(1)
    assert ends.tolist() == [1] * 16


def test_a_row_whose_mask_is_all_zero_is_refused_by_name(tiny, tmp_path):
    rows = pl.read_parquet(tiny / "rows.parquet").with_row_index()
    mask = pl.when(pl.col("index") == 5).then(pl.col("completion_mask").list.eval(
        pl.element() * 0)).otherwise(pl.col("completion_mask"))
    rows.with_columns(completion_mask=mask).drop("index").write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"sum-5#0 has no token to train on"):
        read_rows(tmp_path / "rows.parquet")


@pytest.fixture(scope="module")
def spread(tiny, tmp_path_factory):
    """The rows of `tiny` eight times, of 160 problems whose rows stand far apart."""
    folder = tmp_path_factory.mktemp("spread")
    rows = pl.concat([pl.read_parquet(tiny / "rows.parquet")] * 8).with_row_index()
    rows.select(pl.format("p{}", pl.col("index") % 160).alias("problem_id"),
                pl.col("index").cast(pl.Int64).alias("sample"), "input_ids",
                "completion_mask").write_parquet(folder / "rows.parquet")
    for name in ("model", "tokenizer"):
        (folder / name).symlink_to(tiny / name)
    return folder


def problems_trained(trainer, dataset):
    """Of each problem the trained tokens in the batches of `dataset`."""
    rows, found = trainer.rows, Counter()
    for example in dataset:
        batch = trainer.data_collator([example])
        bearing = (batch["labels"][0] != IGNORED).numpy()
        index = example["row"]
        of_token = np.repeat(rows.problems[index], rows.lengths[index])
        found.update(of_token[bearing].tolist())
        assert len(batch.get("target_tail_logprob", of_token[bearing])) == bearing.sum()
    return found


@pytest.mark.parametrize("per_block", [0, 1, 4, 7])
def test_held_out_problems_are_not_trained_on_and_no_token_is_lost(spread, tmp_path, per_block):
    folder = packed(spread, tmp_path, per_block) if per_block else spread
    trainer, _, _ = sft.make_trainer(tiny_sft.job(folder, tmp_path / "out", {"held_out": 64}))
    trained, held_out = (problems_trained(trainer, part)
                         for part in (trainer.train_dataset, trainer.eval_dataset))
    assert len(held_out) in (2, 3) and not trained.keys() & held_out.keys()
    assert len(trained) + len(held_out) == 160
    mask = pl.read_parquet(spread / "rows.parquet")["completion_mask"].explode()
    assert trained.total() + held_out.total() == mask.sum()


def test_held_out_rows_are_whole_problems_and_few(tiny, spread, capsys):
    rows = read_rows(tiny / "rows.parquet")
    many = rows.__class__(*([*column, *column, *column, *column] for column in
                            vars(rows).values()))
    chosen = held_out_problems(many, 64)
    assert len(chosen) == 1 and sum(p[0] in chosen for p in many.problems) == 4
    assert held_out_problems(rows, 0) == set() and not capsys.readouterr().err
    large = [["large"]] * 60 + rows.problems
    assert held_out_problems(replace(rows, problems=large), 64).isdisjoint({"large"})
    assert held_out_problems(replace(rows, problems=[["large"]] * 60), 64) == set()
    assert "no problem is held out" in capsys.readouterr().err


def test_the_held_out_loss_is_logged_and_tensorboard_written(tiny, tmp_path):
    counts = sft.train(tiny_sft.job(tiny, tmp_path, {"held_out": 64}, eval_steps=4))
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert counts["held_out"] == 1 and counts["rows"] == 63
    assert [line["step"] for line in logged if "eval_loss" in line] == [4, 8]
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_training_ends_when_its_minutes_are_over(tiny, tmp_path, monkeypatch):
    ticks = count(step=20.0)                 # the clock is read at the start and after every step
    monkeypatch.setattr("pipeline.train.guard.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    assert sft.train(tiny_sft.job(tiny, tmp_path, {"minutes": 1}))["steps"] == 3
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_learning_rate_that_undoes_what_the_student_knew_is_named(tiny, tmp_path, capsys):
    known = tiny_sft.learnt(tiny, tmp_path / "learnt", 8)
    for rate, said in ((1e-5, 0), (0.1, 1)):
        job = tiny_sft.job(tiny, tmp_path / str(rate), learning_rate=rate, max_steps=24,
                           lr_scheduler_type="constant")
        sft.train(job.model_copy(update={"model": str(known)}))
        assert capsys.readouterr().err.count("the loss has risen") == said


def test_lora_trains_adapters_only_and_ends_as_an_ordinary_checkpoint(tiny, tmp_path):
    out = tmp_path / "out"
    sft.train(tiny_sft.job(tiny, out, {"lora": {"r": 4, "lora_alpha": 8}}, save_steps=4))
    before = AutoModelForCausalLM.from_pretrained(tiny / "model").state_dict()
    after = AutoModelForCausalLM.from_pretrained(out / "model").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("_proj" in name for name in changed)
    assert not (out / "model" / "adapter_config.json").exists()
    assert (out / "model" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("wrong", "said"), [
    (["q_prj"], "'q_prj'"), (["q_proj", "k_prj"], "'k_prj'"), (["norm"], "Qwen3RMSNorm"),
    ("q_proj", "q_proj not found"), ("*_proj", "nothing to repeat"), (["lm_head"], "'lm_head'")])
def test_target_modules_that_cannot_be_adapted_are_one_sentence_before_the_weights_load(
        wrong, said, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "load_student", None)
    job = tiny_sft.job(tiny, tmp_path, {"lora": {"target_modules": wrong}})
    with pytest.raises(UserError, match=rf"sft\.lora\.target_modules: .*{said}.*; .* q_proj, up"):
        sft.make_trainer(job)


@pytest.mark.parametrize("right", [["q_proj", "0.mlp.up_proj"], r".*\.1\..*_proj", "all-linear"],
                         ids=str)
def test_target_modules_that_fit_a_layer_are_trained(right, tiny, tmp_path):
    job = tiny_sft.job(tiny, tmp_path, {"lora": {"r": 4, "target_modules": right}})
    trainer, _, _ = sft.make_trainer(job)
    assert any(weight.requires_grad for weight in trainer.model.parameters())


def test_a_lora_run_goes_on_from_its_checkpoint_to_the_same_weights(tiny, tmp_path):
    recipe = {"lora": {"r": 4, "lora_dropout": 0.1}}
    sft.train(tiny_sft.job(tiny, tmp_path / "calm", recipe, save_steps=4))
    half = tmp_path / "half"
    trainer, guard, tokenizer = sft.make_trainer(tiny_sft.job(tiny, half, recipe, save_steps=4))
    tiny_sft.break_off(trainer, 6)
    with pytest.raises(KeyboardInterrupt):
        sft.fit(trainer, guard, half, tokenizer)
    sft.train(tiny_sft.job(tiny, half, recipe, save_steps=4))
    calm, resumed = (load_file(path / "model" / "model.safetensors")
                     for path in (tmp_path / "calm", half))
    assert all(torch.equal(calm[name], resumed[name]) for name in calm)


def test_bf16_lowers_the_loss_as_float32_does(tiny, tmp_path):
    losses = []
    for bf16 in (False, True):
        out = tmp_path / str(bf16)
        sft.train(tiny_sft.job(tiny, out, bf16=bf16, num_train_epochs=2))
        lines = (out / "log.jsonl").read_text().splitlines()
        losses.append([x["loss"] for x in map(json.loads, lines) if "loss" in x])
    assert losses[1][-1] < losses[1][0] - 1
    assert np.allclose(losses[0], losses[1], atol=0.1)


def test_an_overfitted_student_thinks_answers_and_stops(tiny, tmp_path):
    few = tmp_path / "few"
    tiny_sft.build(few, rows=4)
    sft.train(tiny_sft.job(few, tmp_path / "out", per_device_train_batch_size=4,
                           num_train_epochs=80, learning_rate=1e-2))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    rows = read_rows(few / "rows.parquet")
    for ids, labels in zip(rows.ids, rows.labels, strict=True):
        prompt = torch.tensor(ids[labels == IGNORED])[None]
        made = model.generate(prompt, do_sample=False, max_new_tokens=200)
        assert made[0].tolist() == ids.tolist()


@pytest.mark.parametrize(("recipe", "trainer", "said"), [
    ({}, {"max_length": 1024}, "pack.max_tokens"),
    ({}, {"packing": True}, "pack"),
    ({}, {"learning_rat": 1}, "learning_rat"),
    ({}, {"use_liger_kernel": True}, "liger-kernel"),
    ({"report_to": ["trackio"]}, {}, "pip install trackio"),
    ({"lora": {"rank": 4}}, {}, "sft.lora"),
    ({"method": {"type": "logits"}}, {"loss_type": "dft"}, "loss_type"),
    ({"head": "limbeck"}, {"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ({"method": {"type": "logits", "beta": "jds"}}, {}, "beta=jds is not a divergence"),
])
def test_settings_that_cannot_work_are_refused_before_any_work(recipe, trainer, said, monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    config = SftConfig.model_validate({**recipe, "trainer": trainer})
    with pytest.raises(UserError, match=said):
        sft.arguments(config, Path("unused"), 0)


@pytest.mark.parametrize("method", [{"type": "sequence"}, {"type": "logits"},
                                    {"type": "on_policy", "teacher": "t"}])
def test_the_trainer_gets_the_sections_defaults_under_the_users_keys_and_no_key_holds_them(method):
    config = SftConfig.model_validate({"method": method, "trainer": {"save_steps": 7}})
    args = sft.arguments(config, Path("unused"), 0)
    defaults = config.trainer_defaults()
    assert defaults["save_steps"] == 0.25 and args.save_steps == 7
    assert all(getattr(args, key) == value for key, value in defaults.items()
               if key != "save_steps")
    assert config.model_dump()["trainer"] == {"save_steps": 7}


def test_a_launched_run_gets_accelerates_options_and_the_whole_job(tiny, tmp_path, monkeypatch):
    lines = []

    def fake(line, environment):
        lines.append(line)
        job = json.loads(Path(line[-1]).read_text())
        assert job["sft"]["trainer"]["learning_rate"] == 2e-3 and job["seed"] == 3
        (tmp_path / "counts.json").write_text('{"steps": 8}')
        return 0

    monkeypatch.setattr(launch, "run", fake)
    options = {"config_file": "configs/fsdp2.yaml", "num_processes": 8, "multi_gpu": True,
               "debug": False}
    assert launch.launch(tiny_sft.job(tiny, tmp_path), MODULE, options) == {"steps": 8}
    assert lines[0][1:] == ["-m", "accelerate.commands.launch", "--config_file",
                            "configs/fsdp2.yaml", "--num_processes", "8", "--multi_gpu", "-m",
                            MODULE, str(tmp_path / "job.json")]


def test_deepspeed_that_is_not_installed_is_one_sentence_before_any_work(tiny, tmp_path,
                                                                         monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    monkeypatch.setattr(launch, "run", None)
    options = {"num_processes": 8, "use_deepspeed": True}
    runtime = SimpleNamespace(launch=options)
    for work in (lambda: stage.check_fully(SimpleNamespace(runtime=runtime, sft=SftConfig(),
                                                               seed=0)),
                 lambda: launch.launch(tiny_sft.job(tiny, tmp_path), MODULE, options)):
        with pytest.raises(UserError, match="pip install deepspeed"):
            work()


@pytest.mark.parametrize(("options", "said"), [
    ({"num_process": 2}, "--num_process"), ({"num_processes": "two"}, "'two'"),
    ({"multi_gpu": 2}, "takes no 2"), ({"mixed_precision": "bf17"}, "bf17"), ({"help": True}, "")])
def test_options_that_accelerate_does_not_take_are_one_sentence_before_work(options, said, capfd):
    runtime = SimpleNamespace(launch=options)
    with pytest.raises(UserError, match=rf"runtime\.launch .*{said}.*accelerate launch --help"):
        stage.check_fully(SimpleNamespace(runtime=runtime, sft=SftConfig(), seed=0))
    assert capfd.readouterr() == ("", "")


def test_what_a_launched_process_complains_of_reaches_the_user(tiny, tmp_path, monkeypatch):
    def fake(line, environment):
        (tmp_path / "failure.txt").write_text("sft: the loss is not finite at step 3")
        return 1

    monkeypatch.setattr(launch, "run", fake)
    with pytest.raises(UserError, match="not finite at step 3"):
        launch.launch(tiny_sft.job(tiny, tmp_path), MODULE, {"num_processes": 2})


@pytest.mark.parametrize("groups", [2, 8])
def test_processes_without_padding_get_about_equal_tokens_of_each_step(groups):
    draw = random.Random(0)
    lengths = [int(draw.lognormvariate(6, 0.6)) for _ in range(5 * groups * 16 + 7)]
    order = draw.sample(range(len(lengths)), len(lengths))
    made = list(EvenSampler(order, lengths, groups, 16))
    assert len(EvenSampler(order, lengths, groups, 16)) == len(made)
    worst = {"before": [], "after": []}
    for start in range(0, 5 * groups * 16, groups * 16):
        block = slice(start, start + groups * 16)
        assert sorted(made[block]) == sorted(order[block])
        for when, rows in (("before", order[block]), ("after", made[block])):
            tokens = [sum(lengths[row] for row in rows[k:k + 16])
                      for k in range(0, groups * 16, 16)]
            worst[when].append(max(tokens) * groups / sum(tokens))
    assert made[5 * groups * 16:] == order[5 * groups * 16:]
    assert max(worst["after"]) < 1.02 < 1.05 < max(worst["before"])


@pytest.mark.parametrize(("processes", "padding_free", "strategy", "even"), [
    (1, True, "sequential", False), (4, True, "sequential", True), (4, True, "random", False),
    (4, True, "group_by_length", True), (4, False, "group_by_length", False)])
def test_only_processes_without_padding_are_dealt_rows_by_tokens(
        tiny, tmp_path, monkeypatch, processes, padding_free, strategy, even):
    trainer, *_ = sft.make_trainer(tiny_sft.job(tiny, tmp_path, padding_free=padding_free,
                                                train_sampling_strategy=strategy))
    monkeypatch.setattr(type(trainer.args), "world_size", processes)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, EvenSampler) == even
    assert sorted(sampler) == list(range(64))
    assert not even or (sampler.groups, sampler.size) == (4, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "free"), [("trl", False), ("limbeck", False), ("trl", True)])
def test_two_launched_processes_learn_what_one_does(
        tiny, tmp_path, monkeypatch, capfd, head, free):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone, two = tmp_path / "alone", tmp_path / "two"
    sft.train(tiny_sft.job(tiny, alone, train_sampling_strategy="sequential"))
    job = tiny_sft.job(tiny, two, {"head": head}, train_sampling_strategy="sequential",
                       per_device_train_batch_size=4, save_steps=2, padding_free=free)
    assert launch.launch(job, MODULE, tiny_sft.TWO)["steps"] == 8
    assert "find_unused_parameters" not in capfd.readouterr().err
    assert all(checkpoints.is_complete(path) for path in checkpoints.steps(two / "checkpoints"))
    one, both = (load_file(path / "model" / "model.safetensors") for path in (alone, two))
    assert all((one[name] - both[name]).abs().max() < 1e-4 for name in one)


@pytest.mark.parametrize("overlay", ["fsdp2", "zero2"])
def test_accelerate_takes_every_option_of_the_shipped_overlays(overlay):
    from accelerate.commands.launch import launch_command_parser

    text = (Path(__file__).parents[2] / "configs" / f"{overlay}.yaml").read_text(encoding="utf-8")
    line = launch.command(yaml.safe_load(text)["runtime"]["launch"], ["-m", MODULE, "j"])
    given = launch_command_parser().parse_args(line[3:])
    assert given.module and given.training_script == MODULE
    assert given.num_processes == 8 and given.mixed_precision == "bf16"


@pytest.mark.parametrize(("options", "port"), [
    ({}, "free"), ({"num_machines": 1}, "free"), ({"main_process_port": 29600}, "29600"),
    ({"num_machines": 2, "machine_rank": 1}, None), ({"config_file": "theirs.yaml"}, None)])
def test_trainings_of_one_host_get_ports_of_their_own(options, port):
    ports = []
    for _ in range(2):
        line = launch.command({"num_processes": 2, **options}, ["-m", MODULE, "j"])
        assert line.count("--main_process_port") == (port is not None)
        ports.append(line[line.index("--main_process_port") + 1] if port else None)
    assert ports[0] != ports[1] and "29500" not in ports if port == "free" else \
        ports == [port, port]


@pytest.mark.parametrize(("gpus", "trainer", "launched"), [
    (0, {}, False), (1, {}, False), (2, {}, True), (1, {"use_vllm": True}, True)])
def test_one_process_never_deals_a_batch_out_to_several_gpus(
        monkeypatch, tmp_path, gpus, trainer, launched):
    from types import SimpleNamespace

    monkeypatch.setattr(launch, "gpu_count", lambda: gpus)
    monkeypatch.setattr(stage, "resolve", str)
    monkeypatch.setattr(stage, "launch",
                        lambda job, *given, **named: job.engine == {"max_num_seqs": 8})
    monkeypatch.setattr(sft, "train", lambda job: False)
    monkeypatch.setattr(stage, "say", lambda *given: None)
    monkeypatch.setattr(stage, "rows_beyond", lambda *given: None)      # there are no rows
    experiment = SimpleNamespace(sft=SftConfig(trainer=trainer), seed=0,
                                 runtime=Runtime(vllm={"max_num_seqs": 8}))
    inputs = {"student": tmp_path, "pack": tmp_path}
    assert stage.run(experiment, inputs, tmp_path) is launched
