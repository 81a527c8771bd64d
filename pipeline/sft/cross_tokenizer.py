"""Learns from a teacher with another tokenizer: `sft.method.type=cross_tokenizer`.

Both tokenizers are aligned by bytes, as in TRL's GOLDTrainer (ULD, arXiv 2402.12030, extended).
Where both split the trace at the same byte, both models predict from the same text, and each of the
teacher's tokens counts for the student's token that it begins with: a teacher's ".\\n" is the
student's "." if the student writes the line's end by itself. A place is compared if the trace's own
next tokens begin alike so; elsewhere the trace's token teaches by its cross-entropy. What GOLD does
beyond it is left out: sorted probabilities of tokens that only one has, and products over several
tokens. With equal tokenizers it is the loss of `logits` with an online teacher.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pipeline.config.sft import CrossTokenizerMethod
from pipeline.errors import UserError
from pipeline.sft.divergence import Dense, Groups, LossWeights, distillation_loss
from pipeline.sft.teacher_scorer import hidden_states, load_teacher, output_layer
from pipeline.student.template import encode, encode_all
from pipeline.student.token_rows import IGNORED
from pipeline.student.tokenizer import bare_tokenizer


@dataclass(frozen=True)
class Aligned:
    """A sample's ids to the teacher, and positions of the same next token to each of the two."""

    ids: list[int]
    ours: np.ndarray
    theirs: np.ndarray


def byte_tokenizer(model: str, tokenizer: Any = None) -> Any:
    """Return the tokenizer of `model`; raises UserError if it has none, or none over bytes."""
    loaded, tokenizer = tokenizer is None, tokenizer or bare_tokenizer(model)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or "ByteLevel" not in repr((backend.pre_tokenizer, backend.decoder)):
        raise UserError(f"the tokens of {model!r} are no pieces of bytes (ByteLevel), by which "
                        "sft.method.type=cross_tokenizer aligns two tokenizers; set "
                        "sft.method.type=sequence")
    if loaded:      # Qwen's composes accents (NFC), and the whole sample's bytes were others
        backend.normalizer = None
    return tokenizer


class Aligner:
    """Reads a student's samples as the teacher does; `into` are the student's ids by the teacher's.

    The teacher reads the prompt as the student's template wrote it.
    """

    def __init__(self, student: Any, teacher: Any):
        self.student, self.teacher = student, teacher
        self.end = teacher.eos_token_id
        self.into = first_tokens(student, teacher)
        first = teacher("a")["input_ids"][0]
        self.start = [first] if first == teacher.bos_token_id else []
        self.widths = [byte_widths(tokenizer) for tokenizer in (student, teacher)]

    def groups(self, outcomes: int, vocabulary: int, device: Any) -> Groups:
        """The teacher's `outcomes` by the tokens of a student that has `vocabulary` of its own."""
        ids = np.unique(self.into[self.into >= 0])
        of = np.full(outcomes, len(ids))
        known = self.into[:outcomes]
        of[:len(known)] = np.where(known >= 0, np.searchsorted(ids, known), len(ids))
        return Groups(torch.from_numpy(ids).to(device), torch.from_numpy(of).to(device),
                      bool((of == len(ids)).any()) and len(ids) < vocabulary)

    def __call__(self, ids: list[int], labels: np.ndarray) -> Aligned:
        """Align one sample of token ids with its labels (IGNORED: no loss)."""
        trained = np.flatnonzero(labels != IGNORED)
        first, end = (int(trained[0]), int(trained[-1]) + 1) if len(trained) else (len(ids),) * 2
        ended = end > first and ids[end - 1] == self.student.eos_token_id and self.end is not None
        prompt, body = ids[:first], ids[first:end - ended]
        start = encode(self.teacher, self._text(prompt))
        if start[:1] != self.start:
            start = self.start + start
        text = self._text(body)
        more = encode(self.teacher, text)
        ours, theirs = (np.cumsum([0, *(widths[i] for i in part)]) for widths, part in
                        zip(self.widths, (body, more), strict=True))
        mine = its = np.empty(0, np.int64)
        if ours[-1] == theirs[-1] == len(text.encode()):    # else a broken letter was replaced
            mine, its = np.intersect1d(ours[:len(body) + ended], theirs[:len(more) + ended],
                                       return_indices=True)[1:]
        read = start + more + [self.end] * ended
        mine, its = first + mine, len(start) + its
        kept = (labels[mine] != IGNORED) & (self.into[np.array(read, int)[its]]
                                            == np.array(ids, int)[mine])
        return Aligned(read, mine[kept], its[kept])

    def _text(self, ids: list[int]) -> str:
        return self.student.decode(ids, skip_special_tokens=False,
                                   clean_up_tokenization_spaces=False)


