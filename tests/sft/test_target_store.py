"""Stored distributions belong to their tokens, survive storage, and teach a student."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_sft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.experiment import Runtime
from pipeline.config.sft import LogitsConfig, SftJob
from pipeline.errors import UserError
from pipeline.sft import trainer as sft
from pipeline.sft.target_store import TargetStore, TopKLogprobs, score_rows, trim
from pipeline.sft.teacher_scorer import TransformersScorer, VllmScorer, make_scorer
from pipeline.student.token_rows import IGNORED, read_rows
from pipeline.student.tokenizer import check_vocabulary
from stages.graph import STAGES
from tests.sft.test_sft import packed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_sft.build(tmp_path_factory.mktemp("tiny"), rows=48)


@pytest.fixture(scope="module")
def teacher(tiny, tmp_path_factory):
    return tiny_sft.learnt(tiny, tmp_path_factory.mktemp("teacher"), 40)


@pytest.fixture(scope="module")
def stored(tiny, teacher, tmp_path_factory):
    """All outcomes of every trained token, and the counts."""
    out = tmp_path_factory.mktemp("stored")
    return out, score(tiny, teacher, out, top_k=255, mass=1.0)


def score(tiny, teacher, out, shard_rows=10, temperature=1.0, **settings):
    config = LogitsConfig(teacher=str(teacher), temperature=temperature,
                          **{"top_k": 16, "mass": 0.999, **settings})
    rows = read_rows(tiny / "rows.parquet")
    facts = {"teacher": str(teacher), "temperature": temperature}
    return score_rows(rows, make_scorer(config, 10 ** 6), config.mass, shard_rows, out, facts,
                      lambda n: None)


def logits_job(tiny, out, stored_in=None, source=None, method=None, **trainer) -> SftJob:
    recipe = {"method": {"type": "logits", "source": source or {"type": "offline"},
                         **(method or {})}}
    return tiny_sft.job(tiny, out, recipe, **trainer).model_copy(update={"logits": stored_in})


def test_each_stored_distribution_is_the_one_that_predicts_its_token(tiny, teacher, stored):
    out, counts = stored
    rows, targets = read_rows(tiny / "rows.parquet"), TargetStore.read(out, read_rows(
        tiny / "rows.parquet"))
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    for i in (0, 7, 47):
        places = np.flatnonzero(rows.labels[i] != IGNORED)
        with torch.no_grad():
            s = torch.log_softmax(model(torch.tensor(rows.ids[i])[None]).logits[0], -1)[places - 1]
        found = targets.of_row(i)
        assert torch.equal(found.ids[:, 0], s.argmax(-1))
        assert torch.allclose(found.logps.exp(), s.gather(1, found.ids).exp(), atol=0.01)
    assert counts["argmax_share"] > 0.7
    assert counts["loss_tokens"] == sum((labels != IGNORED).sum() for labels in rows.labels)


def test_a_teacher_shifted_by_one_token_is_rarely_right(tiny, teacher, tmp_path):
    scorer = TransformersScorer(LogitsConfig(teacher=str(teacher)), 10 ** 6)
    rows = read_rows(tiny / "rows.parquet")

    def shifted(samples):
        return scorer([(ids, places - 1) for ids, places in samples])

    counts = score_rows(rows, shifted, 0.999, 64, tmp_path, {}, lambda n: None)
    assert counts["argmax_share"] < 0.3


def test_an_interrupted_scoring_goes_on_at_the_missing_shard(tiny, teacher, tmp_path, stored):
    calls = []

    class Cut(TransformersScorer):
        def __call__(self, samples):
            calls.append(len(samples))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super().__call__(samples)

    rows = read_rows(tiny / "rows.parquet")
    scorer = Cut(LogitsConfig(teacher=str(teacher), top_k=255, mass=1.0), 10 ** 6)
    with pytest.raises(KeyboardInterrupt):
        score_rows(rows, scorer, 1.0, 10, tmp_path, {"temperature": 1.0}, lambda n: None)
    score_rows(rows, scorer, 1.0, 10, tmp_path, {"temperature": 1.0}, lambda n: None)
    assert calls == [10, 10, 10, 10, 10, 8]
    again, whole = (TargetStore.read(folder, rows) for folder in (tmp_path, stored[0]))
    assert all(torch.equal(again.of_row(i).ids, whole.of_row(i).ids) for i in range(len(rows)))


def test_distributions_of_other_rows_and_broken_files_are_refused(tiny, stored, tmp_path):
    other = read_rows(tiny_sft.build(tmp_path / "other", rows=48, seed=1) / "rows.parquet")
    other.labels[3][-1] = IGNORED
    with pytest.raises(UserError, match="other token rows"):
        TargetStore.read(stored[0], other)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in stored[0].glob("shard-*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        (broken / path.name).write_bytes(bytes(content))
    with pytest.raises(UserError, match="cannot be read"):
        TargetStore.read(broken, read_rows(tiny / "rows.parquet"))


def test_trimming_keeps_all_probability():
    logps = np.log(np.array([[0.6, 0.3, 0.05, 0.04], [0.25, 0.25, 0.25, 0.25]]))
    scored = TopKLogprobs(np.tile(np.arange(4), (2, 1)), logps, np.log(np.array([0.01, 1e-30])))
    counts, ids, kept, rest = trim(scored, 0.89)
    assert counts.tolist() == [2, 4] and ids.tolist() == [0, 1, 0, 1, 2, 3]
    first = np.exp(kept[:2]).sum() + np.exp(rest[0])
    assert math.isclose(first, 1) and math.isclose(np.exp(rest[0]), 0.1)


def test_a_stored_token_takes_few_bytes_and_keeps_the_divergence(tiny, teacher, tmp_path):
    default = LogitsConfig()
    counts = score(tiny, teacher, tmp_path, top_k=default.top_k, mass=default.mass, shard_rows=64)
    sft.train(tiny_sft.job(tiny, tmp_path / "student", num_train_epochs=8))
    online = {"type": "online", "teacher": str(teacher), "dtype": "float32"}
    dense, sparse = (loss_of(logits_job(tiny, tmp_path, tmp_path, source).model_copy(
        update={"model": str(tmp_path / "student" / "model")}))
        for source in (online, {"type": "offline"}))
    assert counts["bytes_per_token"] <= 64
    assert abs(dense - sparse) <= 0.01 * dense


def loss_of(job):
    trainer, _, _ = sft.make_trainer(job)
    batch = trainer.data_collator([{"row": i} for i in range(len(trainer.rows))])
    return trainer.compute_loss(trainer.model, batch).item()


def test_offline_with_many_outcomes_is_the_online_loss(tiny, teacher, stored, tmp_path):
    found = []
    for source, folder in (({"type": "offline"}, stored[0]),
                           ({"type": "online", "teacher": str(teacher), "dtype": "float32"}, None)):
        trainer, _, _ = sft.make_trainer(logits_job(tiny, tmp_path, folder, source, {"beta": 0.5}))
        batch = trainer.data_collator([{"row": i} for i in range(6)])
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        found.append((loss.item(), trainer.model.model.embed_tokens.weight.grad))
    # Storage rounds log-probabilities to steps of about 0.03.
    assert math.isclose(found[0][0], found[1][0], rel_tol=5e-3)
    assert (found[0][1] - found[1][1]).abs().max() <= 0.05 * found[1][1].abs().max()


def test_samples_of_a_block_that_are_held_out_take_their_distributions_with_them(tiny, teacher,
                                                                                 tmp_path):
    blocks = packed(tiny, tmp_path)
    (tmp_path / "stored").mkdir()
    score(blocks, teacher, tmp_path / "stored")
    trainer, _, _ = sft.make_trainer(logits_job(blocks, tmp_path / "out", tmp_path / "stored"))
    whole = trainer.data_collator([{"row": 0}])
    apart = replace(trainer.data_collator, held_out_problems={"sum-1"})
    bearing = whole["labels"][0] != IGNORED
    starts = torch.tensor(np.cumsum([0, *trainer.rows.lengths[0]]))
    second = (torch.arange(len(bearing)) >= starts[1]) & (torch.arange(len(bearing)) < starts[2])
    for is_eval in (False, True):
        batch = apart([{"row": 0, "is_eval": is_eval}])
        assert torch.equal(batch["labels"][0] != IGNORED, bearing & (second == is_eval))
        tails = whole["target_tail_logprob"][second[bearing] == is_eval]
        assert torch.equal(batch["target_tail_logprob"], tails)
        assert trainer.compute_loss(trainer.model, batch).isfinite()


@pytest.mark.parametrize("source", ["offline", "online"])
@pytest.mark.parametrize("flat", [False, True])
def test_the_student_comes_closer_to_the_teacher(tiny, teacher, stored, tmp_path, source, flat):
    given = {"type": "offline"} if source == "offline" else \
        {"type": "online", "teacher": str(teacher), "dtype": "float32"}
    job = logits_job(tiny, tmp_path, stored[0], given, {"cross_entropy": 0.1}, num_train_epochs=8,
                     padding_free=flat)
    sft.train(job)
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    gaps = [line["divergence"] for line in logged if "divergence" in line]
    assert gaps[-1] < 0.5 * gaps[0]
    assert all("cross_entropy" in line for line in logged if "divergence" in line)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(tiny, teacher, tmp_path):
    same = tiny_sft.job(tiny, tmp_path).model_copy(update={"model": str(teacher)})
    method = {"type": "logits", "source": {"type": "online", "teacher": str(teacher),
                                           "dtype": "float32"}}
    recipe = same.sft.model_validate({**same.sft.model_dump(), "method": method})
    trainer, _, _ = sft.make_trainer(same.model_copy(update={"sft": recipe}))
    batch = trainer.data_collator([{"row": i} for i in range(6)])
    assert abs(trainer.compute_loss(trainer.model, batch).item()) < 1e-5


def test_padded_vocabularies_pass_and_different_ones_are_refused_with_the_remedy(tiny):
    ours = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    theirs.add_special_tokens({"additional_special_tokens": ["<|only_the_teacher|>"]})
    check_vocabulary(theirs, ours, "t")
    check_vocabulary(ours, theirs, "t")

    class Swapped:
        all_special_ids, added_tokens_decoder = ours.all_special_ids, {}

        def get_vocab(self):
            swap = {"7": ours.get_vocab()["8"], "8": ours.get_vocab()["7"]}
            return {**ours.get_vocab(), **swap}

    with pytest.raises(UserError, match=r"'7'.*sft.method.type=sequence.*cross_tokenizer"):
        check_vocabulary(Swapped(), ours, "t")

    class Longer(Swapped):
        def get_vocab(self):
            return {**ours.get_vocab(), "a new word": len(ours)}

    with pytest.raises(UserError, match="a new word"):
        check_vocabulary(Longer(), ours, "t")
    with pytest.raises(UserError, match="a new word"):
        check_vocabulary(ours, Longer(), "t")


def test_vllms_flat_log_probabilities_become_the_same_columns(tiny, teacher, monkeypatch):
    config = LogitsConfig(teacher=str(teacher), top_k=4, scorer={"type": "vllm"})
    exact = TransformersScorer(config.model_copy(update={"scorer": LogitsConfig().scorer}), 10 ** 6)
    asked = {}

    class Engine:
        llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: None))

        def __init__(self, **settings):
            asked.update(settings)

        def generate(self, prompts, params):
            return [SimpleNamespace(prompt_logprobs=flat_of(prompt["prompt_token_ids"]))
                    for prompt in prompts]

    def flat_of(ids):
        """What vLLM gives: first the prompt's token with its rank, then the likeliest."""
        every = exact._states([(np.array(ids), np.arange(1, len(ids)))])[0]
        weight = exact.model.get_output_embeddings().weight
        s = torch.log_softmax(every @ weight.T, -1)
        flat = SimpleNamespace(token_ids=[], logprobs=[], ranks=[], start_indices=[0],
                               end_indices=[0])
        for row, token in zip(s, ids[1:], strict=True):
            top = row.topk(4)
            rank = int((row > row[token]).sum()) + 1
            flat.start_indices.append(len(flat.token_ids))
            flat.token_ids += [token, *top.indices.tolist()]
            flat.logprobs += [row[token].item(), *top.values.tolist()]
            flat.ranks += [rank, 1, 2, 3, 4]
            flat.end_indices.append(len(flat.token_ids))
        return flat

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(
        LLM=Engine, SamplingParams=lambda **settings: asked.update(settings)))
    scorer = make_scorer(config, 10 ** 6)
    assert isinstance(scorer, VllmScorer) and asked["prompt_logprobs"] == 4
    assert asked["max_logprobs"] == 4 and asked["enable_prefix_caching"] is False
    rows = read_rows(tiny / "rows.parquet")
    samples = [(rows.ids[i], np.flatnonzero(rows.labels[i] != IGNORED)) for i in range(3)]
    with torch.no_grad():
        for ours, theirs in zip(scorer(samples), exact(samples), strict=True):
            assert np.array_equal(ours.ids, theirs.ids)
            assert np.allclose(ours.logps, theirs.logps, atol=1e-5)
            assert np.allclose(np.exp(ours.tail_logprob), np.exp(theirs.tail_logprob), atol=1e-5)


