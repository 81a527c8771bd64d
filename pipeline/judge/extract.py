"""The final answer in a response: the last box, an answer tag, a stated answer, or its last line.

Rules, first that applies: (1) balanced \\boxed{} or \\fbox{}: the last decides, with those that
"," or "and" joins to it. An empty or unbalanced last box is no answer. (2) <answer>…</answer>, the
last. (3) "answer is …", "Answer: …", "#### …", the last. (4) the last formula or number of the last
line that has one. A short text that is no prose is the answer itself. (3) and (4) take nothing from
a sentence that denies, doubts, bounds or quotes it, nor from code.
"""

from __future__ import annotations

import re

GAP = 100
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{|[^\s{\\])")
_TURN = re.compile(r"<\|[^|>]*\|>|<｜[^>]*｜>|</s>")
_STATED = re.compile(
    r"(?:\b(?:answer|result|solution|r[ée]ponse|antwort|respuesta|option|choice)s?\b|答案|答)\**"
    r"(?:\s*(?:to|for|of|the|this|problem|question|here|thus|then|therefore|simply|choice|option|"
    r"part|will|must|be|\(?[a-f\d]\)?))*?\s*(?:\bis\b|\bare\b|\best\b|\bist\b|\bes\b|[:：是为=]|####)\**\s*[:：]?"
    r"|####", re.I)
_HOPE = re.compile(r"\s*I hope (?:it|this) is correct\.?.*$|\s*\[?\[?Note.*$", re.S)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$|\\\(([^\n]+?)\\\)|\\\[(.+?)\\\]", re.S)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:/\d+)?\s?%?")
_CONGRUENCE = re.compile(r"\bcongruent to -?\d+(?:(?:,| or| and)+ -?\d+)* \(?mod(?:ulo)? \d+\)?")
_WORDS = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_SENTENCES = re.compile(r"(?<=[^\s.])\.\s+(?=[A-Z\\$])|。|\n")
_INTRODUCED = re.compile(r"(?:[A-Z]?[a-z]+[:,]? ){1,4}(?:\$|\\\(|\\\[)")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|operatorname|begin|end|mathbf|mathbb)"
                   r"\s*\{[^{}]*\}|\\[A-Za-z]+")


def boxes(text: str) -> list[tuple[int, int, str | None]]:
    """(start, end, content) of each box of `text`; content None if its braces never close."""
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
_LISTING = re.compile(r"[^.!?。\n]{0,60}?[,;&][^.!?。\n]{0,60}"
                      r"|[^.!?。\n]{0,60}\b(?:and|or|also|else|"
                      r"alternative\w*|otherwise|perhaps|maybe|possibly)\b"
                      r"[^.!?。\n]{0,60}|\s*(?:\([a-z\d]\)|[a-z\d]\)|[a-z]:)\s*")
_BRACE = re.compile(r"\\.|[{}]", re.S)


def _closing(text: str, start: int) -> int:
    """Index after the brace that closes the one just before `start`; 0 if none does."""
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return 0


_BEFORE = re.compile(r"\b(?:not|never|cannot|n['’]t)\s+"
                     r"(?:(?:be|equal|to|the|simply|just|actually)\s+)*\$*$", re.I)
_AFTER = re.compile(r"[\s$.)]*(?:,?\s*(?:but|and|which)\s+)?(?:(?:this|that|it)\s+)?"
                    r"(?:is|was|would be|seems)\s+(?:\w+ly\s+)?"
                    r"(?:not\b|wrong|incorrect|false|impossible|a mistake)", re.I)
"""Words right before or after the last box that take it back."""


def extract(text: str, marker: str = "any") -> list[str]:
    """Return the final answers stated in `text` (see the module), [] if none is."""
    text = _TURN.split(text, maxsplit=1)[0] if "<" in text else text
    if marker != "tag" and (found := boxes(text)):
        denied = _BEFORE.search(text[:found[-1][0]][-60:]) or _AFTER.match(text, found[-1][1])
        return [] if denied else _last_statement(found, text)
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
    return _last_statement(found, text, gold=True) if found else extract(text)


def _last_statement(found: list[tuple[int, int, str | None]], text: str,
                    gold: bool = False) -> list[str]:
    """The last box and those joined to it, without repetition; [] if it is empty or unbalanced."""
    answers = [found[-1][2]]
    if len(found) == 1:
        return [answers[0].strip()] if answers[0] and _shows(answers[0]) else []
    for earlier, later in zip(found[-2::-1], found[:0:-1], strict=True):
        between = text[earlier[1]:later[0]]
        if len(between) > GAP or not (_JOINING.fullmatch(between) or (
                not gold and _LISTING.fullmatch(between) and not _DENIAL.search(between))):
            break
        answers.append(earlier[2])
    if any(answer is None for answer in answers) or not _shows(answers[0] or ""):
        return []
    unique = dict.fromkeys(answer.strip() for answer in reversed(answers) if answer)
    return [answer for answer in unique if answer]


_UNSEEN = re.compile(r"\\[,;:! ]|\\q?quad\b|\\(?:text|mathrm|mbox)\s*(?=\{\s*\})|[\s{}~$]")


def _shows(answer: str) -> bool:
    """Whether anything of `answer` would be seen."""
    return answer.isalnum() or bool(_UNSEEN.sub("", answer))


