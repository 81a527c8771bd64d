"""What can be said of a trace without judging it: the columns that filter's rules are made of.

Each is computed only where an expression or a rule names it; all are vectorised over a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import polars as pl

from pipeline.curate.words import repetition
from pipeline.errors import UserError

CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]"
LATIN = r"\p{Latin}+"
_OTHER = (r"[\p{L}&&[^\p{Latin}\p{Common}\p{Greek}\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]]+")
_SCRIPTS = {"zh": r"\p{Han}", "ja": r"[\p{Han}\p{Hiragana}\p{Katakana}]", "ko": r"\p{Hangul}",
            "ru": r"\p{Cyrillic}+", "uk": r"\p{Cyrillic}+", "ar": r"\p{Arabic}+",
            "he": r"\p{Hebrew}+", "hi": r"\p{Devanagari}+", "th": r"\p{Thai}+"}
_SCRIPTS |= dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl", "vi", "tr"), LATIN)
_MARKUP = r"\$[^$]*\$|\\\([^)]*\\\)|\\[A-Za-z]+|`[^`]*`"
_BOX = r"\\boxed\{.*\}"
SUMMARY_WORDS = 5

_thinking = pl.col("thinking").fill_null("")
_answer = pl.col("answer").fill_null("")


def _language_share(language: str) -> pl.Expr:
    """Share of the thinking's words in the script of `language` (1 where there are none).

    After the language-consistency reward of DeepSeek-R1 (arXiv 2501.12948, 2.3.2). Scripts tell
    languages apart, so English with Chinese is seen and English with German is not. Formulas and
    Greek letters count for nothing; a CJK character counts as a word.
    """
    if language not in _SCRIPTS:
        raise UserError(f"filter.language={language!r} is not known; "
                        f"there are {', '.join(sorted(_SCRIPTS))}")
    prose = _thinking.str.replace_all(_MARKUP, " ")
    words = pl.sum_horizontal(prose.str.count_matches(p).cast(pl.Float64)
                              for p in (LATIN, CJK, _OTHER))
    right = prose.str.count_matches(_SCRIPTS[language])
    return pl.when(words == 0).then(1.0).otherwise(right / words)


def _thinking_tokens(language: str) -> pl.Expr:
    """The thinking's share of the completion's tokens, by characters: an estimate."""
    part, whole = _thinking.str.len_chars(), _answer.str.len_chars()
    share = part.cast(pl.Float64) / (part + whole).cast(pl.Float64).replace(0.0, 1.0)
    return (pl.col("completion_tokens") * share).round().cast(pl.Int64)


def _has_summary(language: str) -> pl.Expr:
    """Whether the answer says anything besides the boxed result (SUMMARY_WORDS words or more)."""
    return _answer.str.replace_all(_BOX, " ").str.count_matches(r"\w+") >= SUMMARY_WORDS


def _longest_paragraph(language: str) -> pl.Expr:
    """Characters of the thinking's longest stretch without an empty line."""
    return _thinking.str.split("\n\n").list.eval(pl.element().str.len_chars()).list.max()


def _repetition(language: str) -> pl.Expr:
    """Share of the completion's 20-word runs that came before in it; see shingles.repetition."""
    def shares(texts: pl.Series) -> pl.Series:
        return pl.Series(texts.name, repetition(texts.to_list()), pl.Float64)

    return (_thinking + "\n" + _answer).map_batches(shares, return_dtype=pl.Float64)


FEATURES: dict[str, Callable[[str], pl.Expr]] = {
    "thinking_chars": lambda language: _thinking.str.len_chars().cast(pl.Int64),
    "answer_chars": lambda language: _answer.str.len_chars().cast(pl.Int64),
    "has_thinking": lambda language: _thinking.str.len_chars() > 0,
    "has_code": lambda language: _thinking.str.contains("```", literal=True),
    "thinking_tokens": _thinking_tokens, "language_share": _language_share,
    "has_summary": _has_summary, "longest_paragraph": _longest_paragraph,
    "repetition": _repetition,
}


def describe(traces: pl.DataFrame, names: Iterable[str], language: str = "en") -> pl.DataFrame:
    """`traces` with the columns of FEATURES that `names` asks for."""
    return traces.with_columns(**{name: FEATURES[name](language) for name in names
                                  if name in FEATURES})
