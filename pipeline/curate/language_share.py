"""Tells languages of one script apart, by lingua, and names the markers of reflection in each.

Scripts alone (scripts.py) cannot: German and English are both Latin. lingua's low-accuracy mode
looks at runs of three letters, which is enough for a sentence; it loads in 0.2 s, takes
15 MB for four languages and reads 1.5 to 2 MB of text a second on one core.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from pipeline.curate.scripts import SCRIPTS
from pipeline.errors import UserError

_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\\\[(?:(?!\\[\[\]]).)*\\\]|"
                       r"\\\((?:(?!\\[()]).)*\\\)|\\[A-Za-z]+(?:\{[^{}]*\})*|"
                       r"(?<!\S)\S*[\d=_^<>{}/]\S*", re.DOTALL)
"""Code, formulas, addresses, and words with digits or operators in them."""
_ENDS = re.compile(r"(?<=[.!?…:;。！？])\s+|(?<=[。！？])")
_LETTER = re.compile(r"[^\W\d_]")
PASSAGE = 60
"""Characters of a passage: sentences are joined up to it, as a shorter text says too little."""
LOOKED_AT = 400
"""Characters of a passage that lingua gets: a word of 200,000 letters takes it minutes."""
TOO_SHORT = 25
"""Characters below which a whole text is not told apart."""
SAMPLED = 64
"""Passages looked at in a text, evenly spread, so that a trace costs 5 ms however long it is."""

REFLECTIONS = {
    "de": "Moment|warte|hm+|nachprüfen|noch einmal|nochmals?|andererseits|eigentlich|stimmt nicht",
    "en": "wait|hmm|let me (?:re)?check|try again|alternatively|actually",
    "es": "espera|un momento|hm+|déjame (?:re)?visar|de nuevo|otra vez|alternativamente|"
          "en realidad",
    "fr": "attends|attendez|un instant|hm+|vérifions|à nouveau|autrement|en fait",
    "it": "aspetta|un momento|hm+|ricontrolliamo|di nuovo|in alternativa|in realtà",
    "ja": "待って|ちょっと待|うーん|確認し|もう一度|あるいは|実は|いや、",
    "ko": "잠깐|잠시만|음\\.\\.|다시 확인|다시 생각|아니면|사실은?",
    "nl": "wacht|even kijken|hm+|nog eens|controleren|anderzijds|eigenlijk",
    "pl": "czekaj|chwileczkę|hm+|sprawdźmy|jeszcze raz|ewentualnie|właściwie",
    "pt": "espera|espere|um momento|hm+|vamos verificar|de novo|alternativamente|na verdade",
    "ru": "подожди(?:те)?|постой(?:те)?|стоп|хм+|проверим|ещё раз|еще раз|с другой стороны|"
          "на самом деле",
    "uk": "зачекай(?:те)?|стривай|хм+|перевірмо|ще раз|з іншого боку|насправді",
    "zh": "等等|等一下|嗯|让我(?:再|重新)?(?:检查|想想|看看)|重新|再试|或者|其实|不对",
}
"""What one writes who stops and looks again, after the markers of DeepSeek-R1 (fig. 9)."""
_UNSPACED = ("ja", "ko", "zh")


@lru_cache(maxsize=32)
def reflection_pattern(languages: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern of the reflection markers of `languages`, English if none of them is known."""
    known = [language for language in languages if language in REFLECTIONS] or ["en"]
    parts = [REFLECTIONS[one] if one in _UNSPACED else rf"\b(?:{REFLECTIONS[one]})\b"
             for one in dict.fromkeys(known)]
    return re.compile("|".join(parts), re.IGNORECASE)


def rivals(language: str, others: Iterable[str]) -> tuple[str, ...]:
    """Those of `others` that share a script with `language`: only lingua tells them apart."""
    return tuple(sorted({other for other in others if other != language
                         and set(SCRIPTS[other]) & set(SCRIPTS[language])}))


def check_languages(language: str, others: Sequence[str], key: str) -> None:
    """Raise UserError if one of config key `key` is unknown or lingua is needed and not there."""
    for other in others:
        if other not in SCRIPTS:
            raise UserError(f"{key} names {other!r}, which is not known; there are "
                            f"{', '.join(sorted(SCRIPTS))}")
    if rivals(language, others) and find_spec("lingua") is None:
        raise UserError(f"{key} needs lingua-language-detector, which is not installed; run "
                        "pip install '.[languages]' in limbeck's checkout, or unset it")


@lru_cache(maxsize=8)
def _detector(languages: tuple[str, ...]) -> Any:
    """lingua for `languages` alone, its models loaded when first asked."""
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, language.upper()) for language in languages]
    return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).with_low_accuracy_mode().build()


def share_in(text: str, language: str, others: Iterable[str]) -> float:
    """Share of the prose of `text` in `language` rather than in one of `others` of its script.

    Code and formulas are not counted; 1 if nothing is left that could be told apart.
    """
    against = rivals(language, others)
    found = passages(text)
    if not against or sum(map(len, found)) < TOO_SHORT:
        return 1.0
    step = max(1.0, len(found) / SAMPLED)
    sampled = [found[int(i * step)] for i in range(min(len(found), SAMPLED))]
    told = [(_detector((language, *against)).detect_language_of(one[:LOOKED_AT]), len(one))
            for one in sampled]
    counted = [(one.iso_code_639_1.name.lower() == language, size)
               for one, size in told if one is not None]
    total = sum(size for _, size in counted)
    return sum(size for right, size in counted if right) / total if total else 1.0


def passages(text: str) -> list[str]:
    """The prose of `text` as sentences, short ones of a line joined to PASSAGE characters."""
    out: list[str] = []
    last, line_ended = PASSAGE, True            # characters of the last passage
    for line in _NO_PROSE.sub(" ", text).splitlines():
        for sentence in filter(_LETTER.search, _ENDS.split(line)):
            size = len(sentence)
            if last < (TOO_SHORT if line_ended else PASSAGE):
                out[-1] += " " + sentence.strip()
                last += size
            else:
                out.append(sentence.strip())
                last = size
            line_ended = False
        line_ended = True
    if len(out) > 1 and last < TOO_SHORT:
        rest = out.pop()
        out[-1] += " " + rest
    return out
