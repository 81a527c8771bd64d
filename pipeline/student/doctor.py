"""Is a model fit to be a student (or teacher), before a token is trained? `limbeck doctor MODEL`.

Every check answers with one sentence. Only tokenizer, template and configuration are read, never
the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.completion import split_completion
from pipeline.errors import UserError
from pipeline.student import template
from pipeline.student.tokenizer import bare_tokenizer, load_tokenizer

ASK = [{"role": "user", "content": "What is 6 times 7? Put it within \\boxed{}."}]
THINKING = "6 times 7: six sevens.\n\n7, 14, 21, 28, 35, 42. Wait, check: 42 / 7 = 6. Yes."
ANSWER = "Six sevens are **42**.\n\n\\boxed{42}"


class Check(NamedTuple):
    """One check: its name, whether it passed, and a sentence with the remedy where it did not."""

    name: str
    ok: bool
    sentence: str


def examine(model: str, chat_template: Path | None = None, teacher: str | None = None,
            problems: str | None = None) -> list[Check]:
    """Every check of `model` (folder or hub id), with `chat_template` in place of its own.

    `teacher`, a folder or hub id, adds the comparison that learning from logits needs; `problems`,
    a file with the columns problem and answer, the check of its gold answers. Never raises for a
    bad model: what fails is a check that is not ok.
    """
    try:
        tokenizer = load_tokenizer(model, chat_template)
    except UserError as error:
        return [Check("tokenizer", False, str(error))]
    size = vocabulary_size(model)
    checks = [Check("tokenizer", True, f"{len(tokenizer):,} tokens and a chat template")]
    checks += [run(name, check, tokenizer) for name, check in CHECKS.items()]
    checks += [_eos_of_model(tokenizer, model), _embeddings(tokenizer, size, model)]
    checks += [_vocabularies(tokenizer, size, teacher)] if teacher else []
    return checks + ([run("gold answers", _golds, problems), run("attacks", _attacks, problems)]
                     if problems else [])


def vocabulary_size(model: str) -> int | None:
    """Rows of the model's embedding as its configuration says, or None where there is none."""
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(model).get_text_config().vocab_size)
    except (OSError, ValueError, AttributeError):
        return None


def run(name: str, check: Callable[[Any], tuple[bool, str]], subject: Any) -> Check:
    """The check called `name` of `subject`; one that raises a UserError is not ok, in its words."""
    try:
        return Check(name, *check(subject))
    except UserError as error:
        return Check(name, False, str(error))


def _row(tokenizer: Any) -> tuple[list[int], list[int]]:
    return template.training_row(tokenizer, ASK, THINKING, ANSWER)


def _eos(tokenizer: Any) -> tuple[bool, str]:
    ids, mask = _row(tokenizer)
    trained = ids[-1] == tokenizer.eos_token_id and mask[-1] == 1
    spoken = [*ASK, {"role": "assistant", "content": ANSWER}]
    if template.render(tokenizer, spoken).rstrip().endswith(tokenizer.eos_token):
        return trained, f"{tokenizer.eos_token!r} ends the assistant's turn and is trained"
    return trained, (f"the template does not end a turn in {tokenizer.eos_token!r}; it is added "
                     "to every row, so the student stops there")


def _pad(tokenizer: Any) -> tuple[bool, str]:
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        return True, f"{tokenizer.pad_token!r} pads and differs from eos"
    return True, ("pad is eos; the loss follows completion_mask and never the pad token, so "
                  "eos is trained all the same")


def _prefix(tokenizer: Any) -> tuple[bool, str]:
    ids, _ = _row(tokenizer)
    prompt = template.prompt_ids(tokenizer, ASK)
    text = template.render_prompt(tokenizer, ASK)
    same = ids[:len(prompt)] == prompt == template.encode(tokenizer, text)
    return same, (f"the generation prompt ({len(prompt)} tokens) is the head of the training row"
                  if same else "the generation prompt is not the head of the training row; set "
                  "student.chat_template to one of prompts/chat_templates/")


def _mask(tokenizer: Any) -> tuple[bool, str]:
    _ids, mask = _row(tokenizer)
    share = sum(mask) / len(mask)
    plain = len(template.encode(tokenizer, THINKING + ANSWER))
    right = 0 < share < 1 and plain - 8 <= sum(mask) <= plain + 40
    return right, (f"{sum(mask)} of {len(mask)} tokens of a sample row are trained ({share:.0%})"
                   + ("" if right else f", where its completion has about {plain}; "
                      "look at the chat template"))


def _thinking(tokenizer: Any) -> tuple[bool, str]:
    ids, mask = _row(tokenizer)
    new = [index for index, trained in zip(ids, mask, strict=True) if trained]
    text = tokenizer.decode(new, skip_special_tokens=True)
    came = split_completion(text, opened=template.opens_thinking(tokenizer))
    if came.thinking == THINKING and came.answer == ANSWER:
        return True, "thinking and answer come back from the tokens as they went in"
    if "</think>" not in text:
        return False, ("the thinking tags are special tokens of this tokenizer and vanish when it "
                       "decodes without them; add them as ordinary tokens")
    return False, (f"thinking or answer change on the way through the tokens ({text[:60]!r}…); "
                   "set student.chat_template to one of prompts/chat_templates/")


