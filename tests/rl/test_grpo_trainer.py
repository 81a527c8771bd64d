"""GRPO: our rollouts and trimmed loss change no value, and what is not judged trains nothing."""

import json
import time
from functools import partial
from pathlib import Path

import pytest
import tiny_rl
import torch

from pipeline.config.student import TinyModel
from pipeline.errors import UserError
from pipeline.student.tiny import build_model, build_tokenizer

TEMPLATE = (Path(__file__).resolve().parents[2] / "prompts/chat_templates/tiny.jinja").read_text()
TOKENIZER = build_tokenizer(["1 and 2 make 3.", "Wait, 1+2=3"], 400, TEMPLATE)
ROWS = [{"prompt": [{"role": "user", "content": f"{a} and {a + 1} make?"}]} for a in range(8)]


def trainer(tmp_path, reward, steps=2, kind=None, attention=None, **given):
    from datasets import Dataset

    from pipeline.config.rl import RlConfig
    from pipeline.rl.grpo_trainer import PaddingFreeGRPOTrainer
    from pipeline.rl.schedule import grpo_config, phase_settings

    settings = {"max_steps": steps, "num_generations": 4, "per_device_train_batch_size": 8,
                "max_completion_length": 12, "learning_rate": 1e-3, "save_strategy": "no",
                "report_to": [], **given}
    model = build_model(TOKENIZER, TinyModel(layers=1, width=32, heads=2, init_std=0.5), 0)
    if "beta" in given:  # TRL reads the reference model anew from where the model came from
        model.save_pretrained(tmp_path / "start")
        kind_of_attention = {"attn_implementation": attention} if attention else {}
        model = type(model).from_pretrained(tmp_path / "start", **kind_of_attention)
        with torch.no_grad():  # away from the reference, so that the KL term pulls
            model.model.embed_tokens.weight += 0.05
    rewards = reward if isinstance(reward, list) else [reward]
    [settings] = phase_settings(RlConfig(trainer=settings))
    made = (kind or PaddingFreeGRPOTrainer)(
        model=model, reward_funcs=rewards, args=grpo_config(settings, tmp_path, 0),
        train_dataset=Dataset.from_list(ROWS), processing_class=TOKENIZER)
    made.eos_token_ids = [TOKENIZER.eos_token_id, *range(260, 300)]  # so that lengths differ
    return made


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


def even(completions, completion_ids, **columns):
    return [float(sum(ids) % 2) for ids in completion_ids]


def test_rollouts_come_from_the_compacting_loop_and_the_weights_move(tmp_path, monkeypatch):
    import pipeline.train.rollouts as rollouts

    calls = []
    real = rollouts.decode
    monkeypatch.setattr(rollouts, "decode", lambda *a, **k: calls.append(1) or real(*a, **k))
    made = trainer(tmp_path, even)
    before = weights(made)
    made.train()
    assert len(calls) == 2 and not torch.equal(before, weights(made))


def test_rows_in_a_list_are_those_of_the_data_set_and_the_update_stays(tmp_path):
    from datasets import Dataset

    def run(kept):
        made = trainer(tmp_path, even, steps=4, per_device_train_batch_size=4,
                       gradient_accumulation_steps=2)
        assert made.train_dataset == list(Dataset.from_list(ROWS))
        made.train_dataset = made.train_dataset if kept else Dataset.from_list(ROWS)
        made.train()
        return weights(made)

    assert torch.equal(run(True), run(False))


def test_the_loader_hands_on_the_rows_themselves(tmp_path):
    from torch.utils.data._utils.pin_memory import pin_memory

    made = trainer(tmp_path, even)
    own = {id(row) for row in made.train_dataset}
    for batch in made.get_train_dataloader():       # pinned on a GPU, then sent to it
        assert len(batch) == 8 and {id(row) for row in pin_memory(batch)} <= own


