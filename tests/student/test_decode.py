"""Our decoding loop against transformers' generate."""

from pathlib import Path

import pytest
import torch

from pipeline.config.student import TinyModel
from pipeline.student.decode import decode, pick
from pipeline.student.tiny import build_model, build_tokenizer

TEMPLATE = (Path(__file__).resolve().parents[2] / "prompts/chat_templates/tiny.jinja").read_text()
TOKENIZER = build_tokenizer(["1 and 2 make 3."], 400, TEMPLATE)
END = TOKENIZER.eos_token_id


@pytest.fixture(scope="module")
def model():
    tiny = TinyModel(layers=2, width=32, heads=2, init_std=0.5)
    return build_model(TOKENIZER, tiny, 0).eval()


def prompts(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    return [torch.randint(4, 300, (n,), generator=generator).tolist() for n in lengths]


def test_greedy_rows_equal_generates_whatever_leaves_the_batch(model):
    asked = prompts(24)
    ends = [END, *range(260, 330)]  # many end tokens, so that rows leave at different times
    ours = decode(model, asked, max_tokens=40, temperature=0, eos_token_ids=ends)
    for prompt, row in zip(asked, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                max_new_tokens=40, eos_token_id=ends, pad_token_id=0)
        assert row == theirs[0, len(prompt):].tolist()
    assert len({len(row) for row in ours}) > 3


def test_a_row_ends_with_its_first_end_token_or_at_the_limit(model):
    ends = list(range(4, 120))
    for row in decode(model, prompts(40), max_tokens=12, temperature=1.0, eos_token_ids=ends):
        assert 1 <= len(row) <= 12
        assert not set(row[:-1]) & set(ends) and (row[-1] in ends or len(row) == 12)


def test_the_nucleus_leaves_out_the_tail_and_keeps_the_ratios():
    torch.manual_seed(0)
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(20_000, 1)
    counts = torch.bincount(pick(logits, 1.0, 0.7), minlength=4) / 20_000
    assert counts[2:].sum() == 0 and counts[0] == pytest.approx(0.5 / 0.8, abs=0.02)
    plain = torch.bincount(pick(logits, 1.0, 1.0), minlength=4) / 20_000
    assert plain[3] == pytest.approx(0.05, abs=0.01)
