"""The doctor: sound students pass every check, each fault fails the check that is about it."""

import copy

import pytest
from tokenizer_kinds import NAMES, TEMPLATES, tokenizer_of

from pipeline.doctor import examine


def failed(checks):
    return {check.name for check in checks if not check.ok}


def saved(tokenizer, folder, **config):
    tokenizer.save_pretrained(folder)
    if config:
        from transformers import Qwen3Config

        Qwen3Config(**config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_student_passes_every_check(name, tmp_path):
    tokenizer = tokenizer_of(name)
    checks = examine(saved(tokenizer, tmp_path, vocab_size=len(tokenizer)))
    assert failed(checks) == set() and len(checks) >= 9
    assert all(check.sentence and not check.sentence.endswith("\n") for check in checks)


def test_a_template_that_drops_the_thinking_fails(tmp_path):
    tokenizer = copy.deepcopy(tokenizer_of("qwen3"))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        'thinking.rstrip() + "\\n</think>\\n\\n" + ', "")
    folder = saved(tokenizer, tmp_path)
    assert "thinking" in failed(examine(folder))
    assert "thinking" not in failed(examine(folder, TEMPLATES / "qwen3.jinja"))


def test_a_template_that_breaks_the_prefix_fails(tmp_path):
    tokenizer = copy.deepcopy(tokenizer_of("qwen2_5"))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        '"<|im_start|>assistant\\n"', '"<|im_start|>bot\\n"')
    checks = examine(saved(tokenizer, tmp_path))
    assert {"prefix", "mask", "thinking"} <= failed(checks)


def test_no_tokenizer_no_template_and_no_end_of_turn_are_one_failed_check(tmp_path):
    assert failed(examine(str(tmp_path / "absent"))) == {"tokenizer"}
    bare = copy.deepcopy(tokenizer_of("base"))
    bare.chat_template = None
    checks = examine(saved(bare, tmp_path / "bare"))
    assert failed(checks) == {"tokenizer"} and "chat template" in checks[0].sentence


def test_a_model_with_too_few_embedding_rows_fails(tmp_path):
    tokenizer = tokenizer_of("qwen3")
    folder = saved(tokenizer, tmp_path, vocab_size=len(tokenizer) - 1)
    assert failed(examine(folder)) == {"embeddings"}


def test_a_server_that_would_run_on_fails(tmp_path):
    from transformers import GenerationConfig

    tokenizer = tokenizer_of("qwen3")
    folder = saved(tokenizer, tmp_path, vocab_size=len(tokenizer))
    GenerationConfig(eos_token_id=tokenizer.eos_token_id + 1).save_pretrained(folder)
    assert failed(examine(folder)) == {"generation config"}


def test_a_teacher_with_padded_embeddings_shares_the_vocabulary_and_another_does_not(tmp_path):
    student, other = tokenizer_of("qwen3"), tokenizer_of("llama3")
    mine = saved(student, tmp_path / "student", vocab_size=len(student) + 3)
    padded = saved(student, tmp_path / "teacher", vocab_size=len(student) + 131)
    checks = examine(mine, teacher=padded)
    assert failed(checks) == set() and checks[-1].name == "teacher vocabulary"
    checks = examine(mine, teacher=saved(other, tmp_path / "other"))
    assert failed(checks) == {"teacher vocabulary"} and "sequence" in checks[-1].sentence
    assert failed(examine(mine, teacher=str(tmp_path / "nowhere"))) == {"teacher vocabulary"}
