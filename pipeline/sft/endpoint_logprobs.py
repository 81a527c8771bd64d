"""Scores token rows by the top log-probabilities that an endpoint returned with the traces.

They are the student's only if the endpoint's tokens equal the student's one for one; anything else
is refused. Endpoints leave out the end of turn or return their own: there the trace's token itself
is the whole distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from pipeline.completion import Messages
from pipeline.errors import UserError
from pipeline.sft.target_store import TopKLogprobs, tail_logprobs
from pipeline.student.template import training_row


class TracesScorer:
    """Scores the token rows of `traces` (TraceStore.collect with top_logprobs) by themselves.

    Outcomes that the endpoint did not name, or whose text stands for no single token, are in the
    tail. Raises UserError if a trace has no log-probabilities or not the student's tokens.
    """

    def __init__(self, traces: pl.DataFrame, chats: Mapping[str, Messages], tokenizer: Any):
        self.traces = traces
        self.texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))],
                                            clean_up_tokenization_spaces=False)
        counts = pl.Series(self.texts).value_counts()
        ambiguous = set(counts.filter(counts["count"] > 1).to_series(0))
        self.id_of_text = {text: i for i, text in enumerate(self.texts) if text not in ambiguous}
        completions = traces.select("problem_id", "thinking", "answer").iter_rows()
        self.trace_index = {
            _key(training_row(tokenizer, chats[problem], thinking, answer)[0]): index
            for index, (problem, thinking, answer) in enumerate(completions)}

    def __call__(self, samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[TopKLogprobs]:
        return [self._score(ids, ids[positions]) for ids, positions in samples]

    def _score(self, ids: np.ndarray, trained: np.ndarray) -> TopKLogprobs:
        """Score one sample with `trained` tokens; K is one more than top_logprobs."""
        trace = self._trace(ids)
        aligned = self._aligned_tokens(trace, trained.tolist())
        width = len(trace["top_logprobs"]) // len(trace["token_logprobs"])
        outcomes = np.zeros((len(trained), width + 1), np.int64)
        logps = np.full(outcomes.shape, -np.inf, np.float32)
        for row, token in enumerate(trained.tolist()):
            named = self._outcomes(trace, row, width, token) if row < aligned else {token: 0.0}
            likeliest = sorted(named.items(), key=lambda item: -item[1])
            outcomes[row, :len(named)], logps[row, :len(named)] = zip(*likeliest, strict=True)
        return TopKLogprobs(outcomes, logps, tail_logprobs(logps))

    def _trace(self, ids: np.ndarray) -> dict[str, Any]:
        index = self.trace_index.get(_key(ids))
        if index is None:
            raise UserError("a token row is not one complete stored trace; set pack.too_long=drop "
                            "and use the same runtime.traces as for generate")
        trace = self.traces.row(index, named=True)
        if not trace["token_logprobs"]:
            raise _mismatch(trace, "came without log-probabilities; use an endpoint that returns "
                                   "them (`limbeck probe`)")
        return trace

    def _aligned_tokens(self, trace: Mapping[str, Any], trained: list[int]) -> int:
        """Count the tokens that have the endpoint's outcomes: all, or all but the last."""
        served = trace["token_ids"] or trace["token_texts"]
        own = trained if trace["token_ids"] else [self.texts[token] for token in trained]
        if len(served) not in (len(own) - 1, len(own)):
            raise _mismatch(trace, f"has {len(served)} tokens at the endpoint and {len(own)} in "
                                   "its row")
        for index, (token, expected) in enumerate(zip(served, own, strict=False)):
            if token != expected and index < len(own) - 1:
                raise _mismatch(trace, f"has {token!r} at the endpoint where its row has "
                                       f"{expected!r} (token {index})")
        return len(own) - (served[len(own) - 1:] != own[-1:])

    def _outcomes(self, trace: Mapping[str, Any], row: int, width: int,
                  token: int) -> dict[int, float]:
        """Return {id: log-probability} of the outcomes at `row`, with the sampled `token`."""
        entries = slice(row * width, (row + 1) * width)
        ids = trace["top_ids"][entries] if trace["token_ids"] else \
            [self.id_of_text.get(text) for text in trace["top_texts"][entries]]
        outcomes = {i: logp for i, logp in zip(ids, trace["top_logprobs"][entries], strict=True)
                    if i is not None and i < len(self.texts)}
        return {**outcomes, token: trace["token_logprobs"][row]}


def _key(ids: Any) -> bytes:
    return np.asarray(ids, np.int64).tobytes()


def _mismatch(trace: Mapping[str, Any], why: str) -> UserError:
    return UserError(f"trace {trace['problem_id']}#{trace['sample']} {why}; its log-probabilities "
                     "are not the student's. Use a teacher with the student's tokenizer and chat "
                     "template, logits.scorer.type=transformers, or sft.method.type=sequence")