def _spelt_out(tokenizer: Any) -> tuple[bool, str]:
    tokens = sorted(set(tokenizer.all_special_tokens))
    inside = [{"role": "user", "content": "Say " + " ".join(tokens)}]
    ids, _ = template.training_row(tokenizer, inside, " ".join(tokens), " ".join(tokens) + " x")
    clean, _ = template.training_row(tokenizer, [{"role": "user", "content": "Say"}], "x", "x")
    special = set(tokenizer.all_special_ids)
    more = sum(i in special for i in ids) - sum(i in special for i in clean)
    return more == 0, ("control tokens that a text spells out are encoded as text" if not more
                       else f"{more} control tokens spelt out in a text are encoded as such; this "
                       "tokenizer cannot be made safe against its own texts")


CHECKS: dict[str, Callable[[Any], tuple[bool, str]]] = {
    "end of turn": _eos, "pad": _pad, "prefix": _prefix, "mask": _mask, "thinking": _thinking,
    "control tokens": _spelt_out}


def _eos_of_model(tokenizer: Any, model: str) -> Check:
    """Whether servers stop where the student was taught to stop."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(model).eos_token_id
    except (OSError, ValueError):
        return Check("generation config", True, "there is none; training writes one with the eos")
    if ends is None:
        return Check("generation config", False, "generation_config.json names no eos_token_id; "
                     f"set it to {tokenizer.eos_token_id} there, or servers may run on")
    known = ends if isinstance(ends, list) else [ends]
    if tokenizer.eos_token_id in known:
        return Check("generation config", True, "servers stop at the trained end of turn")
    return Check("generation config", False,
                 f"generation_config.json stops at {known}, the tokenizer's eos is "
                 f"{tokenizer.eos_token_id}; mend eos_token_id there, or servers run on")


def _embeddings(tokenizer: Any, size: int | None, model: str) -> Check:
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(model):
        return Check("embeddings", False, "this is a LoRA adapter without its model; merge the two "
                     "(peft's merge_and_unload) and name the folder of the whole")
    if size is None:
        return Check("embeddings", True, "no model configuration here, so nothing to compare")
    top = max(tokenizer.get_vocab().values())
    if top < size:
        return Check("embeddings", True, f"{size:,} rows hold every token id (highest {top:,})")
    return Check("embeddings", False, f"token id {top:,} has no row among the model's {size:,}; "
                 "take the tokenizer that belongs to the model, or resize its embeddings")


def _vocabularies(tokenizer: Any, size: int | None, teacher: str) -> Check:
    """Learning from logits needs equal token ids, as the logits stage asks for them."""
    from pipeline.student.tokenizer import check_vocabulary

    try:
        other = bare_tokenizer(teacher)
        check_vocabulary(other, tokenizer, teacher)
    except UserError as error:
        return Check("teacher vocabulary", False, str(error))
    apart = len(tokenizer.get_vocab().keys() ^ other.get_vocab().keys())
    but = f", but {apart} added ones that one side alone has" if apart else ""
    return Check("teacher vocabulary", True, f"the same {len(tokenizer):,} tokens{but} (embeddings "
                 f"{size or '?'} and {vocabulary_size(teacher) or '?'}; padding is ignored)")


def _attacks(problems: str) -> tuple[bool, str]:
    """Whether answers that should earn nothing would score on twenty of the problems."""
    from pipeline.config.problems import Source
    from pipeline.judge import needs_answer
    from pipeline.judge.attack import attack
    from pipeline.problems.sources import load_rows

    found = attack(load_rows(Source(problems=problems), 0, needs_answer), 20)
    tried, scored = (sum(getattr(one, name) for one in found.values())
                     for name in ("tried", "scored"))
    names = ", ".join(name for name, one in found.items() if one.scored)
    return not scored, f"{scored:,} of {tried:,} answers that should earn nothing would score" + (
        f" ({names}); see `limbeck attack {problems} --show`" if scored else "")


def _golds(problems: str) -> tuple[bool, str]:
    """Whether the judge takes every gold answer for right where it is given as the answer."""
    from pipeline.config.problems import Source
    from pipeline.judge import Problem, check_gold, needs_answer
    from pipeline.problems.sources import load_rows

    rows = load_rows(Source(problems=problems), 0, needs_answer)
    bad = [row for row in rows if check_gold(Problem.from_row(row)).score != 1.0]
    if not bad:
        return True, f"all {len(rows):,} pass their own check"
    return False, (f"{len(bad):,} of {len(rows):,} fail their own check, e.g. {bad[0]['answer']!r} "
                   f"of problem {bad[0]['problem_id']!r}; mend them or set prepare.bad_gold=drop")
