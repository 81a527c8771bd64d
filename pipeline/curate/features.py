"""Features of a trace that need no judge: columns for filter.keep and filter's rules.

FEATURES is the one list of them. A new feature is a function here and a line there. Each is
computed only if an expression or a rule names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import polars as pl

from pipeline.curate.language_share import check_languages, reflection_pattern, rivals, share_in
from pipeline.curate.scripts import LATIN, SCRIPTS, WORD_PER_CHARACTER, pattern
from pipeline.curate.words import repetition
from pipeline.errors import UserError

LANGUAGES = sorted(language for language in SCRIPTS if language != "el")
"""Those that filter.language may name: Greek letters are mathematics in a trace."""
_OTHER = (r"[\p{L}&&[^\p{Latin}\p{Common}\p{Greek}\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]]+")
_WORDS = (pattern(LATIN), pattern(WORD_PER_CHARACTER), _OTHER)
_MARKUP = r"\$[^$]*\$|\\\([^)]*\\\)|\\[A-Za-z]+|`[^`]*`"
_BOX = r"\\boxed\{.*\}"
SUMMARY_WORDS = 5

_thinking = pl.col("thinking").fill_null("")
_answer = pl.col("answer").fill_null("")


def _language_share(language: str, *others: str) -> pl.Expr:
    """Share of the thinking's words in `language` (1 if it has no words).

    After the language-consistency reward of DeepSeek-R1 (arXiv 2501.12948, 2.3.2). By script, and
    inside one script against `others`. Formulas, code and Greek letters are ignored. Raises
    UserError if a language is unknown.
    """
    if language not in LANGUAGES:
        raise UserError(f"filter.language={language!r} is not known; "
                        f"there are {', '.join(LANGUAGES)}")
    check_languages(language, others, "filter.languages")
    prose = _thinking.str.replace_all(_MARKUP, " ")
    words = pl.sum_horizontal(prose.str.count_matches(word).cast(pl.Float64) for word in _WORDS)
    in_script = prose.str.count_matches(pattern(SCRIPTS[language]))
    share = pl.when(words == 0).then(1.0).otherwise(in_script / words)
    if not rivals(language, others):
        return share
    return share * _thinking.map_elements(lambda text: share_in(text, language, others),
                                          return_dtype=pl.Float64)


def _reflections(*languages: str) -> pl.Expr:
    """Times that the thinking stops and looks again, in any of `languages`."""
    found = reflection_pattern(languages)
    return _thinking.map_elements(lambda text: len(found.findall(text)), return_dtype=pl.Int64)


def _thinking_tokens(*languages: str) -> pl.Expr:
    """Tokens of the thinking, estimated by its share of the completion's characters."""
    thinking, answer = _thinking.str.len_chars(), _answer.str.len_chars()
    share = thinking.cast(pl.Float64) / (thinking + answer).cast(pl.Float64).replace(0.0, 1.0)
    return (pl.col("completion_tokens") * share).round().cast(pl.Int64)


def _has_summary(*languages: str) -> pl.Expr:
    """Whether the answer has SUMMARY_WORDS or more words besides the boxed result."""
    return _answer.str.replace_all(_BOX, " ").str.count_matches(r"\w+") >= SUMMARY_WORDS


def _longest_paragraph(*languages: str) -> pl.Expr:
    """Characters of the thinking's longest paragraph."""
    return _thinking.str.split("\n\n").list.eval(pl.element().str.len_chars()).list.max()


def _repetition(*languages: str) -> pl.Expr:
    """Share of the completion's 20-word runs that occurred before in it (words.repetition)."""
    def shares(texts: pl.Series) -> pl.Series:
        return pl.Series(texts.name, repetition(texts.to_list()), pl.Float64)

    return (_thinking + "\n" + _answer).map_batches(shares, return_dtype=pl.Float64)


class Feature(NamedTuple):
    """A column's type, and its expression for filter.language and those of filter.languages."""

    dtype: Any
    expression: Callable[..., pl.Expr]


FEATURES: dict[str, Feature] = {
    "thinking_chars": Feature(pl.Int64, lambda *_: _thinking.str.len_chars().cast(pl.Int64)),
    "answer_chars": Feature(pl.Int64, lambda *_: _answer.str.len_chars().cast(pl.Int64)),
    "thinking_tokens": Feature(pl.Int64, _thinking_tokens),
    "has_thinking": Feature(pl.Boolean, lambda *_: _thinking.str.len_chars() > 0),
    "has_code": Feature(pl.Boolean, lambda *_: _thinking.str.contains("```", literal=True)),
    "has_summary": Feature(pl.Boolean, _has_summary),
    "longest_paragraph": Feature(pl.Int64, _longest_paragraph),
    "language_share": Feature(pl.Float64, _language_share),
    "repetition": Feature(pl.Float64, _repetition),
    "reflections": Feature(pl.Int64, _reflections),
}


def add_features(traces: pl.DataFrame, names: Iterable[str], *languages: str) -> pl.DataFrame:
    """`traces` with those of `names` that are features as columns; English if no language is named.
    """
    return traces.with_columns(**{name: FEATURES[name].expression(*(languages or ("en",)))
                                  for name in names if name in FEATURES})
