"""The final answer in a response: the last box, an answer tag, a stated answer, or its last line.

Rules, first that applies: (1) balanced \\boxed{} or \\fbox{}: the last decides; boxes that stand
within GAP characters of each other are one statement with several answers. An unbalanced last box
is no answer. (2) <answer>…</answer>, the last. (3) "answer is …", "Answer: …", "#### …", the last.
(4) the last formula or number of the last line that has one. A short text that is no prose is the
answer itself.
"""

from __future__ import annotations

import re

GAP = 100
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{|[^\s{\\])")
_TURN = re.compile(r"<\|[^|>]*\|>|<｜[^>]*｜>|</s>")
_STATED = re.compile(
    r"(?:\b(?:answer|result|solution|r[ée]ponse|antwort|respuesta|option|choice)s?\b|答案|答)\**"
    r"(?:\s*\w+){0,2}?\s*(?:\bis\b|\bare\b|\best\b|\bist\b|\bes\b|[:：是为=]|####)\**\s*[:：]?"
    r"|####", re.I)
_HOPE = re.compile(r"\s*I hope (?:it|this) is correct\.?.*$|\s*\[?\[?Note.*$", re.S)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$|\\\(([^\n]+?)\\\)|\\\[(.+?)\\\]", re.S)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:/\d+)?\s?%?")
_CONGRUENCE = re.compile(r"\bcongruent to -?\d+(?:(?:,| or| and)+ -?\d+)* \(?mod(?:ulo)? \d+\)?")
_WORDS = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_SENTENCES = re.compile(r"(?<=[^\s.])\.\s+(?=[A-Z\\$])|。|\n")
_INTRODUCED = re.compile(r"(?:[A-Z]?[a-z]+:? ){1,4}(?:\$|\\\(|\\\[)")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|operatorname|begin|end|mathbf|mathbb)"
                   r"\s*\{[^{}]*\}|\\[A-Za-z]+")


def boxes(text: str) -> list[tuple[int, int, str | None]]:
    """(start, end, content) of each box of `text`; content None where its braces never close."""
    found: list[tuple[int, int, str | None]] = []
    if "box" not in text:
        return found
    position = 0
    while match := _BOX.search(text, position):
        if match[1] != "{":
            content, end = match[1], match.end()
        else:
            end = _closing(text, match.end())
            content = text[match.end():end - 1] if end else None
        found.append((match.start(), end or len(text), content))
        position = end or len(text)
    return found


_JOINING = re.compile(r"(?:[\s,;$.()\[\]\\]|\\?quad|\\text|and|or|[{}])*"
                      r"|\s*(?:[a-z]+,? ){0,3}and(?: [a-z]+){0,2}\s*")
_BRACE = re.compile(r"\\.|[{}]", re.S)


def _closing(text: str, start: int) -> int:
    """Index after the brace that closes the one just before `start`; 0 if none does."""
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return 0


def extract(text: str, marker: str = "any") -> list[str]:
    """The final answers stated in `text` (see the module); [] where none is."""
    text = _TURN.split(text, maxsplit=1)[0] if "<" in text else text
    if marker != "tag" and (found := boxes(text)):
        return _last_statement(found)
    if marker == "box":
        return []
    if "</answer>" in text:
        inside = text.rpartition("</answer>")[0].rpartition("<answer>")[2].strip()
        return [inside] if inside else []
    return [] if marker == "tag" else _stated(text)


def gold_answers(text: str) -> list[str]:
    """The answers of a gold solution: its last box and those joined to it by "," or "and"."""
    found = boxes(text)
    if found and found[-1][2] is None:
        return [text[found[-1][0]:].partition("{")[2]]
    return _last_statement(found, text) if found else extract(text)


def _last_statement(found: list[tuple[int, int, str | None]], gold: str = "") -> list[str]:
    """The last box and those that stand close before it, without repetition."""
    answers = [found[-1][2]]
    for earlier, later in zip(found[-2::-1], found[:0:-1], strict=True):
        if later[0] - earlier[1] > GAP or \
                (gold and not _JOINING.fullmatch(gold[earlier[1]:later[0]])):
            break
        answers.append(earlier[2])
    if any(answer is None for answer in answers):
        return []
    unique = dict.fromkeys(answer.strip() for answer in reversed(answers) if answer)
    return [answer for answer in unique if answer]


def is_prose(text: str) -> bool:
    """Whether `text` reads as sentences rather than as an answer: four words outside LaTeX."""
    return len(_WORDS.findall(_TEXT.sub(" ", text[:2000]))) >= 4 or len(text) > 2000


def _stated(text: str) -> list[str]:
    text = _HOPE.sub("", text[-4000:].strip())
    text = _FORMULA.sub(lambda m: re.sub(r"\s*\n\s*", " ", m[0]), text)
    *_, last = [None, *_STATED.finditer(text)]
    if last and (tail := _sentence(text[last.end():])):
        return [tail] if not is_prose(tail) else _last_value(tail)
    introduced, one_line = _INTRODUCED.match(text), "\n" not in text or "\\begin{" in text
    if not is_prose(text) and one_line and not introduced:
        return [text] if text else []
    if introduced and not is_prose(text) and not _FORMULA.search(text):
        return []  # inline mathematics that breaks across lines is not read
    parts = [part for part in _SENTENCES.split(text) if _NUMBER.search(part) or "$" in part]
    return _last_value(parts[-1]) if parts else _last_value(text)

def _sentence(text: str) -> str:
    """`text` up to the end of its first sentence or line."""
    line = next((part for part in text.strip().split("\n") if part.strip()), "")
    line = re.split(r"(?<=[^\s.])\.(?:\s|$)|。|\.\s*$", line)[0]
    return line.strip(" *:：\t")


def _last_value(line: str) -> list[str]:
    """The congruence in `line`, or its last formula or number, whichever stands later."""
    if congruence := _CONGRUENCE.search(line):
        return [congruence[0]]  # and not its modulus
    formulas, numbers = list(_FORMULA.finditer(line)), list(_NUMBER.finditer(line))
    if formulas and (not numbers or numbers[-1].start() < formulas[-1].end()):
        return [next(filter(None, formulas[-1].groups())).strip()]
    return [numbers[-1][0].strip().rstrip(",")] if numbers else []
