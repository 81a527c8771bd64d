"""The doctor: sound students pass every check, each fault fails the check that is about it."""

import copy
import json
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import typer
from tokenizer_kinds import NAMES, TEMPLATES, tokenizer_of
from tokenizers import AddedToken

from pipeline.errors import UserError
from pipeline.student import doctor_vllm
from pipeline.student.doctor import ASK, examine
from pipeline.student.doctor_vllm import examine_served
from pipeline.student.template import training_row
from pipeline.student.tokenizer import check_vocabulary
from stages.commands import doctor
from tests.fault_server import Answer, FaultServer, completion


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


@pytest.mark.parametrize("template", [
    "{{ raise_exception('Roles must alternate') }}", "{% for m in messages %}{{ m.content }",
    "{{ messages[0].foo.bar }}"])
def test_a_template_that_cannot_render_fails_every_check_of_it_with_the_remedy(template, tmp_path):
    tokenizer = copy.deepcopy(tokenizer_of("qwen3"))
    tokenizer.chat_template = template
    checks = {check.name: check for check in examine(saved(tokenizer, tmp_path))}
    for name in ("end of turn", "prefix", "mask", "thinking", "control tokens"):
        assert not checks[name].ok and "student.chat_template" in checks[name].sentence
    with pytest.raises(UserError, match="cannot render"):
        training_row(tokenizer, ASK, None, "42")


def test_a_chat_template_that_cannot_be_read_is_one_failed_check_that_names_it(tmp_path):
    folder = saved(tokenizer_of("qwen3"), tmp_path)
    for template in (tmp_path / "absent.jinja", tmp_path):
        checks = examine(folder, template)
        assert failed(checks) == {"tokenizer"} and str(template) in checks[0].sentence


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
    (tmp_path / "generation_config.json").write_text('{"temperature": 1.0}')
    found = {check.name: check for check in examine(folder)}["generation config"]
    assert not found.ok and "names no eos_token_id" in found.sentence


