"""A reward model of a few thousand parameters, trained on made pairs, for tests."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tiny_sft import SHAPE, TEMPLATE, sums

from pipeline.student.tiny import save_tiny

KIND, RUDE = ("kind", "gentle", "warm"), ("rude", "harsh", "cold")
FILLER = ["the", "tree", "stands", "near", "a", "river", "and", "birds", "sing", "all", "day"]


def pairs(count: int, seed: int, kind=KIND, rude=RUDE,
          filler=FILLER) -> list[tuple[str, str, str]]:
    """(problem, the answer that is better, the one that is worse): one has kind words."""
    draw = random.Random(seed)

    def text(words):
        out = draw.choices(filler, k=draw.randint(3, 12))
        for _ in range(draw.randint(1, 3)):
            out.insert(draw.randrange(len(out)), draw.choice(words))
        return " ".join(out)

    return [(f"Write about thing {draw.randrange(99)}.", text(kind), text(rude))
            for _ in range(count)]


def train(folder: Path, count: int = 300, steps: int = 40, **words) -> Path:
    """Save to `folder` a reward model trained on `count` pairs by the Bradley-Terry loss."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

    made = pairs(count, seed=1, **words)
    corpus = [" ".join(parts) for parts in (*sums(40), *made)]
    save_tiny(corpus, SHAPE, TEMPLATE.read_text("utf-8"), 0, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = Qwen3ForSequenceClassification(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_labels=1,
        pad_token_id=tokenizer.pad_token_id))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    draw = random.Random(2)
    for _ in range(steps):
        batch = draw.sample(made, 32)
        texts = [tokenizer.apply_chat_template(
            [{"role": "user", "content": problem}, {"role": "assistant", "content": answer}],
            tokenize=False) for part in (1, 2) for problem, answer in
            ((one[0], one[part]) for one in batch)]
        rows = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        better, worse = model(**rows).logits[:, 0].chunk(2)
        loss = -torch.nn.functional.logsigmoid(better - worse).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
