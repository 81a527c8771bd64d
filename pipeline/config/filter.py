"""Which judged traces the student learns from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.judges import Judges
from pipeline.config.load import Config
from pipeline.config.teacher import LLMJudgeConfig, Sampling
from pipeline.errors import UserError

RULES = {
    "mixed_language": "language_share < 0.95",
    "long_paragraph": "longest_paragraph > 4000",
    "code_in_thinking": "has_code",
    "no_summary": "not has_summary",
    "repetition": "repetition > 0.1",
    "cut_off": 'finish_reason == "length" or not complete',
}
"""What filter.rules may name: a trace is rejected if the expression holds, with the rule's name.

What DeepSeek-R1 (arXiv 2501.12948, 2.3.3) left out of its traces, and loops and truncated ones.
The paper gives no thresholds: these keep 19 of 20 sound R1 traces on competition problems.
"""
if TYPE_CHECKING:
    Rule = str
else:
    Rule = Literal[tuple(RULES)]


class SelectAll(Config):
    """Every trace that passes."""

    type: Literal["all"] = "all"


class SelectBest(Config):
    """The n traces of a problem with the highest score, of equals the shortest."""

    type: Literal["best"] = "best"
    n: int = Field(default=1, ge=1)
    """Traces a problem."""


class SelectShortest(Config):
    """The n traces of a problem with the fewest tokens."""

    type: Literal["shortest"] = "shortest"
    n: int = Field(default=1, ge=1)
    """Traces a problem."""


class SelectDiverse(Config):
    """The shortest trace of a problem and those least like the ones taken, by MinHash."""

    type: Literal["diverse"] = "diverse"
    n: int = Field(default=2, ge=1)
    """Traces a problem."""


Selection = Annotated[SelectAll | SelectBest | SelectShortest | SelectDiverse,
                      Field(discriminator="type")]


class SourceRule(Config):
    """Which traces of one source are kept, and how many (from prepare.sources)."""

    keep: str | None = None
    """Expression in the place of filter.keep."""
    rules: list[Rule] | None = None
    """Rules in the place of filter.rules."""
    count: int | None = Field(default=None, ge=1)
    """Traces kept, exactly; too few stop the run."""
    share: float | None = Field(default=None, gt=0)
    """Part of the traces kept, in proportion to the other sources' shares: 3 beside 1, or 0.75
    beside 0.25. It holds exactly: what is too many of a source is left out."""


class ReviewsConfig(Config):
    """Whether what people said in `limbeck view` decides."""

    obey: bool = False
    """Keep what people call good, whatever the judge and the rules say, unless it has no answer or
    is there twice; reject what they call bad; add the traces that they edited."""
    need: int = Field(default=1, ge=1)
    """People who must agree, and be more than those who say the opposite; also for the column
    `review`, which filter.keep may name: "good", "bad", "unsure", or "" where nobody looked."""


class RewriteConfig(LLMJudgeConfig):
    """A model that makes traces readable; runtime.judges.rewrite or llm_judge has its address."""

    when: str = ('verdict == "correct" and (language_share < 0.95 or longest_paragraph > 4000 or '
                 "repetition > 0.1)")
    """Expression over the columns of filter.keep (but pass_rate and difficulty): which traces."""
    prompt: str = "rewrite"
    """What it is told: a name in prompts/ or a path."""
    sampling: Sampling = Sampling(temperature=0.6, max_tokens=16384)
    """Sampling parameters, as generate.sampling."""


class FilterConfig(Config):
    """Which judged traces the student learns from."""

    ADDED: ClassVar[frozenset[str]] = frozenset(
        {"languages", "sources", "total", "reviews", "judges", "rewrite"})
    llm_judge: LLMJudgeConfig | None = None
    """A model, {model: NAME}, that compares answer and gold if the judge's rules abstain; such
    verdicts have the grader `llm`. runtime.llm_judge.base_url is its address."""
    majority: int | None = Field(default=None, ge=2)
    """Judge a problem without a gold (prepare.answer_optional) by the answer that more than half of
    its samples give, and at least N; such verdicts have the grader `majority`."""
    keep: str = 'verdict == "correct"'
    """Expression over the columns of the judged table (tokens, thinking_tokens, pass_rate,
    difficulty, language_share, repetition, has_code, source, ...); a trace is kept if it is
    true."""
    rules: list[Rule] = []
    """Traces that these named rules describe are rejected; RULES in pipeline/config/filter.py says
    what each is."""
    language: str = "en"
    """Language the thinking should be in, for language_share."""
    languages: list[str] = []
    """Languages of the same script that it may be mixed with, as [de, fr]: language_share then
    tells them apart (needs the extra `languages`). Empty: by script alone, so German is English."""
    distinct: bool = True
    """Keep only the first of several identical traces of one problem."""
    near_duplicates: float | None = Field(default=None, gt=0, le=1)
    """Reject a trace whose five-word runs are those of an earlier one to this share (Jaccard)."""
    select: Selection = SelectAll()
    """Which of a problem's remaining traces: all, best, shortest or diverse, with n."""
    per_problem: int | None = Field(default=None, ge=1)
    """Most traces kept of one problem, the shortest first."""
    per_source: int | None = Field(default=None, ge=1)
    """Most traces kept of one source, spread over its problems."""
    reviews: ReviewsConfig = ReviewsConfig()
    """What people said of traces, kept in reviews.jsonl beside the trace store (runtime.traces)."""
    sources: dict[str, SourceRule] = {}
    """By source what prepare.sources says of it: keep, rules, count, share."""
    rewrite: RewriteConfig | None = None
    """Let a model, {model: NAME, when: 'tokens > 8000'}, rewrite traces before the filter decides;
    what it wrote is judged again, and stays out if it is judged worse. The originals are kept in
    the columns original_thinking and original_answer."""
    judges: Judges = {}
    """Of the experiment's `judges` those that an expression here names: each is a column."""
    total: int | None = Field(default=None, ge=1)
    """Traces kept of all sources together, by their shares; too few stop the run."""

    def signs(self) -> bool:
        """Whether traces are compared by their signatures."""
        return self.near_duplicates is not None or self.select.type == "diverse"

    @model_validator(mode="after")
    def _counts_or_shares(self) -> FilterConfig:
        shares = [name for name, rule in self.sources.items() if rule.share is not None]
        counts = [name for name, rule in self.sources.items() if rule.count is not None]
        if shares and (counts or len(shares) < len(self.sources)):
            other = next(name for name in self.sources if name not in shares)
            raise UserError(f"prepare.sources: {shares[0]} has a share and {other} has "
                            f"{'a count' if other in counts else 'none'}; give every source a "
                            "share, or counts alone")
        if self.total is not None and not shares:
            raise UserError("filter.total divides by shares; give each of prepare.sources a share, "
                            "or a count instead of filter.total")
        return self
