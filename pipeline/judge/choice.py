"""Multiple choice, exact answers and texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import normalize

from pipeline.completion import Verdict
from pipeline.judge.extract import boxes, extract
from pipeline.judge.math.grade_math import gold_answer
from pipeline.judge.math.latex import clean
from pipeline.judge.verdict import Judgement, Problem, judgement

_LETTER = re.compile(r"(?<![A-Za-z'’\\])\(?(?![AI] (?!is |was |because |since )[a-z])"
                     r"([A-J])(?![A-Za-z'’]|\s*[=+<>])")
_LEADING = re.compile(r"\s*[*_\"'(\[]*(?![AI] [a-z])([A-J])(?![A-Za-z'’])")
_STATED = re.compile(
    r"(?i:answer|option|choice|r[ée]ponse|antwort|respuesta|risposta|selected|答案|correct)"
    r"[^.\n]{0,40}?(?<![A-Za-z'’\\])\(?(?!I (?!is |was |because |since )[a-z])"
    r"(?!A (?!is |was |because |since |as |and |or |by |for |in )[a-z])([A-J])(?![A-Za-z'’])")
_SMALL = re.compile(r"\b(?:answer|option|choice)(?: is)?\s*[:：]?\s*\(?([a-j])\)?\W*$", re.I)
_FAILED = re.compile(
    r"(?i:option|choice|answer)s?\s*\(?[A-Ja-j](?![A-Za-z])\)?"
    r"(?:(?!because|since)[^.;,\n]){0,30}?\b(?i:fails?|wrong|"
    r"false|incorrect|eliminated|excluded|impossible)\b"
    r"|(?<![A-Za-z])\(?[A-J]\)? (?:is|are) (?:\w+ly )?(?i:wrong|false|incorrect|impossible)\b")
_NAMING = re.compile(r"^(?:the )?(?:correct )?(?:final )?(?:option|answer|choice)\s*(?:is\b)?"
                     r"\s*[:.]?\s*", re.I)
_ALSO = re.compile(r"\)?\s*(?:or|and|/)\s*\(?([A-J])(?![A-Za-z])")
_EITHER = re.compile(r"(?<![A-Za-z])\(?[A-J]\)? or \(?[A-J]\)?(?![A-Za-z])\s*\.?\s*$")
_NEGATED = re.compile(r"(?:(?i:\bnot|can't be|isn't|\bnon|nicht)\b|不是)\s*(?:\w+\s+)?"
                      r"(?:\(?[A-J]\)?(?:\s*(?:or|nor|,)\s*\(?[A-J]\)?)*)(?![A-Za-z])")
_INDEX = re.compile(r"\s*\d\s*")
_NUMBERED = re.compile(r"(?:^|\s)\(?[1-9][.)]\s")


def letters(text: str) -> list[str]:
    """The letters chosen in `text`: of the last box, else stated, else leading, else the last."""
    text = text if text.isascii() else normalize("NFKC", text)
    if found := boxes(text):
        inside = found[-1][2]
        return _listed(clean(inside)) if inside else []
    if "<answer>" in text:
        return letters(text.rpartition("<answer>")[2].partition("</answer>")[0])
    text = _NEGATED.sub(" ", text if len(text) < 1200 else text[:200] + text[-1000:])
    text = _FAILED.sub(" ", text)
    if text.rstrip().endswith("?"):
        return []
    *_, said = [None, *_STATED.finditer(text)]
    if said and (other := _ALSO.match(text, said.end())):
        return sorted({said[1].upper(), other[1]})
    if said is None and (either := _EITHER.search(text)):
        return sorted(set(re.findall(r"[A-J]", either[0])))
    if stated := _STATED.findall(text) or _SMALL.findall(text):
        return [stated[-1].upper()]
    if leading := _LEADING.match(text):
        return [leading[1]]
    if re.fullmatch(r"\s*[a-j]\s*", text):
        return [text.strip().upper()]
    return re.findall(r"\(([A-J])\)", text)[-1:] or _LETTER.findall(text)[-1:]


def _listed(text: str) -> list[str]:
    """"A", "(A)", "A and C", "A. five", or a lower-case letter alone."""
    text = re.sub(r"[‹›⦃⦄]", " ", text).strip()
    text = _NAMING.sub("", text)
    if re.fullmatch(r"[\(\[]?[a-jA-J][\)\].]?", text):
        return [text.strip("()[].").upper()]
    if re.fullmatch(r"[\s(]*[A-J][)\s]*(?:,[\s(]*[A-J][)\s]*)+", text):
        return sorted(set(re.findall(r"[A-J]", text)))
    if re.fullmatch(r"(?=[A-J]{2,})A?B?C?D?E?F?G?H?I?J?", text):
        return list(text)
    leading = _LEADING.match(text)
    if leading and (other := _ALSO.match(text, leading.end())):
        return sorted({leading[1], other[1]})
    return [leading[1]] if leading else []


def exact_key(text: str) -> str:
    """Case, spacing, articles and punctuation at the ends do not count (SQuAD's normaliser)."""
    if re.fullmatch(r"\s*-?\d+\.\d+\s*", text):
        return text.strip().rstrip("0").rstrip(".")
    text = re.sub(r"\b(?:a|an|the)\b", " ", text.casefold())
    return " ".join(re.sub(r"(?<!\d)[.,!?;:\"'](?!\d)|[.,!?;:\"']+$", " ", text).split())


def _gold_letters(problem: Problem) -> list[str]:
    """The letters of the gold; a digit counts the options from 0, unless they are numbered."""
    if _INDEX.fullmatch(problem.answer):
        return [] if _NUMBERED.search(problem.problem) else ["ABCDEFGHIJ"[int(problem.answer)]]
    return letters(f"\\boxed{{{gold_answer(problem.answer)}}}")


def check_gold(problem: Problem) -> Judgement:
    """correct if the gold names an option."""
    found = _gold_letters(problem)
    return judgement("correct" if found else "cannot_judge", ", ".join(found) or None, "choice")


def grade_choice(text: str, _: Sequence[str], problem: Problem) -> Judgement:
    gold, found = _gold_letters(problem), letters(text)
    if not gold:
        return judgement("cannot_judge", ", ".join(found) or None, "choice")
    if not found:
        return judgement("no_answer", None, "choice")
    several = len(found) > 1 and len(gold) == 1
    verdict: Verdict = "correct" if found == gold else "several_answers" if several else "wrong"
    return judgement(verdict, ", ".join(found), "choice")


def grade_text(text: str, _: Sequence[str], problem: Problem) -> Judgement:
    """Equal or not; only a reader can tell whether a text that differs says the same."""
    unequal: Verdict = "cannot_judge" if problem.kind == "text" else "wrong"
    answer = ", ".join(extract(text, "any")) if "boxed" in text or "<answer>" in text else text
    if not problem.answer.strip():
        return judgement("cannot_judge", answer.strip(), problem.kind)
    right = exact_key(answer) == exact_key(problem.answer)
    return judgement("correct" if right else unequal, answer.strip(), problem.kind)
