"""A tokenizer in llama.cpp's terms: tokens, their kinds, merges and how text is split first.

Which of llama.cpp's splits a tokenizer has is found by what it does to a text, so that a tokenizer
need not be a known one. Raises UserError for what llama.cpp cannot do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import regex
from gguf import GGUFWriter, TokenType
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pipeline.errors import UserError

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
SPLITS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "qwen2": (False, (rf"{_HEAD}|\p{{N}}{_TAIL}",)),
    "llama-bpe": (True, (rf"{_HEAD}|\p{{N}}{{1,3}}{_TAIL}",)),
    "smaug-bpe": (False, (rf"{_HEAD}|\p{{N}}{{1,3}}{_TAIL}",)),
    "smollm": (False, (r"\p{N}", _GPT2)),
    "gpt-2": (False, (_GPT2,)),
    "superbpe": (False, (r"\p{N}+", r"(?=(\d{3})+(?!\d))"))}
"""Names of llama.cpp's splits: whether a whole piece goes before merges, and the patterns, each of
which splits the pieces that those before it left."""
SAMPLE = ("It's 12345 o'clock, I'LL say\n\n  so:\tΑλφα 東京で3人 naïve—№7 🙂🙂 x=10*(y+2);//ok\r\n"
          "   \\boxed{42}  <think>\nHmm… 1,000,000 – wait 7³!\n</think>end ")
ESCAPED = {ord("\\"): "\\\\", ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


@dataclass
class Vocabulary:
    """What the writer puts under tokenizer.ggml."""

    model: str
    tokens: list[bytes]
    kinds: list[TokenType]
    split: str | None = None
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.split:
            writer.add_tokenizer_pre(self.split)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)


def vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """Express `tokenizer` for a model whose embedding has `rows`, the last of them padding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused("is a slow one, without tokenizer.json", "save it with use_fast=True")
    described = json.loads(backend.to_str())
    core = described["model"]
    size = max(tokenizer.get_vocab().values()) + 1
    if size > rows:
        raise UserError(f"the tokenizer has {size:,} tokens and the model's embedding {rows:,}; "
                        "copy the tokenizer that this checkpoint was trained with beside it")
    kind = core.get("type")
    if kind == "WordPiece" and core.get("continuing_subword_prefix") == "" \
            and _decodes_by(described, "ByteLevel"):
        return Vocabulary("rwkv", *_tokens(tokenizer, rows, _escaped))
    if kind != "BPE":
        raise _refused(f"is of type {kind}", "use a student with byte-level BPE")
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in core["merges"]]
    if not merges:
        raise _refused("has no merges", "a tiny student made by an older limbeck gets a new one "
                       "when its student-KEY folder and those after it are deleted")
    if core.get("byte_fallback") and not _decodes_by(described, "ByteLevel"):
        return _sentencepiece(tokenizer, rows, described, merges)
    if not _decodes_by(described, "ByteLevel"):
        raise _refused("is a BPE that is not byte-level", "use a student whose tokenizer is")
    split = split_name(backend, bool(core.get("ignore_merges")))
    return Vocabulary("gpt2", *_tokens(tokenizer, rows, str.encode), split, merges)


def _refused(why: str, remedy: str) -> UserError:
    return UserError(f"llama.cpp cannot express this tokenizer: it {why}; {remedy}")


def _decodes_by(described: dict, name: str) -> bool:
    decoder = described.get("decoder") or {}
    return name in [decoder.get("type"), *(one["type"] for one in decoder.get("decoders", []))]


def split_name(backend: Any, ignores_merges: bool) -> str:
    """Return llama.cpp's name of the split that `backend` makes of a text."""
    described = json.loads(backend.to_str())
    normal = described.get("normalizer")
    if normal and normal["type"] != "NFC":
        raise _refused(f"normalises text by {normal['type']}", "use a student without that")
    if backend.pre_tokenizer is None:
        raise _refused("splits no text before merging", "use a student whose tokenizer does")
    found = [SAMPLE[start:end] for _, (start, end)
             in backend.pre_tokenizer.pre_tokenize_str(SAMPLE)]
    for name, (whole_first, patterns) in SPLITS.items():
        if whole_first == ignores_merges and found == split_by(patterns, SAMPLE):
            return name
    raise _refused(f"splits text as none of {', '.join(SPLITS)} does (into {found[:8]} …)",
                   "use a student of the Qwen or Llama families")


def split_by(patterns: tuple[str, ...], text: str) -> list[str]:
    """Split `text` by each pattern in turn, as llama.cpp does: matches and what lies between."""
    pieces = [text]
    for pattern in patterns:
        pieces = [part for piece in pieces for part in _matches_and_rest(pattern, piece)]
    return pieces


def _matches_and_rest(pattern: str, text: str) -> list[str]:
    ends = [0, *(place for match in regex.finditer(pattern, text) for place in match.span()),
            len(text)]
    return [text[a:b] for a, b in pairwise(ends) if b > a]


def _tokens(tokenizer: Any, rows: int, spell: Any) -> tuple[list[bytes], list[TokenType]]:
    """Return text and kind of each id; ids that the tokenizer leaves out are unused."""
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for index in range(rows):
        if index in added:
            tokens.append(added[index].content.encode())
            kinds.append(TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED)
        elif index in names:
            tokens.append(spell(names[index]))
            kinds.append(TokenType.NORMAL)
        else:
            tokens.append(f"[PAD{index}]".encode())
            kinds.append(TokenType.UNUSED)
    return tokens, kinds


_BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}


def _escaped(token: str) -> bytes:
    """Spell a token of the tiny student as RWKV's vocabulary does: escaped bytes.

    A byte that is a phrase too is spelt by its number, so that no two spellings are one.
    """
    if regex.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return f"\\x{token[3:5].lower()}".encode()
    return "".join(ESCAPED.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}")
                   for byte in (_BYTE_OF[letter] for letter in token)).encode()


def _sentencepiece(tokenizer: Any, rows: int, described: dict, merges: list[str]) -> Vocabulary:
    """Express a SentencePiece BPE with bytes for the rest, as of Llama 2 and TinyLlama.

    A token's score is the rank of the merge that makes it: llama.cpp merges the best score first.
    """
    tokens, kinds = _tokens(tokenizer, rows, str.encode)
    rank: dict[str, float] = {}
    for place, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), -float(place + 1))
    kinds = [TokenType.BYTE if regex.fullmatch(rb"<0x[0-9A-F]{2}>", token) else kind
             for token, kind in zip(tokens, kinds, strict=True)]
    scores = [rank.get(token.decode(), 0.0 if kind != TokenType.NORMAL else -1e6)
              for token, kind in zip(tokens, kinds, strict=True)]
    return Vocabulary("llama", tokens, kinds, "default", scores=scores)
