"""Thinking within a budget: ended by force at exactly so many tokens, or lengthened by "Wait".

Budget forcing is s1's (Muennighoff et al., arXiv 2501.19393, section 3.1). It is done between two
samplings, so that every engine does the same: sample up to the budget; if thinking is still open,
append the closing tag; sample the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.completion import CLOSE, OPEN
from pipeline.student.template import encode

Sampler = Callable[[list[list[int]], list[int]], list[list[int]]]
"""Returns a completion of each prompt, each no longer than its limit in tokens."""
WAIT = "Wait"


@dataclass(frozen=True)
class Budget:
    """`thinking` tokens of thinking, at most `answer` tokens after it.

    Thinking that closes earlier goes on after "Wait" up to `waits` times, within the budget.
    """

    thinking: int
    answer: int = 512
    waits: int = 0

    @property
    def most(self) -> int:
        """The longest completion in tokens, but for the tags."""
        return self.thinking + self.answer


class BudgetForcer:
    """Forces budgets on a model whose `tokenizer` and end of turn these are."""

    def __init__(self, tokenizer: Any, eos_token_ids: Sequence[int],
                 prompt_opens_thinking: bool) -> None:
        self.tokenizer, self.ends = tokenizer, set(eos_token_ids)
        self.opened = prompt_opens_thinking
        self.closing = encode(tokenizer, f"\n{CLOSE}\n")
        self.waiting = encode(tokenizer, WAIT)

    @property
    def tags(self) -> int:
        """Tokens that may come on top of a budget: the opening and the closing tag."""
        return len(self.closing) + self._opening()

    def _opening(self) -> int:
        return 0 if self.opened else len(encode(self.tokenizer, f"{OPEN}\n"))

    def sample(self, sampler: Sampler, prompts: list[list[int]],
               budget: Budget) -> list[list[int]]:
        """Return a completion of each prompt whose thinking keeps to `budget`."""
        rows = self._thought(sampler, prompts, budget)
        going = [i for i, row in enumerate(rows) if not self._ended(row)]
        left = [budget.answer - self._answered(rows[i]) for i in going]
        going = [i for i, tokens in zip(going, left, strict=True) if tokens > 0]
        more = sampler([prompts[i] + rows[i] for i in going],
                       [tokens for tokens in left if tokens > 0]) if going else []
        for i, row in zip(going, more, strict=True):
            rows[i] = rows[i] + row
        return rows

    def _thought(self, sampler: Sampler, prompts: list[list[int]],
                 budget: Budget) -> list[list[int]]:
        """Completions up to the end of their thinking, which is closed in every one that has it."""
        rows: list[list[int]] = [[] for _ in prompts]
        open_rows = list(range(len(prompts)))
        for turn in range(budget.waits + 1):
            if not open_rows:
                break
            left = [budget.thinking + self._opening() - len(rows[i]) for i in open_rows]
            more = sampler([prompts[i] + rows[i] for i in open_rows], left)
            still = []
            for i, row in zip(open_rows, more, strict=True):
                rows[i] = rows[i] + row
                if turn < budget.waits and (longer := self._lengthened(rows[i], budget)):
                    rows[i] = longer
                    still.append(i)
            open_rows = still
        return [self._closed(row) for row in rows]

    def _lengthened(self, row: list[int], budget: Budget) -> list[int]:
        """`row` without what follows its thinking, and "Wait"; [] if the budget leaves no room."""
        at = self.closes_at(row)
        kept = row[:at[0]] if at else row[:-1] if self._ended(row) and self._is_thinking(row) \
            else None
        if kept is None or \
                len(kept) + len(self.waiting) >= budget.thinking + self._opening():
            return []
        return kept + self.waiting

    def _closed(self, row: list[int]) -> list[int]:
        """`row` with its thinking closed, if it is still thinking."""
        if not self._is_thinking(row):
            return row
        return (row[:-1] if self._ended(row) else row) + self.closing

    def _is_thinking(self, row: list[int]) -> bool:
        return self.closes_at(row) is None and (
            self.opened or OPEN in self.tokenizer.decode(row))

    def _ended(self, row: list[int]) -> bool:
        return bool(row) and row[-1] in self.ends

    def _answered(self, row: list[int]) -> int:
        """Tokens of the answer that `row` has already."""
        at = self.closes_at(row)
        return len(row) - at[1] if at else 0

    def closes_at(self, row: list[int]) -> tuple[int, int] | None:
        """Start and end, in tokens, of the tag that closes the thinking; None if it is open."""
        if CLOSE not in self.tokenizer.decode(row):
            return None
        end = _first(len(row), lambda n: CLOSE in self.tokenizer.decode(row[:n]))
        start = _first(end, lambda n: CLOSE not in self.tokenizer.decode(row[n:end])) - 1
        return start, end


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest n in 1..most for which `holds`, which stays true from there on."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
