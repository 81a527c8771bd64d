"""A rewriting pass over traces, as the post-processing of DeepSeek-R1 (arXiv 2501.12948, 2.3.1).

A model makes a trace readable; what it wrote is judged again, and the original stays beside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from pipeline.config.filter import FilterConfig
from pipeline.curate.features import add_features
from pipeline.expression import compile_expression, names_in
from pipeline.judge.llm import Ask
from pipeline.judge.models.opinion import ask_once, chat
from pipeline.judge.table import judge_traces
from pipeline.prompts import render

PARTS = re.compile(r"\s*#+ *Thinking\s*\n(.+?)\n\s*#+ *Answer\s*\n(.+)", re.DOTALL)
BYTES_PER_TOKEN = 4
ORIGINALS = {"original_thinking": "thinking", "original_answer": "answer"}


class Rewriter:
    """Rewrites the traces that filter.rewrite.when describes; `counts` says what became of them."""

    def __init__(self, config: FilterConfig, ask: Ask) -> None:
        self.config, self.ask = config, ask
        self.counts = Counter(asked_for=0, unreadable=0, judged_worse=0, rewritten=0)

    def __call__(self, judged: pl.DataFrame, problems: pl.DataFrame, pool: Any) -> pl.DataFrame:
        """(problem_id, sample, thinking, answer) of rewritten traces that are judged no worse."""
        rows = self._chosen(judged)
        texts = dict(problems.select("problem_id", "problem").rows())
        made = self._rewritten(rows, texts)
        again = judge_traces(made.select(rows.columns).drop(
            "score", "verdict", "extracted", "grader", "judge_version", "pass_rate"),
            problems, pool) if len(made) else made
        sound = again.filter(again["score"].fill_null(-1) >= made["score"].fill_null(-1))
        self.counts.update(asked_for=len(rows), unreadable=len(rows) - len(made),
                           judged_worse=len(made) - len(sound), rewritten=len(sound))
        return sound.select("problem_id", "sample", "thinking", "answer")

    def _chosen(self, judged: pl.DataFrame) -> pl.DataFrame:
        config = self.config
        assert config.rewrite is not None
        table = add_features(judged, sorted(names_in(config.rewrite.when)), config.language,
                             *config.languages).with_columns(tokens=pl.col("completion_tokens"))
        chosen = compile_expression(config.rewrite.when, table.columns).fill_null(False)
        return judged.filter(table.select(chosen).to_series())

    def _rewritten(self, rows: pl.DataFrame, texts: Mapping[str, str]) -> pl.DataFrame:
        """`rows` with the texts of the model; without those that it did not write in two parts."""
        assert self.config.rewrite is not None
        system = render(self.config.rewrite.prompt)
        chats = [chat(system, problem=texts[row["problem_id"]], thinking=row["thinking"] or "",
                      answer=row["answer"] or "") for row in rows.iter_rows(named=True)]
        found = [PARTS.fullmatch(reply) for reply in ask_once(self.ask, chats)]
        parts = [(part[1].strip(), part[2].strip()) if part else ("", "") for part in found]
        made = rows.with_columns(thinking=pl.Series([one for one, _ in parts], dtype=pl.String),
                                 answer=pl.Series([other for _, other in parts], dtype=pl.String))
        return made.filter(pl.col("thinking") != "", pl.col("answer") != "")


def with_rewrites(batch: pl.DataFrame, rewrites: pl.DataFrame | None) -> pl.DataFrame:
    """`batch` of traces with the texts of `rewrites`, and the original ones in ORIGINALS."""
    if rewrites is None:
        return batch
    new = {name: f"new_{name}" for name in ("thinking", "answer")}
    joined = batch.join(rewrites.rename(new), on=["problem_id", "sample"], how="left",
                        maintain_order="left")
    changed = pl.col("new_answer").is_not_null()
    size = (pl.col("new_thinking").str.len_bytes() + pl.col("new_answer").str.len_bytes())
    return joined.with_columns(
        *(pl.when(changed).then(old).alias(name) for name, old in ORIGINALS.items()),
        *(pl.when(changed).then(text).otherwise(name).alias(name) for name, text in new.items()),
        # What a tokenizer would count is unknown, as of imported traces.
        completion_tokens=pl.when(changed).then((size / BYTES_PER_TOKEN).ceil().cast(pl.Int64))
        .otherwise("completion_tokens")).drop(new.values())
