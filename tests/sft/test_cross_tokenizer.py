"""A teacher with another tokenizer: aligned by bytes, and with the same one nothing changes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tiny_sft
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pipeline.config.sft import CrossTokenizerMethod
from pipeline.errors import UserError
from pipeline.sft import trainer as sft
from pipeline.sft.cross_tokenizer import Aligner, CrossTokenizerLoss, byte_tokenizer
from pipeline.sft.divergence import Dense, Groups, LossWeights, distillation_loss
from pipeline.student.token_rows import IGNORED, read_rows
from tests.sft.test_sft import packed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_sft.build(tmp_path_factory.mktemp("tiny"), rows=104)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A teacher of the same sums whose tokenizer knows fewer phrases."""
    folder = tmp_path_factory.mktemp("foreign")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_sft, "SHAPE", tiny_sft.SHAPE.model_copy(update={"vocabulary": 362}))
        tiny_sft.build(folder, rows=104)
    return tiny_sft.learnt(folder, folder / "learnt", 8)


def job(folder, out, method, held_out=0, **trainer):
    return tiny_sft.job(folder, out, {"method": {"dtype": "float32", **method},
                                      "held_out": held_out}, **trainer)


def across(teacher, **more):
    return {"type": "cross_tokenizer", "teacher": str(teacher), **more}


def loss_and_gradient(job):
    trainer, _, _ = sft.make_trainer(job)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(
        [{"row": i} for i in range(6)]))
    loss.backward()
    return loss.item(), trainer.model.model.embed_tokens.weight.grad


@pytest.mark.parametrize(("beta", "flat"), [(0.0, False), (0.5, True)])
def test_equal_tokenizers_give_the_loss_of_an_online_teacher(tiny, tmp_path, beta, flat):
    rows = packed(tiny, tmp_path) if flat else tiny
    teacher = tiny_sft.build(tmp_path / "teacher", rows=104, seed=1) / "model"
    online = {"type": "online", "teacher": str(teacher), "dtype": "float32", "temperature": 1.5}
    found = [loss_and_gradient(tiny_sft.job(rows, tmp_path / "out", {"method": {
        "beta": beta, "cross_entropy": 0.2, **method}})) for method in (
            {"type": "logits", "source": online},
            across(teacher, dtype="float32", temperature=1.5))]
    assert math.isclose(found[0][0], found[1][0], rel_tol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-6, rtol=1e-5)


def test_tokens_are_compared_where_both_have_read_the_same_text(tiny, foreign):
    ours, theirs = (AutoTokenizer.from_pretrained(folder)
                    for folder in (tiny / "tokenizer", foreign))
    align, rows = Aligner(ours, theirs), read_rows(tiny / "rows.parquet")
    differ = 0
    for ids, labels in zip(rows.ids, rows.labels, strict=True):
        found = align(ids.tolist(), labels)
        assert ours.decode(ids[:-1]) == theirs.decode(found.ids[:-1])
        assert found.ids[-1] == theirs.eos_token_id
        assert (labels[found.ours] != IGNORED).all() and len(found.ours) == len(found.theirs) > 2
        for mine, its in zip(found.ours, found.theirs, strict=True):
            assert ours.decode(ids[:mine]) == theirs.decode(found.ids[:its])
        assert (found.ours[-1], found.theirs[-1]) == (len(ids) - 1, len(found.ids) - 1)
        differ += len(found.ours) < (labels != IGNORED).sum() or len(found.ids) != len(ids)
    assert differ == len(rows)
    nothing = align(rows.ids[0].tolist(), np.full_like(rows.labels[0], IGNORED))
    assert len(nothing.ours) == 0


@pytest.mark.parametrize(("beta", "width", "unknown"), [
    (0.0, 20, 4), (0.5, 20, 4), (0.5, 20, 0), (1.0, 9, 4)])
def test_the_teachers_tokens_count_together_and_others_are_one_more_outcome(beta, width, unknown):
    torch.manual_seed(0)
    hidden, states = torch.randn(5, 8, requires_grad=True), torch.randn(5, 6)
    weight, matrix = torch.randn(width, 8), torch.randn(30, 6)
    ids = torch.randperm(width)[:9]
    of = torch.cat([torch.arange(9), torch.randint(9, (21 - unknown,)), torch.full((unknown,), 9)])
    rest = bool(unknown) and width > 9
    mix = LossWeights(beta, 1.5, chunk_elements=40)
    loss, *_ = distillation_loss(hidden, weight, None, torch.zeros(5, dtype=torch.long),
                                 Dense(states, matrix, groups=Groups(ids, of, rest)), mix)

    def outcomes(logits, members):
        some = [logits[:, one].logsumexp(1) for one in members[:9 + rest]]
        return torch.stack(some, 1).log_softmax(1)

    others = np.setdiff1d(np.arange(width), ids)
    s = outcomes(hidden @ weight.T / 1.5, [[one] for one in ids.tolist()] + [others])
    t = outcomes(states @ matrix.T / 1.5, [(of == one).nonzero()[:, 0] for one in range(10)])
    m = torch.logaddexp(s + math.log(1 - beta or 1), t + math.log(beta or 1))
    wanted = {0.0: (t.exp() * (t - s)).sum(), 1.0: (s.exp() * (s - t)).sum()}.get(
        beta, (beta * t.exp() * (t - m) + (1 - beta) * s.exp() * (s - m)).sum())
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(x, hidden)[0] for x in (loss, wanted)))


