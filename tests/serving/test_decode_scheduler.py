"""The scheduler for decoding beside vLLM's own, where no model runs; needs vLLM, and no GPU."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

pytest.importorskip("vllm", reason="needs vLLM, which is not a part of the test environment")

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from benchmarks.decode_steps import OURS, engine, sampling

EOS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 1000, "max_position_embeddings": 4096,
        "eos_token_id": EOS}))
    return str(folder)


def asked_as(name):
    return name.partition("-")[0]       # vLLM adds a random end


def draw(name, place):
    return random.Random(f"{asked_as(name)} {place}").randrange(60)


def planned(step):
    """What a model runner is told of a step, with the requests' own names."""
    def own(value):
        if isinstance(value, dict):
            return {asked_as(key): one for key, one in value.items()}
        return type(value)(asked_as(one) for one in value)

    cached = step.scheduled_cached_reqs
    return ([(asked_as(new.req_id), new.block_ids, new.num_computed_tokens)
             for new in step.scheduled_new_reqs],
            own(cached.req_ids), own(cached.resumed_req_ids), cached.new_token_ids,
            own(cached.all_token_ids), cached.new_block_ids, cached.num_computed_tokens,
            cached.num_output_tokens, own(step.num_scheduled_tokens),
            step.total_num_scheduled_tokens, step.num_common_prefix_blocks,
            own(step.finished_req_ids), own(step.preempted_req_ids), step.free_encoder_mm_hashes,
            step.has_structured_output_requests, step.pending_structured_output_tokens)


def answers(model, scheduler, asked, options, later=0, aborted=()):
    """{name: (tokens, why it ended)}, tokens as they came, the plans of all steps, and counts.

    From `later` on requests come one a step; an aborted one is stopped when the last has come.
    """
    made = engine(model, scheduler, draw, skip_tokenizer_init=True, **options)
    core = made.engine_core.engine_core.scheduler
    seen, plans = Counter(), []
    runner = made.engine_core.engine_core.model_executor
    execute = runner.execute_model
    runner.execute_model = lambda step, **given: \
        plans.append(planned(step)) or execute(step, **given)
    if scheduler:
        plan, preempt = core._decode_all, core._preempt_request
        core._decode_all = lambda: (
            lambda step: seen.update(short=step is not None) or step)(plan())
        core._preempt_request = lambda *given: seen.update(preempted=1) or preempt(*given)
    names, found, parts = list(asked), {}, {}

    def add(name):
        prompt, params = asked[name]
        made.add_request(name, {"prompt_token_ids": prompt}, sampling(**params))

    for name in names[:later or None]:
        add(name)
    waiting = names[later:] if later else []
    while made.has_unfinished_requests() or waiting:
        if waiting:
            add(waiting.pop(0))
            if not waiting:
                made.abort_request(list(aborted))
        for output in made.step():
            one = output.outputs[0]
            name = output.request_id
            parts.setdefault(name, []).append(list(one.token_ids))
            if output.finished:
                found[name] = (list(one.token_ids), one.finish_reason, one.stop_reason)
    return found, parts, plans, seen


def asking(count, seed=0, **more):
    rng = random.Random(seed)
    return {str(index): ([rng.randrange(60) for _ in range(rng.randrange(1, 70))],
                         {"max_tokens": rng.randrange(1, 90), "stop_token_ids": [7] * (index % 2),
                          "ignore_eos": index % 5 == 0, **more}) for index in range(count)}


@pytest.mark.parametrize("options", [
    {}, {"enable_prefix_caching": False}, {"max_num_seqs": 5}, {"max_model_len": 75},
    {"kv_cache_memory_bytes": 16 * 512 * 30, "max_model_len": 200},    # 30 blocks: preemption
    {"max_num_batched_tokens": 48, "max_num_seqs": 40}])
def test_every_step_and_completion_is_that_of_vllms_own_scheduler(model, options):
    asked = asking(40)
    if options.get("max_model_len") == 75:
        asked = {name: (prompt[:60], params) for name, (prompt, params) in asked.items()}
    own, _, own_plans, _ = answers(model, None, asked, options)
    ours, _, plans, seen = answers(model, OURS, asked, options)
    assert ours == own and len(own) == 40 and plans == own_plans
    assert bool(seen["preempted"]) == ("kv_cache_memory_bytes" in options)
    assert {why for _, why, _ in own.values()} == {"stop", "length"}
    assert seen["short"] > 10


def test_requests_that_come_later_or_are_aborted_change_no_other(model):
    asked = asking(30, seed=1, max_tokens=60)
    own, _, own_plans, _ = answers(model, None, asked, {}, later=15, aborted=("20",))
    ours, _, plans, seen = answers(model, OURS, asked, {}, later=15, aborted=("20",))
    assert ours == own and plans == own_plans and seen["short"] > 10