def first_tokens(student: Any, teacher: Any) -> np.ndarray:
    """Return [teacher's ids] the student's token that each one's text begins with, or -1."""
    ours, theirs, added = student.get_vocab(), teacher.get_vocab(), teacher.get_added_vocab()
    same = ours == theirs
    into = np.full(max(theirs.values()) + 1, -1)
    byte = {letter: value for value, letter in bytes_to_unicode().items()}
    texts = dict[int, str]()
    for token, index in theirs.items():
        into[index] = ours.get(token, -1)       # broken letters and control tokens
        if same or token in added:
            continue
        with contextlib.suppress(UnicodeDecodeError, KeyError):
            texts[index] = bytes(byte[letter] for letter in token).decode()
    for index, found in zip(texts, encode_all(student, list(texts.values())), strict=True):
        into[index] = found[0] if found else -1
    if teacher.eos_token_id is not None:
        into[teacher.eos_token_id] = student.eos_token_id
    return into


def byte_widths(tokenizer: Any) -> dict[int, int]:
    """Return how many bytes of text each token of a byte-level tokenizer is."""
    letters = set(bytes_to_unicode().values())      # one stands for a byte
    return {index: len(token) if letters.issuperset(token) else len(token.encode())
            for token, index in tokenizer.get_vocab().items()}


class CrossTokenizerLoss:
    """Computes the loss of a batch, summed over its trained tokens, as DistillationLoss does."""

    def __init__(self, method: CrossTokenizerMethod, tokenizer: Any):
        self.align = Aligner(byte_tokenizer("the student", tokenizer),
                             byte_tokenizer(method.teacher))
        self.teacher = load_teacher(method.teacher, method.dtype)
        self.weights = LossWeights(method.beta, method.temperature, method.cross_entropy)
        self.groups: Groups | None = None

    def __call__(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        labels = inputs.pop("labels").flatten()
        samples = [(start, self.align(ids, kept)) for start, ids, kept in split(inputs, labels)]
        states = hidden_states(model, inputs).flatten(0, 1)
        device, head = states.device, output_layer(model)
        ours = torch.from_numpy(np.concatenate([at + found.ours for at, found in samples]))
        ours = ours.to(device)
        loss, gap, nll, _ = distillation_loss(
            states[ours - 1], *head, labels[ours],
            self._signal([found for _, found in samples], device, len(head[0])), self.weights)
        # A student that is taught only where both split alike writes \box{ for \boxed{: of Qwen's
        # "boxed" it learns its own "box", and nothing teaches what follows.
        alone = labels != IGNORED
        alone[ours] = False
        alone = alone.nonzero()[:, 0]
        more = distillation_loss(states[alone - 1], *head, labels[alone], None,
                                 replace(self.weights, cross_entropy=1.0))[0]
        metrics = {"divergence": gap, "aligned": gap.new_tensor(float(len(ours)))}
        if self.weights.cross_entropy:
            metrics["cross_entropy"] = nll + more.detach()
        return loss + more, metrics

    @torch.no_grad()
    def _signal(self, samples: list[Aligned], device: Any, vocabulary: int) -> Dense:
        """The teacher's distributions at the aligned tokens of `samples`."""
        rows = [torch.tensor(sample.ids) for sample in samples]
        inputs = {"input_ids": pad_sequence(rows, True).to(device), "attention_mask": pad_sequence(
            [torch.ones_like(row) for row in rows], True).to(device)}
        states = hidden_states(self.teacher, inputs)
        found = [states[row, torch.from_numpy(sample.theirs).to(device) - 1]
                 for row, sample in enumerate(samples)]
        weight, bias = output_layer(self.teacher)
        if self.groups is None:
            self.groups = self.align.groups(len(weight), vocabulary, device)
        return Dense(torch.cat(found), weight, bias, self.groups)


def split(inputs: dict[str, Any],
          labels: torch.Tensor) -> Iterator[tuple[int, list[int], np.ndarray]]:
    """Yield (place in the flattened batch, token ids, labels) of each sample of a batch."""
    ids, kept = inputs["input_ids"].flatten().tolist(), labels.cpu().numpy()
    if "cu_seq_lens_q" in inputs:
        bounds = list(pairwise(inputs["cu_seq_lens_q"].tolist()))
    else:
        length = inputs["input_ids"].shape[1]
        bounds = [(row * length, row * length + size)
                  for row, size in enumerate(inputs["attention_mask"].sum(1).tolist())]
    for start, end in bounds:
        yield start, ids[start:end], kept[start:end]
