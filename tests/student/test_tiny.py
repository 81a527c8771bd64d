"""The tiny student: an ordinary checkpoint whose tokenizer loses nothing."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.student import TinyModel
from pipeline.errors import UserError
from pipeline.student.template import encode, opens_thinking, render_prompt, training_row
from pipeline.student.tiny import build_tokenizer, save_tiny
from pipeline.student.tokenizer import load_tokenizer

TEMPLATE = (Path(__file__).resolve().parents[2] / "prompts/chat_templates/tiny.jinja").read_text()
CORPUS = ["Use 2 and 7 to make 9.", "<think>\nTry 2+7=9: yes.\n</think>\n\\boxed{2+7}"] * 3
TOKENIZER = build_tokenizer(CORPUS, 400, TEMPLATE)
ASK = [{"role": "user", "content": CORPUS[0]}]


@given(st.text(max_size=80))
@settings(max_examples=200)
def test_any_text_survives_the_tokenizer(text):
    if not any(token in text for token in ("<|end|>", "<|pad|>", "<|user|>", "<|assistant|>")):
        assert TOKENIZER.decode(encode(TOKENIZER, text)) == text


def test_numbers_and_frequent_stretches_are_one_token():
    assert len(encode(TOKENIZER, "Try 2+7=9: yes.")) == 7


def test_the_generation_prompt_is_the_head_of_the_training_row():
    ids, mask = training_row(TOKENIZER, ASK, "Try 2+7=9: yes.", "\\boxed{2+7}")
    prompt = encode(TOKENIZER, render_prompt(TOKENIZER, ASK))
    assert ids[:len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    assert ids[-1] == TOKENIZER.eos_token_id and opens_thinking(TOKENIZER)
    assert "Try 2+7=9: yes.\n</think>\n\\boxed{2+7}" in TOKENIZER.decode(ids)


def test_the_checkpoint_loads_as_any_other_and_generates(tmp_path):
    from transformers import AutoModelForCausalLM

    counts = save_tiny(CORPUS, TinyModel(layers=1, width=32, heads=2), TEMPLATE, 0, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert counts["parameters"] == sum(p.numel() for p in model.parameters())
    assert tokenizer.chat_template == TEMPLATE.rstrip("\n") or tokenizer.chat_template == TEMPLATE
    batch = tokenizer(render_prompt(tokenizer, ASK), return_tensors="pt")
    assert model.generate(**batch, max_new_tokens=3).shape[1] >= batch["input_ids"].shape[1] + 1


def test_the_same_seed_builds_the_same_weights(tmp_path):
    from safetensors.torch import load_file

    tiny = TinyModel(layers=1, width=32, heads=2)
    for name in ("a", "b"):
        save_tiny(CORPUS, tiny, TEMPLATE, 3, tmp_path / name)
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("a", "b"))
    assert all((one[k] == two[k]).all() for k in one)


def test_a_template_that_loses_the_thinking_is_refused():
    from pipeline.errors import UserError

    shorter = TEMPLATE.replace("{{ message.content }}<|end|>{% endgen",
                               "{{ message.content.split('</think>')[-1] }}<|end|>{% endgen")
    loses = build_tokenizer(CORPUS, 400, shorter.replace('{{ "<think>\\n" }}', ""))
    with pytest.raises(UserError, match="drops the thinking"):
        training_row(loses, ASK, "Try 2+7=9: yes.", "\\boxed{2+7}")


@pytest.mark.parametrize("missing", ["tokenizer*", "*.safetensors", ""])
def test_a_checkpoint_folder_that_lacks_a_part_is_named_before_it_is_trained(tmp_path, missing):
    from types import SimpleNamespace

    from pipeline.config.student import StudentConfig
    from stages import student

    save_tiny(CORPUS, TinyModel(layers=1, width=16, heads=1), TEMPLATE, 0, tmp_path / "model")
    for part in (tmp_path / "model").glob(missing) if missing else ():
        part.unlink()
    config = StudentConfig(model=str(tmp_path / ("model" if missing else "elsewhere")))
    with pytest.raises(UserError, match=r"tokenizer\.json" if "tok" in missing else "weights"):
        student.check(SimpleNamespace(student=config,
                                      generate=SimpleNamespace(prompt="boxed")))
        student.run(SimpleNamespace(student=config), {}, tmp_path)


def test_a_whole_checkpoint_folder_and_a_hub_id_pass_the_check(tmp_path):
    from types import SimpleNamespace

    from pipeline.config.student import StudentConfig
    from stages import student

    (tmp_path / "model.safetensors").touch()
    for model in (str(tmp_path), "Qwen/Qwen2.5-Math-1.5B", "tiny"):
        student.check(SimpleNamespace(student=StudentConfig(model=model),
                                      generate=SimpleNamespace(prompt="boxed")))
