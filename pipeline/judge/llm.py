"""A language model as judge of last resort: it decides only where the rules abstain.

It sees the problem, the gold and the extracted answer, never the trace; both orders of the two
answers must give the same verdict (NeMo Gym asks both orders too), anything but a plain verdict
counts as none. "One Token to Fool LLM-as-a-Judge" (arXiv 2507.08794) and RL-Verifier-Pitfalls
(arXiv 2505.22203) list the answers that fool such judges: empty shells and instructions to the
grader never reach it, and what does is a string in a JSON object, free of control tokens.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence

from pipeline.completion import Messages
from pipeline.judge.kinds import find_kind, kind_of
from pipeline.judge.verdict import Judgement, Problem, judgement
from pipeline.prompts import render

Ask = Callable[[list[Messages]], Sequence[str]]
_VERDICT = re.compile(r"\W*(SAME|DIFFERENT)\W*")
_CONTROL = re.compile(
    r"<[|｜][^<>]*[|｜]>|</?(?:s|bos|eos|pad|unk|think|\w*_of_\w*|im_\w+)>|<</?SYS>>|\[/?INST\]|"
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ue000-\uf8ff\ud800-\udfff\U000e0000-\U000e0fff]", re.I)
_ORDERS = re.compile(
    r"\b(?:ignore|disregard|instruction|grad(?:er|ing)|judge|verdict|reply|say|assistant|prompt|"
    r"thought process|let'?s|step by step|(?:both|these|two) answers|answer [12]|"
    r"(?-i:SAME|DIFFERENT))\b|"
    r"[<>{}]{3}|</?[a-z]+|\"\w+\"\s*:", re.I)
_EVERYDAY = re.compile(
    r"\b(?:grade|score|correct|same|different|respond|output|accept|equivalent|identical|you|system|"
    r"user|solution|reasoning)\b", re.I)
"""Talk to the grader too, but harmless in an answer of at least PROSE words."""
PROSE = 8
MAX_PROBLEM = 4000


def presentable(answer: str | None, kind: str = "math") -> bool:
    """Whether `answer` may be shown to a model: short, with content, and no talk to the grader."""
    known = find_kind(kind)
    if not answer or not known or len(answer) > known.llm_chars or plain(answer) != answer:
        return False
    prose = known.llm_prose and len(answer.split()) >= PROSE
    if not prose and ("\n" in answer.strip() or _EVERYDAY.search(answer)):
        return False
    return bool(re.search(r"\w", answer)) and not _ORDERS.search(answer)


def plain(text: str) -> str:
    """`text` without chat control tokens and invisible characters, nested ones included."""
    while (bare := _CONTROL.sub("", text)) != text:
        text = bare
    return text


class LLMJudge:
    """Decides abstentions. `ask(chats)` returns a reply for each, "" if none came.

    `counts` holds how many judgements were kept, decided here, and left open.
    """

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.counts: Counter[str] = Counter()

    def review_all(self, judgements: Sequence[Judgement],
                   problems: Sequence[Problem]) -> list[Judgement]:
        """Decide the judgements that the rules left open: SAME in both orders is correct."""
        pairs = {place: _both_orders(problem, j.extracted or "") for place, (j, problem)
                 in enumerate(zip(judgements, problems, strict=True)) if self._asks(j, problem)}
        texts = list(dict.fromkeys(text for pair in pairs.values() for text in pair))
        system = {"role": "system", "content": render("same_answer")} if texts else {}
        replies = self.ask([[system, {"role": "user", "content": text}] for text in texts]) \
            if texts else []
        votes = {text: _VERDICT.fullmatch(reply) for text, reply
                 in zip(texts, replies, strict=True)}
        out = list(judgements)
        for place, pair in pairs.items():
            said = {found and found[1] for found in map(votes.__getitem__, pair)}
            if said in ({"SAME"}, {"DIFFERENT"}):
                out[place] = judgement("correct" if "SAME" in said else "wrong",
                                       judgements[place].extracted, "llm")
        decided = sum(j.grader == "llm" for j in map(out.__getitem__, pairs))
        left = sum(j.verdict == "cannot_judge" for j in out)
        self.counts += Counter(kept=len(out) - left - decided, decided=decided, open=left)
        return out

    def _asks(self, judgement: Judgement, problem: Problem) -> bool:
        return judgement.verdict == "cannot_judge" and bool(kind_of(problem).llm_chars) and \
            bool(problem.answer.strip()) and presentable(judgement.extracted, problem.kind)


def _both_orders(problem: Problem, answer: str) -> tuple[str, str]:
    """What the model is shown, as JSON: gold first, then answer first."""
    gold = plain(problem.answer)
    first, second = (json.dumps({"problem": plain(problem.problem)[:MAX_PROBLEM], "answer 1": one,
                                 "answer 2": other})
                     for one, other in ((gold, answer), (answer, gold)))
    return first, second


def majority_answer(answers: Sequence[str], same: Callable[[str, str], bool | None]) -> str | None:
    """Return the answer that more than half of `answers` share under `same`, or None.

    Self-consistency (Wang et al., arXiv 2203.11171).
    """
    groups: list[list[str]] = []
    for answer in answers:
        group = next((group for group in groups if same(group[0], answer)), None)
        if group is None:
            groups.append([answer])
        else:
            group.append(answer)
    best = max(groups, key=len, default=[])
    return best[0] if len(best) * 2 > len(answers) else None
