"""The model behind filter.llm_judge and `limbeck judge --llm-model`, asked through the trace store.

Its replies lie beside the teacher's traces under keys of their own, so nothing is asked twice, and
the teacher's client, prices and budget serve here too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.completion import Messages
from pipeline.config.teacher import JudgeRuntime, LLMJudgeConfig


@dataclass
class LLMJudgeClient:
    """Replies of `model` to chats. With `spend` off only those of the store `traces` are used."""

    model: LLMJudgeConfig
    runtime: JudgeRuntime
    traces: Path
    spend: bool = True
    counts: dict[str, Any] = field(default_factory=dict)
    """asked now, failed, tokens and dollars of all replies used, and dollars spent now."""

    def __call__(self, chats: Sequence[Messages]) -> list[str]:
        """A reply for each chat, "" where none came or it was cut off."""
        from pipeline.teacher import Outcome, Request, TraceStore

        requests = [Request(str(i), 0, chat) for i, chat in enumerate(chats)]
        with TraceStore(self.traces) as store:
            missing = store.missing(requests, self.model, self.model.sampling)
            outcome = self._ask(requests, len(missing), store) if missing and self.spend else \
                Outcome()
            found = store.collect(requests, self.model, self.model.sampling)
        self.counts = {"asked": outcome.asked, "failed": outcome.failed,
                       "completion_tokens": int(found["completion_tokens"].sum()),
                       "cost_usd": float(found["cost_usd"].sum()),
                       "spent_now_usd": outcome.cost_usd}
        whole = found.filter(found["finish_reason"] != "length")
        replies = dict(whole.select("problem_id", "answer").iter_rows())
        return [replies.get(request.problem_id) or "" for request in requests]

    def _ask(self, requests: list[Any], missing: int, store: Any) -> Any:
        """The outcome of asking for what is missing; an endpoint that is dead is one sentence."""
        from pipeline.progress import progress
        from pipeline.teacher import Outcome, generate
        from pipeline.teacher.ask import explain
        from pipeline.teacher.failures import UnansweredError

        try:
            with progress("asking the LLM judge", missing) as advance:
                outcome = generate(requests, teacher=self.model, sampling=self.model.sampling,
                                   runtime=self.runtime, store=store, on_progress=advance)
        except UnansweredError as error:
            print(f"judge: {error}; what it was to decide stays cannot_judge", file=sys.stderr)
            return Outcome(asked=missing, failed=missing)
        explain(outcome, "LLM judge")
        return outcome
