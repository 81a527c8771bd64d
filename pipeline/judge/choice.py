"""Multiple choice, exact answers and texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.completion import Verdict
from pipeline.judge.extract import boxes, extract
from pipeline.judge.math.grade_math import gold_answer
from pipeline.judge.math.latex import clean
from pipeline.judge.verdict import Judgement, Problem, judgement

_LETTER = re.compile(r"(?<![A-Za-z'’\\])\(?(?![AI] (?!is |was |because |since )[a-z])"
                     r"([A-J])(?![A-Za-z'’]|\s*[=+<>])")
_LEADING = re.compile(r"\s*[*_\"'(\[]*(?![AI] [a-z])([A-J])(?![A-Za-z'’])")
_STATED = re.compile(
    r"(?:answer|option|choice|r[ée]ponse|antwort|respuesta|risposta|selected|答案|correct)"
    r"[^A-J.\n]{0,40}?(?<![A-Za-z])\(?([A-J])(?![A-Za-z])", re.I)
_FAILED = re.compile(
    r"(?:option|choice|answer)s?\s*\(?[A-J]\)?(?:(?!because|since)[^.;,\n]){0,30}?\b(?:fails?|wrong|"
    r"false|incorrect|eliminated|excluded|impossible)\b"
    r"|(?<![A-Za-z])\(?[A-J]\)? (?:is|are) (?:\w+ly )?(?:wrong|false|incorrect|impossible)\b", re.I)
_NAMING = re.compile(r"^(?:the )?(?:correct )?(?:final )?(?:option|answer|choice)\s*(?:is\b)?"
                     r"\s*[:.]?\s*", re.I)
_ALSO = re.compile(r"\)?\s*(?:or|and|/)\s*\(?([A-J])(?![A-Za-z])")
_EITHER = re.compile(r"(?<![A-Za-z])\(?[A-J]\)? or \(?[A-J]\)?(?![A-Za-z])\s*\.?\s*$")
_NEGATED = re.compile(r"(?:not|can't be|isn't|non|不是|nicht)\s*(?:\w+\s+)?(?:\(?[A-J]\)?"
                      r"(?:\s*(?:or|nor|,)\s*\(?[A-J]\)?)*)(?![A-Za-z])", re.I)


def letters(text: str) -> list[str]:
    """The letters chosen in `text`: of the last box, else stated, else leading, else the last."""
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
    if stated := _STATED.findall(text):
        last = stated[-1].isupper() or re.search(r"\b[b-jB-J]\W*$", text)
        return [stated[-1].upper()] if last else []
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


def grade_choice(text: str, _: Sequence[str], problem: Problem) -> Judgement:
    gold, found = letters(f"\\boxed{{{gold_answer(problem.answer)}}}"), letters(text)
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
