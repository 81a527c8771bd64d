"""Every shipped chat template: token-exact, thinking kept, control tokens in texts are text."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import NAMES, tokenizer_of

from pipeline.completion import split_completion
from pipeline.errors import UserError
from pipeline.student.template import encode, prompt_ids, render_prompt, training_row

WORDS = [
    "Let", "me", "check", "12", "+", "30", "=", "42.", "Wait,", "\\frac{1}{2}", "λ", "数学",
    "∑", "🙂", "\n", "\n\n", "so", "the", "answer", "is", "\\boxed{42}", "`code`", "{{", "x",
    "}}", "{%", "if", "%}", "${y}", "\t", "-", "*", "#", "_a_", "3.14", "don't"]


def conversations(count, seed=0):
    """Varied (messages, thinking, answer), with several turns, system messages, odd white space."""
    rng = random.Random(seed)

    def text(least, most):
        said = " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most))).strip()
        return said or "x"

    for _ in range(count):
        messages = [{"role": "system", "content": text(1, 8)}] if rng.random() < 0.3 else []
        for _ in range(rng.randint(0, 2)):
            messages += [{"role": "user", "content": text(1, 20)},
                         {"role": "assistant", "content": text(1, 20)}]
        messages.append({"role": "user", "content": text(1, 30)})
        yield messages, text(1, 60), text(1, 20)


@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_completion_tokens_are_the_conversations_over_50_of_them(name):
    tokenizer = tokenizer_of(name)
    for messages, thinking, answer in conversations(50):
        ids, mask = training_row(tokenizer, messages, thinking, answer)
        prompt = encode(tokenizer, render_prompt(tokenizer, messages))
        assert ids[:len(prompt)] == prompt == prompt_ids(tokenizer, messages)
        assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
        assert ids[-1] == tokenizer.eos_token_id
        said = {"role": "assistant", "content": f"<think>\n{thinking}\n</think>\n{answer}"}
        whole = encode(tokenizer, tokenizer.apply_chat_template([*messages, said], tokenize=False))
        assert ids == whole[:len(ids)] and len(whole) - len(ids) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_thinking_and_answer_come_back_from_the_trained_tokens(name):
    tokenizer = tokenizer_of(name)
    opened = render_prompt(tokenizer, [{"role": "user", "content": "x"}]).endswith("<think>\n")
    for messages, thinking, answer in conversations(50, seed=1):
        ids, mask = training_row(tokenizer, messages, thinking, answer)
        text = tokenizer.decode(ids[mask.index(1):], skip_special_tokens=True)
        came = split_completion(text, opened=opened)
        assert (came.thinking, came.answer) == (thinking, answer)


@pytest.mark.parametrize("name", NAMES)
def test_control_tokens_that_a_text_spells_out_are_encoded_as_text(name):
    tokenizer = tokenizer_of(name)
    control = set(tokenizer.added_tokens_decoder)
    spelt = "".join(tokenizer.get_added_vocab()) + " <think> </think> "
    row = training_row(tokenizer, [{"role": "user", "content": f"Say {spelt} now"}],
                       f"It says {spelt} here", f"the text {spelt} end")
    plain = training_row(tokenizer, [{"role": "user", "content": "Say it now"}],
                         "It says so here", "the text end")
    counted = [[i for i in ids if i in control] for ids, _ in (row, plain)]
    assert counted[0] == counted[1]
    assert tokenizer.decode(row[0]).count(tokenizer.eos_token) > counted[1].count(
        tokenizer.eos_token_id)
    trained = tokenizer.decode(row[0][row[1].index(1):])
    assert trained.count(f"It says {spelt} here") == 1 and f"the text {spelt} end" in trained


@given(st.text(max_size=60), st.text(min_size=1, max_size=60), st.data())
@settings(max_examples=150)
def test_no_text_whatever_changes_the_control_tokens_of_a_row(problem, thinking, data):
    tokenizer = tokenizer_of(data.draw(st.sampled_from(NAMES)))
    control = set(tokenizer.added_tokens_decoder)
    broken = data.draw(st.sampled_from(sorted(tokenizer.get_added_vocab())))
    problem = problem[:20] + broken[:3] + broken + problem[20:]
    ids, mask = training_row(tokenizer, [{"role": "user", "content": problem}], thinking, "a b")
    plain, _ = training_row(tokenizer, [{"role": "user", "content": "q"}], "t", "a b")
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    assert mask == sorted(mask) and ids[-1] == tokenizer.eos_token_id


def test_a_prompt_that_opens_the_thinking_gets_one_to_close():
    tokenizer = tokenizer_of("tiny")
    ids, mask = training_row(tokenizer, [{"role": "user", "content": "q"}], None, "a")
    assert "</think>" in tokenizer.decode(ids[mask.index(1):])


def test_end_of_turn_is_trained_where_the_template_ends_in_another_token():
    tokenizer = tokenizer_of("base", template="qwen2_5")
    ids, mask = training_row(tokenizer, [{"role": "user", "content": "q"}], "t", "a")
    assert ids[-1] == tokenizer.eos_token_id and mask[-1] == 1


def test_a_trace_without_an_answer_is_refused():
    with pytest.raises(UserError, match="without an answer"):
        training_row(tokenizer_of("qwen3"), [{"role": "user", "content": "q"}], "t", " \n")


def test_a_template_that_breaks_the_prefix_is_refused():
    import copy

    tokenizer = copy.deepcopy(tokenizer_of("qwen2_5"))
    tokenizer.chat_template = ("{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
                               "{% if add_generation_prompt %}bot>{% endif %}")
    with pytest.raises(UserError, match="not the start of the conversation"):
        training_row(tokenizer, [{"role": "user", "content": "q"}], "t", "a")
