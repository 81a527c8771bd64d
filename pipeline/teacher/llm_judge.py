"""The model of filter.llm_judge and `limbeck judge --llm-model`, asked like the teacher.

Its replies are kept in the trace store under keys of their own, so nothing is asked twice.
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
    """Replies of `model` to chats; without `spend` only those stored in `traces`."""

    model: LLMJudgeConfig
    runtime: JudgeRuntime
    traces: Path
    spend: bool = True
    counts: dict[str, Any] = field(default_factory=dict)
    """Asked now, failed, tokens and dollars of all replies used, dollars spent now."""

    def __call__(self, chats: Sequence[Messages]) -> list[str]:
        """A reply for each chat, "" if none came or it was truncated."""
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
        complete = found.filter(found["finish_reason"] != "length")
        replies = dict(complete.select("problem_id", "answer").iter_rows())
        return [replies.get(request.problem_id) or "" for request in requests]

    def _ask(self, requests: list[Any], missing: int, store: Any) -> Any:
        """Ask for what is missing; an endpoint that does not answer is one printed sentence."""
        from pipeline.progress import progress
        from pipeline.teacher import Outcome, generate
        from pipeline.teacher.ask import print_problems
        from pipeline.teacher.failures import UnansweredError

        try:
            with progress("asking the LLM judge", missing) as advance:
                outcome = generate(requests, teacher=self.model, sampling=self.model.sampling,
                                   runtime=self.runtime, store=store, on_progress=advance)
        except UnansweredError as error:
            print(f"judge: {error}; its cases stay cannot_judge", file=sys.stderr)
            return Outcome(asked=missing, failed=missing)
        print_problems(outcome, "LLM judge")
        return outcome
