"""On-policy distillation: the student's own answers, the teacher's distribution, our guards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_sft
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.sft import SftConfig
from pipeline.errors import UserError
from pipeline.sft import trainer as sft
from pipeline.sft.on_policy import cut_to_same_width, unique_prompts
from pipeline.student.template import prompt_ids
from pipeline.student.token_rows import IGNORED, read_rows
from pipeline.student.tokenizer import load_tokenizer
from pipeline.train.layers import FusedForward
from pipeline.train.rollouts import RolloutMixin
from tests.rl.test_rl_vllm import Engine
from tests.sft.test_sft import packed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_sft.build(tmp_path_factory.mktemp("tiny"), rows=32)


@pytest.fixture(scope="module")
def teacher(tiny, tmp_path_factory):
    return tiny_sft.learnt(tiny, tmp_path_factory.mktemp("teacher"), 30)


def job(tiny, out, teacher, held_out=0, **trainer):
    recipe = {"method": {"type": "on_policy", "teacher": str(teacher), "dtype": "float32"},
              "held_out": held_out}
    return tiny_sft.job(tiny, out, recipe, **{"max_completion_length": 16, **trainer})


def logged(out, name):
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_the_student_comes_closer_to_the_teacher_at_its_own_tokens(tiny, teacher, tmp_path):
    counts = sft.train(job(tiny, tmp_path, teacher, num_train_epochs=10, beta=0.0,
                           learning_rate=1e-2))
    losses = logged(tmp_path, "loss")
    assert counts["steps"] == 40 == len(losses) and counts["rows"] == 32
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert logged(tmp_path, "completions/mean_length")[0] > 1
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template


def test_the_loss_is_watched_on_prompts_that_are_not_trained_on(teacher, tmp_path):
    tiny = tiny_sft.build(tmp_path / "tiny", rows=104)
    done = job(tiny, tmp_path / "out", teacher, 64, num_train_epochs=8, beta=0.0,
               learning_rate=1e-2)
    counts = sft.train(done)
    losses = logged(done.out, "eval_loss")
    assert len(losses) == 4 and losses[-1] < losses[0]
    trainer, _, _ = sft.make_trainer(done)
    asked, held_out = ([tuple(row["prompt"]) for row in rows]
                       for rows in (trainer.train_dataset, trainer.eval_dataset))
    assert (counts["rows"], counts["held_out"]) == (len(asked), len(held_out))
    assert held_out and not set(asked) & set(held_out)
    assert len(asked) + len(held_out) == len(unique_prompts(trainer.rows))


def test_the_prompts_are_the_rows_own_tokens_once_each(tiny, tmp_path):
    rows = read_rows(tiny / "rows.parquet")
    tokenizer = load_tokenizer(tiny / "tokenizer")
    wanted = [prompt_ids(tokenizer, [{"role": "user", "content": p}])
              for p, *_ in tiny_sft.sums(32)]
    assert [found["prompt"] for found in unique_prompts(rows)] == wanted
    blocks = unique_prompts(read_rows(packed(tiny, tmp_path) / "rows.parquet"))
    assert [found["prompt"] for found in blocks] == wanted
    assert [found["row"] for found in blocks] == [i // 4 for i in range(32)]
    rows.labels[3] = np.where(np.arange(len(rows.ids[3])) > 0, rows.ids[3], IGNORED)
    assert len(unique_prompts(rows)) == 31


def test_answers_may_be_as_long_as_the_longest_row_unless_a_limit_is_given(tiny, teacher, tmp_path):
    longest = max((labels != IGNORED).sum() for labels in read_rows(tiny / "rows.parquet").labels)
    for folder in (tiny, packed(tiny, tmp_path)):
        given = job(folder, tmp_path / "out", teacher)
        del given.sft.trainer["max_completion_length"]
        trainer, _, _ = sft.make_trainer(given)
        assert trainer.max_completion_length == trainer.args.max_completion_length == longest
        assert trainer.generation_config.max_new_tokens == longest
    trainer, _, _ = sft.make_trainer(job(tiny, tmp_path / "out", teacher))
    assert trainer.max_completion_length == 16


def test_a_run_whose_answers_are_cut_off_says_so_once(tiny, teacher, tmp_path, capsys):
    sft.train(job(tiny, tmp_path, teacher, max_completion_length=1))
    said = capsys.readouterr().err
    assert said.count("sft.trainer.max_completion_length=1;") == 1 and "at step 1 " in said


def test_fewer_prompts_than_a_step_asks_are_refused(tiny, teacher, tmp_path):
    with pytest.raises(UserError, match=r"32 prompts, fewer than the 40 .*accumulation_steps"):
        sft.train(job(tiny, tmp_path, teacher, gradient_accumulation_steps=5))
    counts = sft.train(job(tiny, tmp_path, teacher, gradient_accumulation_steps=4))
    assert counts["steps"] == 1


def test_padding_is_cut_to_one_width_and_other_vocabularies_are_refused(tiny, teacher, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    wide = AutoModelForCausalLM.from_pretrained(teacher)
    size = wide.config.vocab_size
    ids = torch.arange(4)[None]
    before = wide(ids).logits
    wide.resize_token_embeddings(size + 13)
    wide.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    trainer, _, _ = sft.make_trainer(job(tiny, tmp_path / "out", tmp_path / "wide"))
    assert trainer.teacher_model.config.vocab_size == trainer.model.config.vocab_size == size
    assert torch.allclose(trainer.teacher_model(ids).logits, before, atol=1e-6)
    wide.resize_token_embeddings(len(tokenizer) - 5)
    with pytest.raises(UserError, match="cross_tokenizer"):
        cut_to_same_width(trainer.model, wide, tokenizer)
    other = tiny_sft.build(tmp_path / "other", rows=64, seed=1)
    vocabulary = json.loads((other / "model/tokenizer.json").read_text())
    vocabulary["model"]["vocab"] = {
        token: {5: 6, 6: 5}.get(i, i) for token, i in vocabulary["model"]["vocab"].items()}
    (other / "model/tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match=r"sft.method.type=sequence.*cross_tokenizer"):
        sft.make_trainer(job(tiny, tmp_path / "out", other / "model"))


def test_an_adapter_on_a_student_wider_than_its_teacher_is_merged(tiny, teacher, tmp_path):
    student = AutoModelForCausalLM.from_pretrained(tiny / "model")
    size = student.config.vocab_size
    student.resize_token_embeddings(size + 13)
    student.save_pretrained(tmp_path / "wide")
    given = job(tiny, tmp_path / "out", teacher, max_steps=1)
    sft.train(given.model_copy(update={
        "model": str(tmp_path / "wide"), "sft": given.sft.model_copy(update={"lora": {"r": 4}})}))
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    assert made.get_input_embeddings().weight.shape[0] == made.config.vocab_size == size


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tiny, teacher, tmp_path):
    trainer, guard, tokenizer = sft.make_trainer(job(
        tiny, tmp_path, teacher, save_steps=1, per_device_train_batch_size=4,
        gradient_accumulation_steps=2))
    poison = {2: float("nan")}
    trainer.teacher_model.model.norm.register_forward_hook(
        lambda module, given, out: out * poison.get(trainer.state.global_step, 1.0))
    with pytest.raises(UserError, match=r"not finite at step 3, on .*sum-\d+#0"):
        sft.fit(trainer, guard, tmp_path, tokenizer)
    blamed = json.loads((tmp_path / "bad_batch.json").read_text())["rows"]
    assert len(blamed) == len(set(blamed)) == 8         # one step's, each of them once
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
    assert (tmp_path / "checkpoints/checkpoint-2/whole.json").is_file()
    assert not (tmp_path / "model").exists()


def test_an_interrupted_run_goes_on_from_its_checkpoint(tiny, teacher, tmp_path):
    trainer, guard, tokenizer = sft.make_trainer(job(tiny, tmp_path, teacher, save_steps=2))
    tiny_sft.break_off(trainer, 3)
    with pytest.raises(KeyboardInterrupt):
        sft.fit(trainer, guard, tmp_path, tokenizer)
    assert sft.train(job(tiny, tmp_path, teacher, save_steps=2))["steps"] == 4
    before, after = (load_file(path / "model.safetensors") for path in
                     (tmp_path / "checkpoints/checkpoint-2", tmp_path / "model"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_trainers_keys_are_those_of_trls_distillation_config(tmp_path):
    def arguments(**trainer):
        method = {"type": "on_policy", "teacher": "t"}
        config = SftConfig.model_validate({"method": method, "trainer": trainer})
        return sft.arguments(config, tmp_path, 0)

    given = arguments(beta=0.25, temperature=0.9, max_completion_length=77)
    assert (given.beta, given.temperature, given.max_completion_length) == (0.25, 0.9, 77)
    with pytest.raises(UserError, match="lmbda is not a key of DistillationConfig"):
        arguments(lmbda=0.5)


def answers(self, prompts, group=1):
    """Answers whose lengths differ; the token 2 ends half of them."""
    return [[7 + sum(ids) % 5] * (1 + sum(ids) % 15) + [2] * (sum(ids) % 2)
            for ids in prompts], None


def with_method(job, layers="transformers", **method):
    chosen = job.sft.method.model_copy(update=method)
    return job.model_copy(update={"sft": job.sft.model_copy(update={"method": chosen,
                                                                    "layers": layers})})


def test_single_pass_fused_layers_and_no_padding_give_trls_loss_and_updates(
        tiny, teacher, tmp_path, monkeypatch):
    def trained(name, layers="transformers", **trainer):
        sft.train(with_method(job(
            tiny, tmp_path / name, teacher, beta=1.0, learning_rate=5.0, max_steps=3, optim="sgd",
            temperature=0.7, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            **trainer), layers))
        return (load_file(tmp_path / name / "model/model.safetensors"),
                [logged(tmp_path / name, key) for key in ("loss", "grad_norm")])

    monkeypatch.setattr(RolloutMixin, "sample_completions", answers)
    own = {"model_init_kwargs": {"attn_implementation": "limbeck_varlen"}}
    ours = [trained("padded"), trained("end_to_end", **own), trained("fused", "compiled", **own)]
    monkeypatch.setattr("pipeline.train.rollouts.rebalance", lambda batches, free: batches)
    monkeypatch.setattr("pipeline.sft.on_policy.trim_padding", lambda inputs: inputs)
    theirs, log = trained("theirs")
    start = load_file(tiny / "model/model.safetensors")
    assert any((theirs[name] - start[name]).abs().max() > 1e-3 for name in theirs)
    for weights, values in ours:
        torch.testing.assert_close(torch.tensor(values), torch.tensor(log), atol=1e-5, rtol=1e-5)
        for name, value in theirs.items():
            torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=1e-5)


def test_truncated_answers_are_left_out_of_the_loss_if_asked(tiny, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(RolloutMixin, "sample_completions", answers)
    kept, counted = {}, {}
    for masked in (False, True):
        trainer, _, _ = sft.make_trainer(with_method(
            job(tiny, tmp_path / str(masked), teacher), mask_truncated=masked))
        trainer.eos_token_ids = [2]
        batch = trainer._generate_and_score_completions(trainer.train_dataset[:8])
        kept[masked], counted[masked] = batch["completion_mask"], batch["num_items_in_batch"]
        ended = (batch["completion_ids"] == 2).any(1)
    assert 0 < ended.sum() < 8 and (kept[True] == kept[False] * ended[:, None]).all()
    assert counted[True] == kept[True].sum() < counted[False] == kept[False].sum()
    trainer.eos_token_ids = [9999]
    with pytest.raises(UserError, match=r"max_completion_length=16, and .*mask_truncated leaves"):
        trainer._generate_and_score_completions(trainer.train_dataset[:8])


def test_the_teacher_is_in_half_precision_and_fused_and_has_no_gradient(tiny, teacher, tmp_path):
    given = with_method(job(tiny, tmp_path, teacher, max_steps=1, model_init_kwargs={
        "attn_implementation": "limbeck_varlen"}), "compiled", dtype="bfloat16")
    trainer, guard, tokenizer = sft.make_trainer(given)
    parameters = list(trainer.teacher_model.parameters())
    assert {p.dtype for p in parameters} == {torch.bfloat16}
    assert not any(p.requires_grad for p in parameters)
    fused, own = [], FusedForward._rest
    trainer._generate_single_turn = lambda prompts, *more: [[7, 8]] * len(prompts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusedForward, "_rest", lambda self, run, layer, x, *rest: fused.append(
            (x.shape[0], x.dtype, torch.is_grad_enabled())) or own(self, run, layer, x, *rest))
        sft.fit(trainer, guard, tmp_path, tokenizer)
    assert set(fused) == {(1, torch.float32, True), (1, torch.bfloat16, False)}


def test_the_log_says_how_much_of_a_step_went_to_rollouts(tiny, teacher, tmp_path):
    sft.train(job(tiny, tmp_path, teacher, max_steps=2, logging_steps=1))
    steps, rollouts = (logged(tmp_path, name) for name in ("step_time", "generation_time"))
    assert len(steps) == 2 and all(0 < part < whole
                                   for part, whole in zip(rollouts, steps, strict=True))


def sampled_by(kind, tiny, teacher, out, monkeypatch):
    calls: list[tuple] = []
    monkeypatch.setattr("trl.trainer.distillation_trainer.VLLMGeneration",
                        lambda **given: kind(calls, **given), raising=False)
    monkeypatch.setattr("trl.trainer.distillation_trainer.is_vllm_available", lambda: True)
    sft.train(job(tiny, out, teacher, use_vllm=True, vllm_mode="colocate", max_steps=3))
    return calls


def test_a_colocated_engine_answers_with_the_newest_weights_and_makes_only_what_is_read(
        tiny, teacher, tmp_path, monkeypatch):
    calls = sampled_by(Engine, tiny, teacher, tmp_path, monkeypatch)
    assert calls == [(True, 1, 0, {}), *[(True, 1, None, {"detokenize": False})] * 2]


def test_an_engine_that_answers_from_another_model_is_noticed(tiny, teacher, tmp_path, monkeypatch):
    class Broken(Engine):
        wrong = 0.6

    with pytest.raises(UserError, match=r"sft: vLLM and the trainer differ by 0\.6 nats a token"):
        sampled_by(Broken, tiny, teacher, tmp_path, monkeypatch)
    assert not (tmp_path / "model").exists()


def test_mixed_precision_reaches_the_insides_that_the_loss_calls(tiny, teacher, tmp_path):
    trainer, guard, tokenizer = sft.make_trainer(job(tiny, tmp_path, teacher, max_steps=1,
                                                     bf16=True))
    seen = []
    for model in (trainer.model, trainer.teacher_model):
        model.model.layers[0].mlp.up_proj.register_forward_hook(
            lambda module, given, out: seen.append(out.dtype) if out.shape[1] > 1 else None)
    trainer._generate_single_turn = lambda prompts, *more: [[7, 8]] * len(prompts)
    sft.fit(trainer, guard, tmp_path, tokenizer)
    assert len(seen) >= 2 and set(seen) == {torch.bfloat16}
