"""An endpoint's top log-probabilities as a scorer: stored with the traces, laid on token rows.

The endpoint splits its text by its own tokenizer. Only where that gives the student's tokens, one
for one, are its outcomes the student's; anything else is refused. Endpoints leave out the end of
the turn, or give one of their own: there the trace's token itself is the whole distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from pipeline.completion import Messages
from pipeline.errors import UserError
from pipeline.sft.target_store import TopKLogprobs
from pipeline.student.template import training_row


class TracesScorer:
    """Scores the token rows of `traces` (TraceStore.collect with top_logprobs) from themselves.

    Of each token the outcomes that the endpoint named, the sampled one among them; those that the
    student cannot tell by their text, and all others, are the rest. UserError, with the remedy,
    where a trace came without log-probabilities or in other tokens than the student's.
    """

    def __init__(self, traces: pl.DataFrame, chats: Mapping[str, Messages], tokenizer: Any):
        self.traces = traces
        self.texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))],
                                            clean_up_tokenization_spaces=False)
        counts = pl.Series(self.texts).value_counts()
        several = set(counts.filter(counts["count"] > 1).to_series(0))
        self.ids = {text: i for i, text in enumerate(self.texts) if text not in several}
        spoken = traces.select("problem_id", "thinking", "answer").iter_rows()
        self.place = {_key(training_row(tokenizer, chats[problem], thinking, answer)[0]): place
                      for place, (problem, thinking, answer) in enumerate(spoken)}

    def __call__(self, samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[TopKLogprobs]:
        return [self._score(ids, ids[places]) for ids, places in samples]

    def _score(self, ids: np.ndarray, own: np.ndarray) -> TopKLogprobs:
        """One sample, whose trained tokens are `own`; K is one more than top_logprobs."""
        trace = self._trace(ids)
        known = self._aligned(trace, own.tolist())
        width = len(trace["top_logprobs"]) // len(trace["token_logprobs"])
        outcomes = np.zeros((len(own), width + 1), np.int64)
        logps = np.full(outcomes.shape, -np.inf, np.float32)
        for row, token in enumerate(own.tolist()):
            named = self._named(trace, row, width, token) if row < known else {token: 0.0}
            likeliest = sorted(named.items(), key=lambda item: -item[1])
            outcomes[row, :len(named)], logps[row, :len(named)] = zip(*likeliest, strict=True)
        with np.errstate(divide="ignore"):
            rest = np.log(np.clip(1 - np.exp(logps.astype(np.float64)).sum(1), 1e-9, 1))
        return TopKLogprobs(outcomes, logps, rest)

    def _trace(self, ids: np.ndarray) -> dict[str, Any]:
        place = self.place.get(_key(ids))
        if place is None:
            raise UserError("a token row is no whole stored trace; set pack.too_long=drop and "
                            "leave runtime.traces as it was for generate")
        trace = self.traces.row(place, named=True)
        if not trace["token_logprobs"]:
            _refuse(trace, "came without log-probabilities; ask an endpoint that gives them "
                           "(`limbeck probe`)")
        return trace

    def _aligned(self, trace: Mapping[str, Any], own: list[int]) -> int:
        """How many tokens of a sample have the endpoint's outcomes: all, or all but the last."""
        theirs = trace["token_ids"] or trace["token_texts"]
        mine = own if trace["token_ids"] else [self.texts[token] for token in own]
        if len(theirs) not in (len(own) - 1, len(own)):
            _refuse(trace, f"has {len(theirs)} tokens at the endpoint and {len(own)} in its row")
        for place, (said, wanted) in enumerate(zip(theirs, mine, strict=False)):
            if said != wanted and place < len(own) - 1:
                _refuse(trace, f"has {said!r} at the endpoint where its row has {wanted!r} "
                               f"(token {place})")
        return len(own) - (theirs[len(own) - 1:] != mine[-1:])

    def _named(self, trace: Mapping[str, Any], row: int, width: int,
               token: int) -> dict[int, float]:
        """{id: log-probability} of the outcomes at `row`, whose sampled token is `token`."""
        part = slice(row * width, (row + 1) * width)
        ids = trace["top_ids"][part] if trace["token_ids"] else \
            [self.ids.get(text) for text in trace["top_texts"][part]]
        named = {i: logp for i, logp in zip(ids, trace["top_logprobs"][part], strict=True)
                 if i is not None and i < len(self.texts)}
        return {**named, token: trace["token_logprobs"][row]}


def _key(ids: Any) -> bytes:
    return np.asarray(ids, np.int64).tobytes()


def _refuse(trace: Mapping[str, Any], why: str) -> None:
    raise UserError(f"trace {trace['problem_id']}#{trace['sample']} {why}; its log-probabilities "
                    "cannot be the student's. Take a teacher with the student's tokenizer and chat "
                    "template, logits.scorer.type=transformers, or sft.method.type=sequence")
