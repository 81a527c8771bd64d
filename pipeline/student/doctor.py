"""Checks whether a model can be a student or teacher before any training (`limbeck doctor`).

Each check answers with one sentence. Only tokenizer, template and configuration are read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.completion import split_completion
from pipeline.errors import UserError
from pipeline.student import template
from pipeline.student.positions import positions
from pipeline.student.tokenizer import bare_tokenizer, load_tokenizer

ASK = [{"role": "user", "content": "What is 6 times 7? Put it within \\boxed{}."}]
THINKING = "6 times 7: six sevens.\n\n7, 14, 21, 28, 35, 42. Wait, check: 42 / 7 = 6. Yes."
ANSWER = "Six sevens are **42**.\n\n\\boxed{42}"


class Check(NamedTuple):
    """A check's name, whether it passed, and a sentence with the remedy if it did not."""

    name: str
    ok: bool
    sentence: str


def examine(model: str, chat_template: Path | None = None, teacher: str | None = None,
            problems: str | None = None) -> list[Check]:
    """Run every check of `model` (folder or hub id); a bad model fails checks and raises nothing.

    `teacher` adds the vocabulary comparison that learning from logits needs, `problems` (a file
    with the columns problem and answer) the check of its gold answers.
    """
    try:
        tokenizer = load_tokenizer(model, chat_template)
    except UserError as error:
        return [Check("tokenizer", False, str(error))]
    size = vocabulary_size(model)
    checks = [Check("tokenizer", True, f"{len(tokenizer):,} tokens and a chat template")]
    checks += [run(name, check, tokenizer) for name, check in CHECKS.items()]
    checks += [_eos_of_model(tokenizer, model), _positions(model),
               _embeddings(tokenizer, size, model)]
    checks += [_vocabularies(tokenizer, size, teacher)] if teacher else []
    return checks + ([run("gold answers", _golds, problems), run("attacks", _attacks, problems)]
                     if problems else [])


def vocabulary_size(model: str) -> int | None:
    """Return the embedding rows in the model's configuration, or None without one."""
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(model).get_text_config().vocab_size)
    except (OSError, ValueError, AttributeError):
        return None


def run(name: str, check: Callable[[Any], tuple[bool, str]], subject: Any) -> Check:
    """Run `check` on `subject`; a UserError fails it."""
    try:
        return Check(name, *check(subject))
    except UserError as error:
        return Check(name, False, str(error))


def _row(tokenizer: Any) -> tuple[list[int], list[int]]:
    return template.training_row(tokenizer, ASK, THINKING, ANSWER)


def _eos(tokenizer: Any) -> tuple[bool, str]:
    ids, mask = _row(tokenizer)
    trained = ids[-1] == tokenizer.eos_token_id and mask[-1] == 1
    conversation = [*ASK, {"role": "assistant", "content": ANSWER}]
    if template.render(tokenizer, conversation).rstrip().endswith(tokenizer.eos_token):
        return trained, f"{tokenizer.eos_token!r} ends the assistant's turn and is trained"
    return trained, (f"the template does not end a turn in {tokenizer.eos_token!r}; it is added "
                     "to every row, so the student stops there")


def _pad(tokenizer: Any) -> tuple[bool, str]:
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        return True, f"{tokenizer.pad_token!r} pads and differs from eos"
    return True, ("pad is eos; the loss follows completion_mask and not the pad token, so eos is "
                  "trained nevertheless")


def _prefix(tokenizer: Any) -> tuple[bool, str]:
    ids, _ = _row(tokenizer)
    prompt = template.prompt_ids(tokenizer, ASK)
    text = template.render_prompt(tokenizer, ASK)
    same = ids[:len(prompt)] == prompt == template.encode(tokenizer, text)
    return same, (f"the generation prompt ({len(prompt)} tokens) is the prefix of the training row"
                  if same else "the generation prompt is not the prefix of the training row; set "
                  "student.chat_template to one of prompts/chat_templates/")


def _mask(tokenizer: Any) -> tuple[bool, str]:
    _ids, mask = _row(tokenizer)
    share = sum(mask) / len(mask)
    expected = len(template.encode(tokenizer, THINKING + ANSWER))
    right = 0 < share < 1 and expected - 8 <= sum(mask) <= expected + 40
    return right, (f"{sum(mask)} of {len(mask)} tokens of a sample row are trained ({share:.0%})"
                   + ("" if right else f", but its completion has about {expected}; "
                      "check the chat template"))


def _thinking(tokenizer: Any) -> tuple[bool, str]:
    ids, mask = _row(tokenizer)
    trained = [index for index, has_loss in zip(ids, mask, strict=True) if has_loss]
    text = tokenizer.decode(trained, skip_special_tokens=True)
    decoded = split_completion(text, opened=template.opens_thinking(tokenizer))
    if decoded.thinking == THINKING and decoded.answer == ANSWER:
        return True, "thinking and answer are unchanged after encoding and decoding"
    if "</think>" not in text:
        return False, ("the thinking tags are special tokens of this tokenizer and are lost when "
                       "it decodes without special tokens; add them as ordinary tokens")
    return False, (f"encoding and decoding change the thinking or the answer ({text[:60]!r}…); "
                   "set student.chat_template to one of prompts/chat_templates/")


