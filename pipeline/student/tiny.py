"""Builds the tiny student: a random small Qwen3 and a tokenizer for its corpus.

Saved as an ordinary Hugging Face checkpoint, for runs without a downloaded model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.config.student import TinyModel

BYTE = "<0x{:02X}>"
END, PAD, USER, ASSISTANT = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"


def build_tokenizer(texts: Iterable[str], size: int, chat_template: str):
    """Build a fast, lossless tokenizer of at most `size` tokens.

    A number is one token, and so is each piece between two numbers that is frequent in `texts`;
    in anything else the longest token is taken, a UTF-8 byte if need be: the one rule for whole
    phrases that llama.cpp knows too (as RWKV's).
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # The thinking tags are ordinary text, for trainers that decode without special tokens.
    special = [PAD, END, USER, ASSISTANT]
    known = special + [BYTE.format(byte) for byte in range(256)]
    known += [str(number) for number in range(100)]
    counts = Counter(piece for text in texts for piece in _pieces(text))
    frequent = [piece for piece, _ in counts.most_common() if piece not in known]
    pieces = (known + frequent)[:size]
    tokenizer = Tokenizer(models.WordPiece(
        vocab=_spelling(pieces, len(special)), unk_token=PAD, continuing_subword_prefix="",
        max_input_chars_per_word=1 << 30))
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECE), "isolated"), as_bytes])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.ByteLevel()])
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD,
                                   chat_template=chat_template, model_max_length=1 << 20,
                                   clean_up_tokenization_spaces=False)


def _spelling(pieces: list[str], first_byte: int) -> dict[str, int]:
    """Spell the tokens `pieces`, of which 256 from `first_byte` on are bytes, as ByteLevel does.

    A byte that is a piece too, such as `7`, keeps the name <0x37> and its place, and is unused.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    spelt = ["".join(letters[byte] for byte in piece.encode()) for piece in pieces]
    text = pieces[:first_byte] + spelt[first_byte + 256:]
    for byte, letter in letters.items():
        spelt[first_byte + byte] = BYTE.format(byte) if letter in text else letter
    return {token: index for index, token in
            enumerate([*pieces[:first_byte], *spelt[first_byte:]])}


_PIECE = r"\d+|</?think>\n*|\n+"


def _pieces(text: str) -> list[str]:
    """Split `text` as the tokenizer's pre-tokenizer does."""
    return [piece for piece in re.split(f"({_PIECE})", text) if piece]


def build_model(tokenizer, tiny: TinyModel, seed: int):
    """Build a Qwen3ForCausalLM with random float32 weights and tied embeddings."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=tiny.width, intermediate_size=2 * tiny.width,
        num_hidden_layers=tiny.layers, num_attention_heads=tiny.heads,
        num_key_value_heads=tiny.heads, head_dim=tiny.width // tiny.heads,
        max_position_embeddings=4096, tie_word_embeddings=True, initializer_range=tiny.init_std,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None)
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def save_tiny(texts: Iterable[str], tiny: TinyModel, chat_template: str, seed: int,
              folder: Path) -> dict[str, int]:
    """Save tokenizer and model to `folder`; returns counts."""
    from pipeline.progress import quiet_libraries

    quiet_libraries()
    tokenizer = build_tokenizer(texts, tiny.vocabulary, chat_template)
    model = build_model(tokenizer, tiny, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": sum(p.numel() for p in model.parameters()), "vocabulary": len(tokenizer)}


def resolve(folder: Path) -> str:
    """Return the checkpoint of a student, sft or rl folder: its `model/`, or a hub id or folder."""
    pointer = folder / "model.txt"
    return pointer.read_text(encoding="utf-8") if pointer.is_file() else str(folder / "model")