def test_the_log_says_what_of_a_step_went_to_rollouts_and_rewards(tmp_path):
    def slow(completions, completion_ids, **columns):
        time.sleep(0.2)
        return even(completions, completion_ids)

    made = trainer(tmp_path, slow, steps=3, gradient_accumulation_steps=2, logging_steps=1)
    made.train()
    steps = [line for line in made.state.log_history if "step_time" in line]
    assert len(steps) == 3
    for line in steps:
        assert line["reward_time"] >= 0.2 and line["generation_time"] > 0
        assert line["reward_time"] + line["generation_time"] <= line["step_time"]


def test_rollouts_of_a_checkpointing_model_see_what_was_said_before(tmp_path):
    from pipeline.student.decode import decode

    made = trainer(tmp_path, even, gradient_checkpointing=True)
    made.temperature, asked = 0, [TOKENIZER("1 and 2 make?")["input_ids"]]
    made.model.gradient_checkpointing_enable()
    made.model.train()
    got, _ = made._generate_single_turn(asked, None)
    assert made.model.is_gradient_checkpointing and made.model.training
    made.model.eval()
    assert got == decode(made.model, asked, max_tokens=12, temperature=0,
                         eos_token_ids=made.eos_token_ids)


def test_the_trimmed_loss_and_its_gradient_equal_the_whole_ones(tmp_path, monkeypatch):
    from pipeline.rl import grpo_trainer as grpo

    def run(trim):
        monkeypatch.setattr(grpo, "trim_padding", trim)
        made = trainer(tmp_path, even, steps=3)
        made.train()
        return weights(made)

    trimmed, whole = run(grpo.trim_padding), run(lambda inputs: inputs)
    torch.testing.assert_close(trimmed, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo"])
def test_completions_of_like_length_share_a_micro_batch_and_the_update_stays(
        tmp_path, monkeypatch, loss):
    from pipeline.rl.grpo_trainer import PaddingFreeGRPOTrainer

    seen = []
    real = PaddingFreeGRPOTrainer._compute_loss

    def watched(self, model, inputs):
        seen.extend(inputs["completion_mask"].sum(1).tolist())
        return real(self, model, inputs)

    def run():
        made = trainer(tmp_path, even, per_device_train_batch_size=4, loss_type=loss,
                       gradient_accumulation_steps=4)
        made.train()
        return weights(made)

    monkeypatch.setattr(PaddingFreeGRPOTrainer, "_compute_loss", watched)
    sorted_weights, first = run(), seen[:16]
    assert first == sorted(first) and first[0] < first[-1]
    monkeypatch.setattr(PaddingFreeGRPOTrainer, "_order_is_free", lambda self: False)
    seen.clear()
    torch.testing.assert_close(sorted_weights, run(), atol=1e-5, rtol=0)
    assert seen[:16] != first


@pytest.mark.parametrize("given", [{}, {"num_iterations": 2}, {"beta": 0.1}])
def test_rows_laid_end_to_end_give_the_weights_of_padded_rows(tmp_path, monkeypatch, given):
    from pipeline.rl import grpo_trainer as grpo
    from pipeline.train import attention

    calls = []
    real = grpo.flatten
    monkeypatch.setattr(grpo, "flatten", lambda *a: calls.append(1) or real(*a))
    attention.register()

    def run(kind):
        made = trainer(tmp_path / kind, even, steps=3, per_device_train_batch_size=4,
                       gradient_accumulation_steps=2, attention=kind, **given)
        made.model.set_attn_implementation(kind)
        made.train()
        return weights(made)

    there = run("sdpa")
    assert not calls
    torch.testing.assert_close(run(attention.NAME), there, atol=2e-5, rtol=0)
    assert calls


def test_rows_laid_end_to_end_leave_out_padding_and_come_back_in_place():
    from pipeline.student.token_rows import IGNORED
    from pipeline.train.padding import flatten, unflatten

    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    ids = torch.arange(10).view(2, 5)
    given = flatten(ids, mask, 2)
    assert given["input_ids"].tolist() == [[1, 2, 3, 5, 6, 7, 8, 9]]
    assert given["labels"].tolist() == [[IGNORED, IGNORED, 3, IGNORED, IGNORED, IGNORED, 8, 9]]
    assert given["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    assert given["cu_seq_lens_q"].tolist() == [0, 3, 8] and given["max_length_q"] == 5
    back = unflatten(given["input_ids"][:, 1:].float(), mask)
    assert back.tolist() == [[0, 0, 2, 3, 0], [5, 6, 7, 8, 9]]


def test_without_padding_every_micro_batch_gets_about_as_many_tokens_and_each_row_once():
    from pipeline.train.padding import rebalance

    lengths = torch.randperm(48, generator=torch.Generator().manual_seed(1)) + 1
    mask = (torch.arange(48) < lengths[:, None]).int()
    batches = [{"completion_mask": rows, "prompt_mask": torch.ones(len(rows), 5), "names": names,
                "num_items_in_batch": torch.tensor(9)}
               for rows, names in zip(mask.chunk(6), torch.arange(48).chunk(6), strict=True)]
    got = rebalance(batches, True)
    assert {len(batch["names"]) for batch in got} == {8}
    assert sorted(torch.cat([batch["names"] for batch in got]).tolist()) == list(range(48))
    tokens = [int(batch["completion_mask"].sum()) for batch in got]
    assert max(tokens) - min(tokens) <= 6 < max(lengths[:8].sum(), lengths[8:16].sum()) / 8
    for batch in got:
        assert torch.equal(batch["completion_mask"].sum(1), lengths[batch["names"]])


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "luspo", "cispo", "sapo"])
def test_groups_of_equal_rewards_leave_the_loss_and_the_update_stays(tmp_path, monkeypatch, loss):
    from pipeline.rl import grpo_trainer as grpo

    seen = []
    real = grpo.PaddingFreeGRPOTrainer._compute_loss

    def watched(self, model, inputs):
        seen.append(len(inputs["advantages"]))
        return real(self, model, inputs)

    def half(completions, completion_ids, **columns):   # every other group is all right
        return [float(i // 4 % 2 or sum(ids) % 2) for i, ids in enumerate(completion_ids)]

    def run():
        seen.clear()
        made = trainer(tmp_path, half, per_device_train_batch_size=4, loss_type=loss,
                       gradient_accumulation_steps=8)
        made.train()
        return weights(made)

    monkeypatch.setattr(grpo.PaddingFreeGRPOTrainer, "_compute_loss", watched)
    fewer = run()
    assert len(seen) == 16 and sum(seen) <= 32
    monkeypatch.setattr(grpo, "drop_zero_advantage", lambda batches, rows, means: batches)
    torch.testing.assert_close(fewer, run(), atol=1e-5, rtol=0)
    assert sum(seen) == 64


def test_rows_left_without_advantage_only_fill_up_and_are_the_shortest():
    from pipeline.train.padding import drop_zero_advantage

    def batch(advantages, lengths):
        mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).int()
        return {"advantages": torch.tensor(advantages), "completion_mask": mask,
                "row_scale": torch.tensor(2.0), "ref_per_token_logps": None}

    whole = [batch([0.5, 0.0, 0.0], [9, 4, 2]), batch([-0.5, 0.0, 1.0], [5, 3, 7])]
    got = drop_zero_advantage(whole, 3, True)
    assert [value["advantages"].tolist() for value in got] == [[-0.5, 1.0], [0.5, 0.0]]
    assert got[1]["completion_mask"].sum(1).tolist() == [9, 2]
    assert got[0]["row_scale"] == pytest.approx(2.0 * 4 / 6)
    assert drop_zero_advantage(whole, 3, False)[0]["row_scale"] == 2.0
    assert got[0]["ref_per_token_logps"] is None
    # another process has as many
    assert len(drop_zero_advantage(whole, 5, True)[0]["advantages"]) == 3
    nothing = drop_zero_advantage([batch([0.0, 0.0], [3, 1]), batch([0.0, 0.0], [2, 4])], 0, True)
    assert [value["completion_mask"].sum().item() for value in nothing] == [1, 2]


def test_a_loss_that_depends_on_its_micro_batch_keeps_the_library_s_order(tmp_path):
    made = trainer(tmp_path, even)
    assert made._order_is_free()
    assert not trainer(tmp_path, even, loss_type="bnpo")._order_is_free()
    assert not trainer(tmp_path, even, num_iterations=2)._order_is_free()
    assert not trainer(tmp_path, even, entropy_coef=0.5)._order_is_free()


def test_a_micro_batch_without_any_loss_is_trimmed_to_one_column():
    from pipeline.train.padding import trim_padding

    inputs = {"completion_mask": torch.zeros(2, 5), "completion_ids": torch.ones(2, 5),
              "prompt_mask": torch.ones(2, 5), "advantages": torch.zeros(2)}
    got = trim_padding(inputs)
    assert got["completion_ids"].shape == (2, 1) and got["prompt_mask"].shape == (2, 5)


@pytest.mark.parametrize("value", [1.0, 0.0, 1.05, None, float("nan")])
def test_equal_or_missing_rewards_neither_crash_nor_train(tmp_path, value):
    def reward(completions, **columns):
        return [value] * len(completions)

    made = trainer(tmp_path, reward, num_generations=8)     # in float32 the mean of 1.05s is not
    before = weights(made)
    made.train()
    assert torch.equal(before, weights(made))
    assert made.state.log_history[0]["frac_reward_zero_std"] == 1


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_groups_of_equal_reward_are_counted_one_by_one(tmp_path, scale):
    def reward(completions, **columns):
        return [float(i % 2) if i < 4 else 0.5 for i in range(len(completions))]

    made = trainer(tmp_path, reward, steps=1, scale_rewards=scale, per_device_train_batch_size=16)
    made.train()
    assert made.state.log_history[0]["frac_reward_zero_std"] == 0.75


def test_a_reward_that_never_comes_stops_with_one_sentence(tmp_path):
    from pipeline.rl.early_stop import StopOnZeroReward

    def accuracy(completions, **columns):
        return [0.0] * len(completions)

    made = trainer(tmp_path, accuracy, steps=6, save_strategy="steps", save_steps=2)
    made.add_callback(StopOnZeroReward(3))
    with pytest.raises(UserError, match="first 3 steps"):
        made.train()
    again = trainer(tmp_path, accuracy, steps=6)
    again.add_callback(StopOnZeroReward(3))
    with pytest.raises(UserError, match="first 3 steps"):       # and not three steps later
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoints/checkpoint-2"))


@pytest.mark.parametrize(("value", "said"), [(0.0, r"own \(0\)"), (-0.25, r"own \(-0.25\)"),
                                             (None, r"own \(undecided\)")])
def test_an_own_reward_that_never_comes_stops_too_and_one_that_comes_late_does_not(
        tmp_path, value, said):
    from pipeline.rl.early_stop import StopOnZeroReward, deciding

    calls = []

    def own(completions, **columns):
        calls.append(0)
        return [1.0 if value == 0 and len(calls) > 6 and not i else value
                for i in range(len(completions))]

    assert deciding({"own": 1.0, "format": 0.1, "accuracy": 0.0}) == ["own"]
    assert deciding({"own": 1.0, "accuracy": 1.0}) == ["accuracy"]
    assert deciding({"format": 0.1, "repetition": 1.0}) == []
    made = trainer(tmp_path, own, steps=4)
    made.add_callback(StopOnZeroReward(3, ["own"]))
    with pytest.raises(UserError, match=f"first 3 steps: {said}"):
        made.train()
    if value == 0:
        calls[:] = [0] * 5
        late = trainer(tmp_path, own, steps=4)
        late.add_callback(StopOnZeroReward(3, ["own"]))
        late.train()


def test_a_resumed_run_knows_that_something_was_right_before(tmp_path):
    from pipeline.rl.early_stop import StopOnZeroReward

    right = [1.0]

    def accuracy(completions, **columns):
        return [right[0]] * len(completions)

    trainer(tmp_path, accuracy, steps=2, save_strategy="steps", save_steps=2).train()
    right[0] = 0.0
    again = trainer(tmp_path, accuracy, steps=6)
    again.add_callback(StopOnZeroReward(3))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints/checkpoint-2"))
    assert again.state.global_step == 6


def test_a_run_without_an_accuracy_reward_is_not_stopped_for_lack_of_it(tmp_path):
    start = tiny_rl.build(tmp_path)
    counts = tiny_rl.refined(start, tmp_path / "out", rewards={"format": 1.0, "repetition": 1.0},
                             patience=2, trainer={"log_completions": True})
    assert counts["steps"] == 4
    kept = (tmp_path / "out").rglob("completions/*.parquet")  # TRL's own flag, left alone
    assert len(list(kept)) == 4


def test_every_token_that_the_model_declares_ends_a_turn_in_reward_and_evaluation(tmp_path):
    from pipeline.config.evaluate import StudentSampling
    from pipeline.student.sample import sample

    start = tiny_rl.build(tmp_path)
    declared = start / "generation_config.json"
    config = json.loads(declared.read_text())
    ends = [*range(4, 60), config["eos_token_id"]]
    declared.write_text(json.dumps({**config, "eos_token_id": ends}))
    said = []

    class Pool(tiny_rl.Pool):
        def judge_many(self, completions, problems):
            said.extend(completion.finish_reason for completion in completions)
            return super().judge_many(completions, problems)

    tiny_rl.refined(start, tmp_path / "out", Pool(), trainer={"max_steps": 1}, evaluate_every=1,
                    held_out=range(8))
    cut = tiny_rl.log(tmp_path / "out")[0]["completions/clipped_ratio"]
    assert 0 < cut < 1 and said[:8].count("length") == 8 * cut
    assert "stop" in said[8:]
    chats = [row["prompt"] for row in tiny_rl.problems(4)]
    for [(completion, tokens)] in sample(str(start), str(start), chats, 1,
                                         StudentSampling(max_tokens=12, temperature=1), 0):
        assert tokens == 12 or completion.finish_reason == "stop"


def test_rewards_named_in_the_config_are_known_and_reflections_are_counted():
    from pipeline.judge import JudgePool
    from pipeline.rl.rewards import RewardContext, reward_functions, with_reflection

    with JudgePool(1) as pool:
        context = RewardContext(pool, prompt_opens_thinking=True, max_length=100)
        made = reward_functions({"accuracy": 1.0, "format": 0.1}, context)
        with pytest.raises(UserError, match="beauty"):
            reward_functions({"beauty": 1.0}, context)
    assert [weight for weight, _ in made.values()] == [1.0, 0.1]
    logged = {}
    counting = with_reflection(lambda completions, **columns: [0.0] * len(completions))
    counting(completions=["Wait, no. Wait, yes", "plain"],
             log_metric=lambda name, value: logged.update({name: value}))
    assert logged == {"reflection": 1.0}
    said = {"role": "assistant", "reasoning_content": "Wait, no"}
    for message in (said, {**said, "content": None}, {**said, "content": "4"}):
        counting(completions=[[message]], log_metric=lambda name, value: logged.update(
            {name: value + 1}))
        assert logged == {"reflection": 2.0}


def gradient(made, batch):
    made.model.zero_grad()
    made._compute_loss(made.model, batch).backward()
    return torch.cat([p.grad.flatten() for p in made.model.parameters()])


def rollout(made):
    """A generation batch of two groups of four; the last row of the first group is unjudged."""
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    rows = [ROWS[0]] * 4 + [ROWS[1]] * 4
    torch.manual_seed(0)
    return made._generate_and_score_completions(rows)


@pytest.mark.parametrize(("loss", "scale"), [
    ("grpo", "group"), ("grpo", "none"), ("grpo", "batch"), ("dapo", "group"), ("bnpo", "none"),
    ("dr_grpo", "none"), ("sapo", "group"), ("cispo", "batch"), ("luspo", "group")])
def test_an_unjudged_sample_leaves_the_gradient_of_its_group_without_it(tmp_path, loss, scale):
    scores = torch.tensor([1.0, 0.0, 0.5, 0.0, 0.0, 1.0, 1.0, 0.25])
    left = [0, 1, 2, 4, 5, 6, 7]

    def judged(completions, **columns):
        return [None if i == 3 else float(score) for i, score in enumerate(scores)]

    def generous(completions, **columns):
        return [float(i == 3) * 5 for i in range(len(completions))]

    made = trainer(tmp_path, [judged, generous], loss_type=loss, scale_rewards=scale, beta=0.5)
    batch = rollout(made)
    assert batch["advantages"][3] == 0 and not batch["completion_mask"][3].any()

    groups = [scores[:3], scores[4:]]
    spread = {"group": [g.std() + 1e-4 for g in groups], "none": [1.0, 1.0],
              "batch": [scores[left].std() + 1e-4] * 2}[scale]
    alone = {name: value[left] if getattr(value, "ndim", 0) else value
             for name, value in batch.items()}
    alone["row_scale"] = torch.tensor(1.0)
    alone["advantages"] = torch.cat([(g - g.mean()) / s for g, s in zip(groups, spread,
                                                                        strict=True)])
    alone["num_items_in_batch"] = alone["completion_mask"].sum()
    # float32 sums in another order: the gradients differ by rounding only
    torch.testing.assert_close(gradient(made, batch), gradient(made, alone), atol=2e-6, rtol=1e-4)


def test_a_step_in_which_nothing_is_judged_moves_no_weight_even_with_kl(tmp_path):
    def none(completions, **columns):
        return [None] * len(completions)

    def generous(completions, **columns):
        return [float(i) for i in range(len(completions))]

    made = trainer(tmp_path, [none, generous], beta=0.5)
    before = weights(made)
    made.train()
    assert torch.equal(before, weights(made))
    assert made.state.log_history[0]["unjudged"] == 1.0


@pytest.mark.parametrize("rows", [4, 1])
def test_masked_rows_do_not_bend_the_logged_entropy_and_kl(tmp_path, rows):
    def judged(completions, **columns):     # undecided: half of the groups
        return [None if i // 4 % 2 else float(i % 2) for i in range(len(completions))]

    def logged(reward):
        made = trainer(tmp_path, reward, steps=1, beta=0.5, per_device_train_batch_size=rows,
                       gradient_accumulation_steps=16 // rows)
        made.train()
        return made.state.log_history[0]

    half, whole = logged(judged), logged(even)
    for name in ("entropy", "kl"):
        assert half[name] == pytest.approx(whole[name], rel=0.25)


def test_a_control_token_spelt_out_in_a_problem_is_text_to_the_trainer(tmp_path):
    from pipeline.student.template import prompt_ids

    made = trainer(tmp_path, even)
    chats = [[{"role": "user", "content": text}] for text in
             (f"What does {TOKENIZER.eos_token} mean?", "1 and 2 make?")]
    ids, _, _ = made._tokenize_prompts([chats[0], chats[1], chats[1]])
    assert ids == [prompt_ids(TOKENIZER, chat) for chat in (chats[0], chats[1], chats[1])]
    made.chat_template_kwargs = {"made": "up"}      # for the template, which does not know it
    assert made._tokenize_prompts(chats[1:])[0] == ids[1:2]


def test_refilled_groups_bring_their_unjudged_rows_and_the_counts_follow(tmp_path):
    from pipeline.rl.dynamic_sampling import DynamicSamplingTrainer

    calls = []

    def reward(completions, **columns):  # first all equal, then one in four undecided
        calls.append(1)
        return [1.0 if len(calls) == 1 else [None, 1.0, 0.0, 1.0][i % 4]
                for i in range(len(completions))]

    made = trainer(tmp_path, reward, kind=partial(DynamicSamplingTrainer, refill_rounds=1),
                   loss_type="grpo")
    batch = rollout(made)
    assert len(calls) == 2 and batch["judged"].tolist() == [0, 1, 1, 1] * 2
    assert batch["completion_mask"].any(1).tolist() == [False, True, True, True] * 2
    assert batch["row_scale"] == pytest.approx(8 / 6)
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()


def test_a_verdict_that_hangs_costs_its_own_sample_in_a_real_step(tmp_path, monkeypatch):
    import importlib

    import pipeline.train.rollouts as rollouts
    from pipeline.judge import JudgePool
    from pipeline.judge.verdict import WorkerTask
    from pipeline.rl.rewards import accuracy_reward

    rules = importlib.import_module("pipeline.judge.judge")  # the package's `judge` is a function

    said = ["</think>\\boxed{4}", "</think>\\boxed{5}", "</think>hang \\boxed{4}", "never closed"]
    rows = [TOKENIZER(text, add_special_tokens=False)["input_ids"] + [TOKENIZER.eos_token_id]
            for text in said]
    monkeypatch.setattr(rollouts, "decode", lambda *a, **k: rows * 2)
    real = rules.judge_by_rules

    def hanging(completion, problem, *, prompt_opens_thinking=False):
        if "hang" in getattr(completion, "answer", ""):
            return WorkerTask("sleep", (600,), "4", "math-verify", lambda reply: reply)
        return real(completion, problem, prompt_opens_thinking=prompt_opens_thinking)

    monkeypatch.setattr(rules, "judge_by_rules", hanging)
    asked = [{**row, "problem": "2+2?", "answer": "4"} for row in ROWS]
    monkeypatch.setattr("test_grpo_trainer.ROWS", asked)
    with JudgePool(2, seconds=2.0) as pool:
        reward = accuracy_reward(pool, prompt_opens_thinking=True,
                                 eos_token_ids=[TOKENIZER.eos_token_id])
        made = trainer(tmp_path, reward, steps=1, max_completion_length=40)
        before, started = weights(made), time.monotonic()
        made.train()
    first = made.state.log_history[0]
    assert time.monotonic() - started < 100
    assert first["judge/undecided"] == 0.25 and not torch.equal(before, weights(made))
    assert first["rewards/accuracy/mean"] == pytest.approx(1 / 4)  # abstaining earns nothing


def test_attacks_on_the_judge_neither_hang_nor_stop_a_training_run(tmp_path):
    from pipeline.judge import JudgePool
    from pipeline.rl.rewards import accuracy_reward

    path = Path(__file__).parents[3] / "shared" / "cases" / "resource_attacks.json"
    if not path.exists():
        pytest.skip("the resource attacks are not beside this checkout")
    attacks = json.loads(path.read_text())
    slow = {"prediction": "\\boxed{\\int_0^1 x^x \\sin(x^x) dx}", "gold": "\\sum_{k=1}^{n} k^x"}
    waiting, took = [*attacks, slow], []
    with JudgePool(workers=1) as pool:
        judged = accuracy_reward(pool)

        def attacked(prompts, completions, **columns):
            scores = []
            for prompt in prompts:
                case = waiting.pop() if waiting else {"prediction": "\\boxed{2}", "gold": "2"}
                begun = time.monotonic()
                scores += judged([prompt], [case["prediction"]], answer=[case["gold"]])
                took.append(time.monotonic() - begun)
            return scores

        trainer(tmp_path, attacked, steps=-(-len(waiting) // 8)).train()
    assert not waiting and max(took) < 30
