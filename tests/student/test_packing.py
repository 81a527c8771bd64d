"""Packing: masks, over-long rows, best-fit blocks, and that no row sees its neighbour."""

import json
import os
import random
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import NAMES, tokenizer_of

from pipeline import tables as records
from pipeline.config.problems import PrepareConfig
from pipeline.config.sft import SftConfig
from pipeline.config.student import PackConfig
from pipeline.errors import UserError
from pipeline.student import packing as pack
from pipeline.student.packing import (
    Packer,
    attention_balance,
    best_fit,
    block_tables,
    check_mask,
    table,
)
from pipeline.student.token_rows import IGNORED, position_ids, read_rows
from pipeline.student.tokenizer import on_every_core
from stages import pack as stage

CHATS = {"p": [{"role": "user", "content": "What is 12 + 30?"}]}


def traces(thinkings, answers=None):
    rows = [{"problem_id": "p", "sample": i, "thinking": t, "answer": a} for i, (t, a) in
            enumerate(zip(thinkings, answers or ["\\boxed{42}"] * len(thinkings), strict=True))]
    return pl.DataFrame(rows)


def token_rows(kept, tokenizer, max_tokens, too_long="drop"):
    """(frame, counts) of the rows that the stage makes of `kept`."""
    tally = Packer(max_tokens)
    rows = tally.rows_of(kept.iter_rows(named=True), CHATS, tokenizer, too_long, lambda n: None)
    return table(list(rows)), tally.counts()


def test_rows_encoded_together_are_those_encoded_one_by_one(monkeypatch):
    tokenizer, asked = tokenizer_of("qwen2_5"), []
    kept = traces([f"step {i} <|im_end|> \ufdd0 so" for i in range(7)])
    whole, _ = token_rows(kept, tokenizer, 4096)
    encode = type(tokenizer)._encode_plus
    monkeypatch.setattr(type(tokenizer), "_encode_plus", lambda self, text, **kwargs: (
        asked.append(len(text)), encode(self, text, **kwargs))[1])
    for characters, calls in ((1, 7), (100, 2), (10_000, 1)):
        monkeypatch.setattr(pack, "ENCODED_CHARACTERS", characters)
        asked.clear()
        assert token_rows(kept, tokenizer, 4096)[0].equals(whole)
        assert len(asked) == calls


def test_only_pack_encodes_on_every_core(monkeypatch):
    for before in ("false", None):
        if before is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        with pytest.raises(KeyError), on_every_core():
            assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
            raise KeyError
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_every_second_trace_is_asked_for_by_its_own_length_if_so_wanted():
    tokenizer = tokenizer_of("base")
    rows = list(Packer(4096, name_length=True).rows_of(
        traces(["so it is"] * 4).iter_rows(named=True), CHATS, tokenizer, "drop", lambda n: None))
    prompts = [tokenizer.decode([i for i, loss in zip(ids, mask, strict=True) if not loss])
               for _, _, ids, mask in rows]
    length = sum(rows[0][3])
    assert [f"Think for {length} tokens." in prompt for prompt in prompts] == [False, True] * 2
    assert {sum(mask) for *_, mask in rows} == {length}


@pytest.mark.parametrize("name", NAMES)
def test_every_row_trains_its_completion_and_its_end_of_turn(name):
    tokenizer = tokenizer_of(name)
    made, counts = token_rows(traces(["12 + 30 = 42.", "check"]), tokenizer, 4096)
    assert counts["rows"] == 2 == len(made)
    for ids, mask in made.select("input_ids", "completion_mask").rows():
        check_mask(ids, mask, tokenizer.eos_token_id, "p#0")
        assert ids[-1] == tokenizer.eos_token_id and mask[-1] == 1 and 0 < sum(mask) < len(mask)


@pytest.mark.parametrize(("ids", "mask"), [
    ([1, 2, 9], [0, 0, 0]), ([1, 2, 9], [1, 1, 1]), ([1, 2, 9], [0, 1, 0]), ([1, 2, 3], [0, 1, 1]),
    ([1, 2, 9], [0, 1]), ([], [])])