def is_prose(text: str) -> bool:
    """Whether `text` reads as sentences rather than as an answer: four words outside LaTeX."""
    return len(_WORDS.findall(_TEXT.sub(" ", text[:2000]))) >= 4 or len(text) > 2000


_DENIAL = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|can't|isn't|aren't|won't|doesn't|don't|wasn't|false|wrong|"
    r"incorrect|mistaken?|unsure|unknown|whether|doubt\w*|deny|unlikely|tempting|anything|unless|"
    r"except|but|than|between|least|most|more|less|fewer|below|above|under|over|near(?:ly)?|almost|"
    r"differs?|either|other|instead|nicht|kein\w*|mehr|weniger|falsch|mindestens|höchstens|zwischen|"
    r"pas|jamais|moins|plus|entre|faux|ni|nunca|más|menos|falso|incorrecto|mayor|menor|"
    r"exceeds?|times|rounds to|digits? of|sum of|half of|square of|reciprocal|multiple|"
    r"factor of)\b|n['’]t\b|\bне\b"
    r"|不|非|没|错|至少|至多|大于|小于|超过"
    r"|\b(?:twice|double|triple|thrice|half|of) (?:the|our|this)\s*$", re.I)
"""Words that make of a value in a sentence something else than its answer."""
_DOUBT = re.compile(r"\b(?:maybe|perhaps|possibly|probably|might|may|could|would|should|if|some|"
                    r"guess|suppose|assume|rather)\b", re.I)
_CODE = re.compile(r"^\s*(?:```[a-z]|def |class |import |from \w+ import|return\b|print\s*\(|"
                   r"for \w+ in .*:|"
                   r"if .*:\s*$)|(?<!\\)\blambda [\w, ]*:|==|\+=|;\s*$|[\w\])]\s*%\s*[a-z]\b", re.M)
_OBTAINED = re.compile(r"^(?:(?:so|thus|hence|therefore|then|finally),? )?(?:we|one|you) "
                       r"(?:gets?|obtains?|finds?|have|has)(?: that)?:? (?=\S+$)", re.I)
_CORRECTED = re.compile(r"\b(?:not|n['’]t)\b[^.;]*[;,] (?:it is|it's|but|rather)\b", re.I)


_TURNED = re.compile(r"\b(?:not|n['’]t)\b[^.;\d]{0,40}\d[^.;]{0,20} "
                     r"(?:it['’]s|it is|which is|but) (?=\S{0,40}$)")
"""It is not 10 it is 12."""


def _stated(text: str) -> list[str]:
    text = _HOPE.sub("", text[-4000:].strip())
    if _CODE.search("\n".join(text.rsplit("\n", 3)[-3:])):
        return []
    text = _FORMULA.sub(lambda m: re.sub(r"\s*\n\s*", " ", m[0]), text)
    *_, last = [None, *_STATED.finditer(text)]
    if last and (tail := _sentence(text[last.end():])):
        return _from_sentence(tail, text[:last.start()])
    text = _OBTAINED.sub("", text)
    introduced, one_line = _INTRODUCED.match(text), "\n" not in text or "\\begin{" in text
    if not is_prose(text) and one_line and not introduced:
        return [text] if text and not _denied(text) else []
    if introduced and not is_prose(text) and not _FORMULA.search(text):
        return []  # inline mathematics that breaks across lines is not read
    parts = [part for part in _SENTENCES.split(text) if _NUMBER.search(part) or "$" in part]
    line = parts[-1] if parts else text
    if turned := _TURNED.search(line):
        return _last_value(line[turned.end():])
    return [] if _denied(line) else _last_value(line)


def _from_sentence(tail: str, before: str) -> list[str]:
    """The answer that `tail` states after "the answer is", unless the sentence takes it back."""
    clause = re.split(r"[.;\n。，]\s*|, ", before)[-1]
    if corrected := _CORRECTED.search(tail):
        return _last_value(tail[corrected.end():])
    if _denied(re.sub(r"^(?:but|no),? ", "", clause, flags=re.I), doubt=False) or ((
            is_prose(tail) or not tail[:1].isupper()) and _denied(tail, doubt=False)):
        return []
    return [tail] if not is_prose(tail) else _last_value(tail)


def _denied(sentence: str, doubt: bool = True) -> bool:
    """Whether words of `sentence`, outside its formulas, say that its value is not the answer."""
    bare = _FORMULA.sub(" ", _TEXT.sub(" ", re.split("[，。]", sentence.rstrip("。"))[-1]))
    return bool(_DENIAL.search(bare) or (doubt and _DOUBT.search(bare)))


def _sentence(text: str) -> str:
    """`text` up to the end of its first sentence or line."""
    line = next((part for part in text.strip().split("\n") if part.strip()), "")
    line = re.split(r"(?<=[^\s.])\.(?:\s|$)|。|\.\s*$", line)[0]
    return line.strip(" *`:：\t")


def _last_value(line: str) -> list[str]:
    """The congruence in `line`, or its last formula or number, whichever stands later."""
    if congruence := _CONGRUENCE.search(line):
        return [congruence[0]]  # and not its modulus
    formulas, numbers = list(_FORMULA.finditer(line)), list(_NUMBER.finditer(line))
    if formulas and (not numbers or numbers[-1].start() < formulas[-1].end()):
        return [next(filter(None, formulas[-1].groups())).strip()]
    return [numbers[-1][0].strip().rstrip(",")] if numbers else []