def test_the_stages_hand_the_teachers_distributions_to_training(tiny, teacher, tmp_path):
    from pipeline.config.sft import SftConfig
    from stages import logits as scoring
    from stages import sft as training

    student, pack = tmp_path / "student", tmp_path / "pack"
    student.mkdir(), pack.mkdir()
    teacher = shutil.copytree(teacher, tmp_path / "teacher")
    (teacher / "chat_template.jinja").unlink()      # a base model scores as well as any
    for name in ("model", "tokenizer"):
        (student / name).symlink_to(tiny / name)
    (pack / "rows.parquet").symlink_to(tiny / "rows.parquet")
    recipe = {"method": {"type": "logits"}, "held_out": 0,
              "trainer": {"max_steps": 2, "per_device_train_batch_size": 4}}
    experiment = SimpleNamespace(sft=SftConfig.model_validate(recipe), seed=0,
                                 logits=LogitsConfig(teacher=str(teacher)),
                                 runtime=Runtime())
    assert STAGES["sft"].needs(experiment) == ("student", "pack", "logits")
    inputs = {"student": student, "pack": pack, "logits": tmp_path / "logits"}
    inputs["logits"].mkdir(), (tmp_path / "out").mkdir()
    scoring.check(experiment)
    counts = scoring.run(experiment, inputs, inputs["logits"])
    assert "bytes each" in scoring.summary(counts)
    assert training.run(experiment, inputs, tmp_path / "out")["steps"] == 2
    plain = SimpleNamespace(sft=SftConfig())
    assert STAGES["sft"].needs(plain) == ("student", "pack")


@pytest.mark.parametrize(("settings", "said"), [
    ({}, "logits.teacher is empty"),
    ({"teacher": "t", "scorer": {"type": "vllm"}, "temperature": 2.0}, "temperature 1 only")])
def test_scoring_that_cannot_work_is_refused_before_any_work(settings, said):
    from stages import logits as scoring

    with pytest.raises(UserError, match=said):
        scoring.check(SimpleNamespace(runtime=Runtime(),
                                      logits=LogitsConfig.model_validate(settings)))