@pytest.mark.parametrize("seed", range(24))
def test_random_settings_change_no_step_and_no_completion(model, seed):
    rng = random.Random(seed)
    options = {"enable_prefix_caching": rng.random() < 0.6, "block_size": rng.choice([16, 32]),
               "max_num_seqs": rng.randrange(1, 60),
               "max_num_batched_tokens": rng.randrange(60, 400)}
    if rng.random() < 0.4:
        options |= {"kv_cache_memory_bytes": 16 * 512 * rng.randrange(20, 60), "max_model_len": 200}
    asked = asking(rng.randrange(1, 50), seed)
    if rng.random() < 0.3:      # prompts that begin alike
        start = [rng.randrange(60) for _ in range(48)]
        asked = {name: (start + prompt[:20], params) for name, (prompt, params) in asked.items()}
    later = rng.choice([0, 0, 1, 5, 20])
    aborted = rng.sample(list(asked), 1) if later and rng.random() < 0.5 else ()
    own, _, own_plans, _ = answers(model, None, asked, options, later, aborted)
    ours, _, plans, _ = answers(model, OURS, asked, options, later, aborted)
    assert ours == own and plans == own_plans


def test_with_the_second_model_runner_the_plans_are_vllms_too(model, monkeypatch):
    monkeypatch.setattr("vllm.config.vllm.HAS_TRITON", True)     # without a GPU it is not
    monkeypatch.setattr("vllm.config.VllmConfig.use_v2_model_runner", property(lambda _: True))
    asked, options = asking(40, seed=5), {"kv_cache_memory_bytes": 16 * 512 * 30,
                                          "max_model_len": 200}
    own, _, own_plans, _ = answers(model, None, asked, options)
    ours, _, plans, seen = answers(model, OURS, asked, options)
    assert ours == own and plans == own_plans and seen["short"] > 10 and seen["preempted"]
    assert not any(cached[4] for cached in plans)    # all_token_ids, which it keeps itself


def test_where_it_may_not_plan_every_step_is_vllms(model, monkeypatch):
    made = engine(model, OURS, draw, skip_tokenizer_init=True, disable_log_stats=True)
    core = made.engine_core.engine_core.scheduler
    core._short, steps = False, Counter()
    took = AsyncScheduler.update_from_output
    monkeypatch.setattr(AsyncScheduler, "update_from_output",
                        lambda *given: steps.update(vllm=1) or took(*given))
    for name, (prompt, params) in asking(5).items():
        made.add_request(name, {"prompt_token_ids": prompt}, sampling(**params))
    while made.has_unfinished_requests():
        made.step()
    assert steps["vllm"] > 20 and not core._ends and not core._told


def test_a_name_that_was_aborted_may_come_again(model, monkeypatch):
    monkeypatch.setenv("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "1")
    made = engine(model, OURS, lambda name, place: 50, skip_tokenizer_init=True)
    for length, steps in ((5, 3), (12, 40)):
        made.add_request("x", {"prompt_token_ids": [1] * 20},
                         sampling(max_tokens=length, ignore_eos=True))
        done = [output for _ in range(steps) for output in made.step()]
        made.abort_request(["x"])
    assert len(done[-1].outputs[0].token_ids) == 12
    core = made.engine_core.engine_core.scheduler
    assert not core._ends and not core._told


@pytest.mark.parametrize("more", [{"min_tokens": 9}, {"logprobs": 0}])
def test_what_the_short_way_does_not_know_is_vllms(model, more):
    asked = asking(12, seed=2, max_tokens=40)
    asked["3"][1].update(more)
    assert answers(model, OURS, asked, {})[0] == answers(model, None, asked, {})[0]


def test_tokens_that_are_streamed_arrive_one_by_one(model):
    from vllm.sampling_params import RequestOutputKind

    asked = asking(8, seed=3, max_tokens=30)
    asked["2"][1]["output_kind"] = RequestOutputKind.DELTA
    _, parts, _, _ = answers(model, OURS, asked, {})
    assert len(parts["2"]) > 1 and all(len(part) == 1 for part in parts["2"] if part)
    assert parts == answers(model, None, asked, {})[1]


def test_it_refuses_another_release(model, monkeypatch):
    monkeypatch.setattr("pipeline.serving.decode_scheduler.__version__", "0.25.0")
    with pytest.raises(ValueError, match=r"knows vLLM 0\.24\.x, and this is 0\.25\.0"):
        engine(model, OURS, draw, skip_tokenizer_init=True)


def test_it_refuses_to_run_without_asynchronous_scheduling(model):
    made = engine(model, OURS, draw, skip_tokenizer_init=True)
    core = made.engine_core.engine_core.scheduler
    core.vllm_config.scheduler_config.async_scheduling = False
    with pytest.raises(ValueError, match="needs vLLM's async_scheduling"):
        type(core)(core.vllm_config, core.kv_cache_config, core.structured_output_manager,
                   core.block_size)
