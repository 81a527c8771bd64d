"""Where a completion is split: the order of its marks decides, in whatever spelling."""

import pytest

from pipeline.completion import split_completion
from pipeline.teacher.dialects import read_message

THOUGHT, SAID = "First 6, no: it is 5.", "The answer is \\boxed{5}."
SPELLINGS = [
    "<think>{}</think>{}", "<thinking>\n{}\n</thinking>\n{}", "<thought>{}</thought> {}",
    "<reasoning>{}</reasoning>{}", "[THINK]{}[/THINK]{}", "<seed:think>{}</seed:think>{}",
    "<mm:think>{} </mm:think> {}", "◁think▷{}◁/think▷{}",
    "<|begin_of_thought|>\n\n{}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{}\n\n"
    "<|end_of_solution|>", "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}"
    "<|END_RESPONSE|>", "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
    "<|channel|>final<|message|>{}<|return|>", "analysis{}assistantfinal{}",
    "<|channel>thought\n{}<channel|>{}"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_thinking_is_split_alike_from_text_and_from_a_message(spelling):
    text = spelling.format(THOUGHT, SAID)
    split, message = split_completion(text), read_message({"content": text})
    for found in (split, message):
        assert (found.thinking, found.answer, found.closed) == (THOUGHT, SAID, True)
    cut = split_completion(text[:text.index("it is")])
    assert (cut.thinking, cut.answer, cut.closed) == ("First 6, no:", "", False)


@pytest.mark.parametrize(("text", "thinking", "answer", "closed"), [
    ("<think>a</think>5<think>wait", "a\n5\nwait", "", False),
    ("<think>a</think>It is 5.\n\n<think>\nHm, no", "a\nIt is 5.\nHm, no", "", False),
    ("<think>a</think>5<think>wait</think>6", "a\n5\nwait", "6", True),
    ("<think>a</think><think>b</think>5", "a\nb", "5", True),
    ("<think>a</think>5. (My </think> stands above.)", "a", "5. (My </think> stands above.)", True),
    ("<think>a</think>5, after `</think>`", "a", "5, after `</think>`", True),
    ("<think>may type <think> or </think> here</think>5", "may type <think> or </think> here",
     "5", True),
    ("<think>the tag </think> closes it, and so", "the tag", "closes it, and so", True),
    ("<think>I write `</think>` and", "I write `</think>` and", "", False),
    ("<think>\n<think>\na\n</think>\n5", "a", "5", True),
    ("a</think>5", "a", "5", True), ("<think>a</think>b</think>5", "a\nb", "5", True),
    ("The <think> tag opens it: 5", None, "The <think> tag opens it: 5", True),
    ("analysis of x gives 5", None, "analysis of x gives 5", True),
    ("<think></think>5", "", "5", True), ("5", None, "5", True)])
def test_the_order_of_the_marks_decides_and_a_quoted_one_is_text(text, thinking, answer, closed):
    found = split_completion(text)
    assert (found.thinking, found.answer, found.closed) == (thinking, answer, closed)


@pytest.mark.parametrize(("text", "thinking", "answer", "closed"), [
    ("it is five </think> the answer is 5", "it is five", "the answer is 5", True),
    ("a <think> b", "a <think> b", "", False), ("a", "a", "", False),
    ("a</think>5", "a", "5", True), ("a[/THINK]5", "a", "5", True)])
def test_thinking_that_the_prompt_opened_ends_with_its_first_closing_mark(text, thinking, answer,
                                                                          closed):
    found = split_completion(text, opened=True)
    assert (found.thinking, found.answer, found.closed) == (thinking, answer, closed)