def _spelt_out_tokens(tokenizer: Any) -> tuple[bool, str]:
    tokens = " ".join(sorted(set(tokenizer.all_special_tokens)))
    chat = [{"role": "user", "content": f"Say {tokens}"}]
    ids, _ = template.training_row(tokenizer, chat, tokens, f"{tokens} x")
    clean, _ = template.training_row(tokenizer, [{"role": "user", "content": "Say"}], "x", "x")
    special = set(tokenizer.all_special_ids)
    surplus = sum(i in special for i in ids) - sum(i in special for i in clean)
    return surplus == 0, ("control tokens spelt out in a text are encoded as text" if not surplus
                          else f"{surplus} control tokens spelt out in a text are encoded as "
                          "control tokens; this tokenizer cannot be used safely")


CHECKS: dict[str, Callable[[Any], tuple[bool, str]]] = {
    "end of turn": _eos, "pad": _pad, "prefix": _prefix, "mask": _mask, "thinking": _thinking,
    "control tokens": _spelt_out_tokens}


def _eos_of_model(tokenizer: Any, model: str) -> Check:
    """Check that servers stop at the trained end of turn."""
    from transformers import GenerationConfig

    try:
        declared = GenerationConfig.from_pretrained(model).eos_token_id
    except (OSError, ValueError):
        return Check("generation config", True, "not present; training writes one with the eos")
    if declared is None:
        return Check("generation config", False, "generation_config.json names no eos_token_id; "
                     f"set it to {tokenizer.eos_token_id} there, or servers may not stop")
    eos_token_ids = declared if isinstance(declared, list) else [declared]
    if tokenizer.eos_token_id in eos_token_ids:
        return Check("generation config", True, "servers stop at the trained end of turn")
    return Check("generation config", False,
                 f"generation_config.json stops at {eos_token_ids}, the tokenizer's eos is "
                 f"{tokenizer.eos_token_id}; fix eos_token_id there, or servers will not stop")


def _positions(model: str) -> Check:
    limit = positions(model)
    return Check("positions", True, "no limit is named" if limit is None else
                 f"made for texts of up to {limit:,} tokens")


def _embeddings(tokenizer: Any, size: int | None, model: str) -> Check:
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(model):
        return Check("embeddings", False, "this is a LoRA adapter without its model; merge them "
                     "(peft's merge_and_unload) and name the folder of the merged model")
    if size is None:
        return Check("embeddings", True, "no model configuration, so nothing to compare")
    highest = max(tokenizer.get_vocab().values())
    if highest < size:
        return Check("embeddings", True, f"{size:,} rows hold every token id (highest {highest:,})")
    return Check("embeddings", False, f"token id {highest:,} is beyond the model's {size:,} rows; "
                 "use the model's own tokenizer, or resize its embeddings")


def _vocabularies(tokenizer: Any, size: int | None, teacher: str) -> Check:
    """Check for equal token ids, as the logits stage does."""
    from pipeline.student.tokenizer import check_vocabulary

    try:
        teacher_tokenizer = bare_tokenizer(teacher)
        check_vocabulary(teacher_tokenizer, tokenizer, teacher)
    except UserError as error:
        return Check("teacher vocabulary", False, str(error))
    unshared = len(tokenizer.get_vocab().keys() ^ teacher_tokenizer.get_vocab().keys())
    note = f" except {unshared} added tokens of one side" if unshared else ""
    return Check("teacher vocabulary", True, f"the same {len(tokenizer):,} tokens{note} (embeddings"
                 f" {size or '?'} and {vocabulary_size(teacher) or '?'}; padding is ignored)")


def _attacks(problems: str) -> tuple[bool, str]:
    """Whether answers that should earn nothing would score on twenty of the problems."""
    from pipeline.config.problems import Source
    from pipeline.judge import needs_answer
    from pipeline.judge.checks.attack import attack
    from pipeline.problems.sources import load_rows

    found = attack(load_rows(Source(problems=problems), 0, needs_answer), 20)
    tried, scored = (sum(getattr(one, name) for one in found.values())
                     for name in ("tried", "scored"))
    names = ", ".join(name for name, one in found.items() if one.scored)
    return not scored, f"{scored:,} of {tried:,} answers that should earn nothing would score" + (
        f" ({names}); see `limbeck attack {problems} --show`" if scored else "")


def _golds(problems: str) -> tuple[bool, str]:
    """Check that the judge accepts every gold answer as its own answer."""
    from pipeline.config.problems import Source
    from pipeline.judge import Problem, check_gold, needs_answer
    from pipeline.problems.sources import load_rows

    rows = load_rows(Source(problems=problems), 0, needs_answer)
    bad = [row for row in rows if check_gold(Problem.from_row(row)).score != 1.0]
    if not bad:
        return True, f"all {len(rows):,} pass their own check"
    return False, (f"{len(bad):,} of {len(rows):,} fail their own check, e.g. {bad[0]['answer']!r} "
                   f"of problem {bad[0]['problem_id']!r}; fix them or set prepare.bad_gold=drop")