def test_a_wrong_or_empty_mask_is_refused(ids, mask):
    with pytest.raises(UserError, match="p#3"):
        check_mask(ids, mask, 9, "p#3")


def test_a_long_trace_is_dropped_whole_and_counted():
    tokenizer = tokenizer_of("qwen3")
    made, counts = token_rows(traces(["7 " * 16000, "42"]), tokenizer, 4096)
    assert counts["too_long"] == 1 and counts["rows"] == 1 and counts["longest"] <= 4096
    assert made["sample"].to_list() == [1]
    for ids in made["input_ids"]:
        assert "\\boxed{42}" in tokenizer.decode(ids) and ids[-1] == tokenizer.eos_token_id


def test_a_long_trace_is_split_when_asked_and_loses_no_token():
    tokenizer = tokenizer_of("qwen3")
    whole, _ = token_rows(traces(["7 " * 16000]), tokenizer, 1 << 20)
    made, counts = token_rows(traces(["7 " * 16000]), tokenizer, 4096, "split")
    assert counts["too_long"] == 1 and counts["pieces"] == len(made) > 3
    pieces = made["input_ids"].to_list()
    assert all(one[-1] == two[0] for one, two in pairwise(pieces))
    joined = pieces[0] + [token for ids in pieces[1:] for token in ids[1:]]
    assert joined == whole["input_ids"][0].to_list()
    assert max(map(len, made["input_ids"])) <= 4096
    assert counts["loss_tokens"] == sum(whole["completion_mask"][0])


def test_every_piece_can_be_trained_on_and_each_trained_token_is_trained_once(tmp_path):
    tokenizer = tokenizer_of("qwen3")
    kept = traces(["7 " * 600])
    whole, wanted = token_rows(kept, tokenizer, 1 << 20)
    ids, size = whole["input_ids"][0].to_list(), wanted["longest"]
    for longest in (size - 1, *range(size // 3 - 3, size // 3 + 3)):
        made, counts = token_rows(kept, tokenizer, longest, "split")
        made.write_parquet(tmp_path / "rows.parquet")
        rows = read_rows(tmp_path / "rows.parquet")
        trained = [token for labels in rows.labels for token in labels[labels != IGNORED].tolist()]
        assert trained == ids[-wanted["loss_tokens"]:]
        assert counts["loss_tokens"] == wanted["loss_tokens"]


def test_a_trace_without_an_answer_makes_no_row_and_is_counted():
    made, counts = token_rows(traces(["a", "b", "c"], ["42", None, " "]),
                               tokenizer_of("qwen3"), 4096)
    assert len(made) == 1 and counts["without_answer"] == 2


def test_nothing_to_train_on_is_one_sentence():
    with pytest.raises(UserError, match=r"pack\.max_tokens=16"):
        token_rows(traces(["7 " * 100]), tokenizer_of("qwen3"), 16)


@given(st.lists(st.integers(1, 64), max_size=200))
@settings(max_examples=100)
def test_best_fit_places_every_row_once_and_never_overfills(lengths):
    blocks = best_fit(lengths, 64)
    assert sorted(i for block in blocks for i in block) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in block) <= 64 for block in blocks)
    filled = sorted(sum(lengths[i] for i in block) for block in blocks)
    assert len(filled) < 2 or filled[0] + filled[1] > 64


def test_best_fit_fills_blocks_of_trace_like_lengths_to_99_5_percent():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(8.6, 0.8, 20000).astype(int), 64, 16384)
    blocks = best_fit(lengths, 16384)
    assert lengths.sum() / (len(blocks) * 16384) >= 0.995


def test_best_fit_refuses_what_fits_nowhere():
    with pytest.raises(ValueError, match="between 1 and 8"):
        best_fit([3, 9], 8)


def test_position_ids_begin_again_with_every_row():
    assert position_ids([3, 1, 2]).tolist() == [0, 1, 2, 0, 0, 1]
    assert position_ids([]).tolist() == []
    assert attention_balance([[2, 2], [4]]) == pytest.approx((8 + 16) / 2 / 16)