def test_an_adapter_without_its_model_fails(tmp_path):
    folder = saved(tokenizer_of("qwen3"), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    checks = examine(folder)
    assert failed(checks) == {"embeddings"} and "merge" in checks[-1].sentence


def test_a_teacher_with_padded_embeddings_shares_the_vocabulary_and_another_does_not(tmp_path):
    student, other = tokenizer_of("qwen3"), tokenizer_of("llama3")
    mine = saved(student, tmp_path / "student", vocab_size=len(student) + 3)
    padded = saved(student, tmp_path / "teacher", vocab_size=len(student) + 131)
    checks = examine(mine, teacher=padded)
    assert failed(checks) == set() and checks[-1].name == "teacher vocabulary"
    checks = examine(mine, teacher=saved(other, tmp_path / "other"))
    assert failed(checks) == {"teacher vocabulary"} and "sequence" in checks[-1].sentence
    assert failed(examine(mine, teacher=str(tmp_path / "nowhere"))) == {"teacher vocabulary"}


def test_a_chat_template_is_named_to_the_doctor_as_to_the_student(tmp_path, capsys):
    from stages import commands

    tokenizer = copy.deepcopy(tokenizer_of("qwen2_5"))
    tokenizer.chat_template = None
    model = saved(tokenizer, tmp_path, vocab_size=len(tokenizer))
    for named in ("qwen2_5", str(TEMPLATES / "qwen2_5.jinja")):
        commands.doctor(model, chat_template=named)
        assert "FAIL" not in capsys.readouterr().out


def test_the_doctor_says_of_added_tokens_what_the_logits_stage_says(tmp_path):
    student = tokenizer_of("qwen2_5")
    teacher = copy.deepcopy(student)
    teacher.add_tokens([AddedToken("<think>", normalized=False),
                        AddedToken("</think>", normalized=False)])
    one, two = saved(student, tmp_path / "one"), saved(teacher, tmp_path / "two")
    check_vocabulary(teacher, student, two)
    found = examine(one, teacher=two)[-1]
    assert found.name == "teacher vocabulary" and found.ok and "2 added tokens" in found.sentence


def test_a_gold_answer_that_fails_its_own_check_is_named(tmp_path):
    folder, file = saved(tokenizer_of("qwen3"), tmp_path / "model"), tmp_path / "problems.jsonl"
    for answers, ok, said in ((["42", "\\frac{1}{2}"], True, "all 2 pass"),
                              (["42", "x = "], False, "1 of 2 fail")):
        file.write_text("\n".join(json.dumps({"problem": "?", "answer": answer})
                                  for answer in answers))
        found = {check.name: check for check in examine(folder, problems=str(file))}
        golds = found["gold answers"]
        assert golds.ok == ok and said in golds.sentence
    found = examine(folder, problems=str(tmp_path / "absent.jsonl"))[-1]
    assert not found.ok and "absent.jsonl does not exist" in found.sentence


@pytest.mark.parametrize(("given", "said"), [
    ("sft.trainer.learning_rat=1", "sft.trainer.learning_rat is not a key"),
    ("sft.trainer.num_train_epochs=many", "sft.trainer.num_train_epochs='many' should be"),
    ("rl.trainer.beta=abc", "rl.trainer.beta='abc' should be"),
    ("runtime.launch.num_process=2", "runtime.launch is not valid for accelerate"),
    ("rl.lora={target_modules: [q_prj]}", "rl.lora.target_modules"),
    ("sft.trainer.num_train_epochs=1", "")])
def test_trainer_settings_are_checked_before_a_token_is_bought(given, said, tmp_path, capsys):
    tokenizer = tokenizer_of("qwen3")
    folder = saved(tokenizer, tmp_path, vocab_size=len(tokenizer), hidden_size=8, head_dim=4,
                   num_hidden_layers=1)
    with pytest.raises(typer.Exit) if said else nullcontext():
        doctor(folder, [given])
    *others, last = capsys.readouterr().out.splitlines()
    assert last.startswith("FAIL  trainer settings" if said else "ok    trainer settings")
    assert said in last and len(others) >= 9 and not any("FAIL" in line for line in others)


@pytest.fixture
def vllm(monkeypatch):
    """Puts a server with a tokenizer and no model in the place of `vllm serve`."""
    def install(tokenizer, fault=None):
        @contextmanager
        def serve(model, options, *, log):
            def script(call):
                messages = call.body["messages"]
                if fault == "drop" and len(messages) == 2:
                    messages[1]["content"] = messages[1]["content"].split("</think>")[1]
                text = tokenizer.apply_chat_template(
                    messages, tokenize=False, chat_template=template,
                    add_generation_prompt=call.body.get("add_generation_prompt", True))
                ids = tokenizer(text, add_special_tokens=fault == "twice")["input_ids"]
                body = json.loads(completion("x", finish="length"))
                assert call.body["return_token_ids"] and call.body["max_tokens"] == 1
                return Answer(json.dumps({**body, **({} if fault == "old" else
                                                     {"prompt_token_ids": ids})}).encode())

            template = Path(options["chat_template"]).read_text()
            with FaultServer(script).running() as url:
                yield url

        monkeypatch.setattr(doctor_vllm, "vllm_server", serve)

    return install


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_a_student_served_by_vllm_sees_the_tokens_it_is_trained_on(name, vllm, tmp_path):
    vllm(tokenizer_of(name))
    checks = examine_served(saved(tokenizer_of(name), tmp_path / "student"))
    assert failed(checks) == set() and len(checks) == 2


@pytest.mark.parametrize(("fault", "name", "which", "said"), [
    ("drop", "qwen3", {"vllm thinking"}, "loses the thinking"),
    ("twice", "llama3", {"vllm prompt", "vllm thinking"}, "chat_template"),
    ("old", "qwen3", {"vllm"}, "0.11")])
def test_a_server_that_feeds_other_tokens_fails(fault, name, which, said, vllm, tmp_path):
    vllm(tokenizer_of(name), fault)
    checks = examine_served(saved(tokenizer_of(name), tmp_path / "student"))
    assert failed(checks) == which and any(said in check.sentence for check in checks)


def test_without_vllm_the_check_of_its_tokens_fails_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = examine_served(saved(tokenizer_of("qwen3"), tmp_path / "student"))
    assert failed(checks) == {"vllm"} and "pip install" in checks[0].sentence