def byte_level(folder, *merged):
    """A tokenizer of single bytes and of the texts `merged`, whose beginnings it has too."""
    letters = list(bytes_to_unicode().values())
    parts = [text[:size] for text in merged for size in range(2, len(text) + 1)]
    merges = list(dict.fromkeys((part[:-1], part[-1]) for part in parts))
    core = Tokenizer(models.BPE({token: index for index, token in enumerate(
        [*letters, *dict.fromkeys(parts), "<end>"])}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    made.save_pretrained(folder)
    return made


def test_a_longer_token_of_the_teacher_counts_for_the_one_that_it_begins_with(tmp_path):
    student, teacher = byte_level(tmp_path / "s", "7"), byte_level(tmp_path / "t", "7.\u010a", "77")
    ids = student.encode("7.\n77 7.")
    align = Aligner(student, teacher)
    found = align(ids, np.array(ids))
    assert teacher.convert_ids_to_tokens(found.ids) == ["7.\u010a", "77", "\u0120", "7."]
    assert [ids[place] for place in found.ours] == student.encode("77 7")
    groups = align.groups(len(teacher), len(student), "cpu")
    [seven] = student.encode("7")
    counted = teacher.convert_ids_to_tokens(
        (groups.ids[groups.of.clamp(max=len(groups.ids) - 1)] == seven).nonzero()[:, 0].tolist())
    assert set(counted) - {"<end>"} == {"7", "7.", "7.\u010a", "77"}
    back = Aligner(teacher, student)(found.ids, np.array(found.ids))
    assert [found.ids[place] for place in back.ours] == teacher.encode(" ")


def test_a_token_that_is_not_compared_teaches_by_its_cross_entropy(tiny, foreign):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    loss = CrossTokenizerLoss(CrossTokenizerMethod(teacher=str(foreign), dtype="float32"),
                              tokenizer)
    model, rows = AutoModelForCausalLM.from_pretrained(tiny / "model"), read_rows(
        tiny / "rows.parquet")
    ids, labels = (torch.tensor(part[3].tolist())[None] for part in (rows.ids, rows.labels))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    total, parts = loss(model, {**inputs, "labels": labels.clone()})
    alone = set(np.flatnonzero(labels[0] != IGNORED)) - set(
        loss.align(ids[0].tolist(), labels[0].numpy()).ours)
    logps = model(**inputs).logits[0].log_softmax(-1)
    assert len(alone) > 2
    torch.testing.assert_close(total - parts["divergence"],
                               -sum(logps[at - 1, ids[0, at]] for at in alone))


def test_the_student_learns_held_out_traces_from_a_foreign_teachers_distributions(tiny, foreign,
                                                                                 tmp_path):
    given = job(tiny, tmp_path, across(foreign), held_out=4, num_train_epochs=2,
                learning_rate=5e-3)
    trainer, _, _ = sft.make_trainer(given)
    batch = trainer.data_collator([{"row": i["row"]} for i in trainer.eval_dataset])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = torch.from_numpy(np.stack([np.pad(
        trainer.rows.labels[i["row"]], (0, inputs["input_ids"].shape[1] - len(
            trainer.rows.labels[i["row"]])), constant_values=IGNORED)
        for i in trainer.eval_dataset]))

    def held_out_loss(model):
        with torch.no_grad():
            return model(**inputs, labels=labels).loss.item()

    sft.train(given)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    shares = [line["aligned"] for line in lines if "aligned" in line]
    assert all(0.3 < share <= 1 for share in shares)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert held_out_loss(after) < 0.8 * held_out_loss(trainer.model)


def test_a_teacher_that_composes_accents_reads_the_same_bytes(tiny, foreign, tmp_path):
    theirs = AutoTokenizer.from_pretrained(foreign)
    theirs.backend_tokenizer.normalizer = normalizers.NFC()
    theirs.save_pretrained(tmp_path)
    ours = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    ids = ours.encode("The cafe\u0301 sum is 7.", add_special_tokens=False)
    found = Aligner(ours, byte_tokenizer(str(tmp_path)))(ids, np.array(ids))
    assert len(found.ours) > 3 and theirs.decode(found.ids) == ours.decode(ids)


def test_a_teacher_without_a_tokenizer_or_with_one_of_another_kind_is_refused_by_name(tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"no tokenizer for '.*bare'"):
        byte_tokenizer(CrossTokenizerMethod(teacher=str(tmp_path / "bare")).teacher)
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "words")
    with pytest.raises(UserError, match=r"words' are no pieces of bytes .*type=sequence"):
        byte_tokenizer(str(tmp_path / "words"))