def test_blocks_hold_every_token_of_their_rows_in_windows_too(monkeypatch):
    monkeypatch.setattr(pack, "WINDOW_TOKENS", 300)
    rng = random.Random(0)
    rows = [(f"p{i}", i, [rng.randrange(99) for _ in range(n)], [0] + [1] * (n - 1))
            for i, n in enumerate(rng.randint(2, 50) for _ in range(60))]
    shape = {}
    tables = [records.Block.validate(t, cast=True) for t in block_tables(iter(rows), 64, shape)]
    assert len(tables) > 3 and shape["blocks"] == sum(map(len, tables))
    found = {}
    for problems, samples, ids, mask, lengths in pl.concat(tables).select(
            "problem_id", "sample", "input_ids", "completion_mask", "seq_lengths").rows():
        assert len(ids) == len(mask) == sum(lengths) <= 64 and len(problems) == len(lengths)
        start = 0
        for problem, sample, length in zip(problems, samples, lengths, strict=True):
            found[problem, sample] = ids[start:start + length], mask[start:start + length]
            start += length
    assert found == {(p, s): (ids, mask) for p, s, ids, mask in rows}
    assert 0 < shape["fill"] <= 1 and 0 < shape["attention_balance"] <= 1


def test_no_row_of_a_block_sees_its_neighbour():
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)).eval()
    lengths, positions = [7, 5, 9], torch.tensor(position_ids([7, 5, 9]))[None]
    ids = torch.randint(0, 50, (1, 21))
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        changed = ids.clone()
        changed[0, :7] = (changed[0, :7] + 1) % 50
        moved = model(input_ids=changed, position_ids=positions, use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=part[None]).logits[0]
                           for part in ids[0].split(lengths)])
    assert (packed[7:] - moved[7:]).abs().max() <= 1e-5
    assert (packed[:7] - moved[:7]).abs().max() > 1e-3
    assert (packed - alone).abs().max() <= 1e-5


@pytest.fixture
def artifacts(tmp_path):
    """Inputs of the pack stage: three traces of one problem, one of them rejected."""
    problem = {"problem_id": "p", "problem": "What is 12 + 30?", "answer": "42", "kind": "math",
               "source": "s", "split": "problems", "meta": "{}"}
    rows = [{"problem_id": "p", "sample": i, "thinking": "12 + 30 = 42. " * (i + 1),
             "answer": "\\boxed{42}", "finish_reason": "stop", "complete": True,
             "prompt_tokens": 3, "completion_tokens": 9, "cost_usd": 0.0, "seconds": 0.0,
             "model": "m", "score": 1.0, "verdict": "correct", "extracted": "42", "grader": "g",
             "judge_version": "1", "pass_rate": 1.0, "kept": i < 2, "reason": ""}
            for i in range(3)]
    inputs = {name: tmp_path / name for name in ("prepare", "filter", "student")}
    records.write(records.Problem, pl.DataFrame([problem]), inputs["prepare"] / "problems.parquet")
    records.write(records.Judged, pl.DataFrame(rows), inputs["filter"] / "judged.parquet")
    tokenizer_of("qwen3").save_pretrained(inputs["student"] / "tokenizer")
    return inputs


def experiment(**settings):
    return SimpleNamespace(
        name="demo", sft=SftConfig(), pack=PackConfig(**settings), generate=SimpleNamespace(
            prompt="boxed", prompts={}, teacher=SimpleNamespace(type="solver")),
        student=SimpleNamespace(model="tiny"), prepare=PrepareConfig(problems="countdown"))


@pytest.mark.parametrize("packing", [{"type": "none"}, {"type": "best_fit", "block": 512}])
def test_datasets_opens_the_artifact_folder(artifacts, tmp_path, packing):
    from datasets import load_dataset

    out = tmp_path / "out"
    out.mkdir()
    counts = stage.run(experiment(packing=packing), artifacts, out)
    (out / "manifest.json").write_text(json.dumps({"counts": counts}))
    rows = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    packed = packing["type"] == "best_fit"
    assert counts["rows"] == 2 and len(rows) == (1 if packed else 2)
    assert ("seq_lengths" in rows.column_names) == packed
    assert sum(map(len, rows["input_ids"])) == counts["tokens"]
    assert "2 rows" in stage.summary(counts)
