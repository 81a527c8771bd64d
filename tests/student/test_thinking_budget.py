"""Thinking ends at exactly its budget, is closed, and an answer follows, on the CPU decoder."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.config.evaluate import StudentSampling
from pipeline.config.student import TinyModel
from pipeline.prompts import asking_length
from pipeline.student import sample
from pipeline.student.decode import decode
from pipeline.student.sample import sample_sets
from pipeline.student.template import prompt_ids
from pipeline.student.thinking_budget import Budget, BudgetForcer
from pipeline.student.tiny import build_model, build_tokenizer, save_tiny
from pipeline.student.tokenizer import load_tokenizer

TEMPLATE = (Path(__file__).resolve().parents[2] / "prompts/chat_templates/tiny.jinja").read_text()
TEXTS = ["1 and 2 make 3. Wait <think>\nso it is 3\n</think>\nthe answer is 3"]
TOKENIZER = build_tokenizer(TEXTS, 400, TEMPLATE)
END = TOKENIZER.eos_token_id
CHAT = [{"role": "user", "content": "1 and 2 make"}]


def forcer(opened=True):
    return BudgetForcer(TOKENIZER, [END], opened)


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def scripted(*turns):
    """A sampler that says each turn's texts, cut to the limits; keeps what it was asked."""
    asked, left = [], list(turns)

    def sampler(prompts, limits):
        asked.append((prompts, limits))
        said = left.pop(0)
        return [(ids(text.removesuffix("<end>")) + [END] * text.endswith("<end>"))[:limit]
                for text, limit in zip(said, limits, strict=True)]

    return sampler, asked


def test_the_cpu_decoder_stops_at_exactly_the_budget_and_answers():
    model = build_model(TOKENIZER, TinyModel(layers=1, width=32, heads=2, init_std=0.5), 0).eval()
    prompts, force = [prompt_ids(TOKENIZER, CHAT)] * 6, forcer()
    torch.manual_seed(1)

    def sampler(rows, limits):
        return decode(model, rows, max_tokens=limits, temperature=1.0, eos_token_ids=[])

    for budget in (1, 7, 20):
        for row in force.sample(sampler, prompts, Budget(budget, answer=5)):
            assert force.closes_at(row[:budget]) is None
            assert row[budget:budget + len(force.closing)] == force.closing
            assert len(row) == budget + len(force.closing) + 5


def test_limits_hold_for_each_row_of_a_batch():
    model = build_model(TOKENIZER, TinyModel(layers=1, width=32, heads=2, init_std=0.5), 0).eval()
    prompts = [prompt_ids(TOKENIZER, CHAT)] * 4
    rows = decode(model, prompts, max_tokens=[3, 30, 1, 12], temperature=1.0, eos_token_ids=[])
    assert list(map(len, rows)) == [3, 30, 1, 12]
    greedy = decode(model, prompts, max_tokens=[3, 30, 1, 12], temperature=0, eos_token_ids=[])
    assert greedy[1][:12] == greedy[3] and greedy[1][:3] == greedy[0]


def test_thinking_that_closes_by_itself_is_left_alone():
    sampler, asked = scripted(["so it is 3\n</think>\nthe answer is 3<end>", "so it is"],
                              ["the answer is 3<end>"])
    first, second = forcer().sample(sampler, [[5], [6]], Budget(40, answer=9))
    assert TOKENIZER.decode(first[:-1]) == "so it is 3\n</think>\nthe answer is 3"
    assert asked[0][1] == [40, 40] and len(asked) == 2 and asked[1][1] == [9]
    assert asked[1][0] == [[6, *ids("so it is"), *ids("\n</think>\n")]]
    assert TOKENIZER.decode(second).count("</think>") == 1 and second[-1] == END


def test_an_answer_cut_at_the_budget_goes_on_with_what_is_left_to_it():
    text = "so it is 3\n</think>\nthe answer"
    sampler, asked = scripted([text], [" is 3<end>"])
    [row] = forcer().sample(sampler, [[5]], Budget(len(ids(text)), answer=20))
    assert asked[1][1] == [20 - len(ids("the answer"))] and row[-1] == END


def test_a_turn_that_ends_amid_thinking_is_closed_and_answered():
    sampler, _ = scripted(["so it is<end>"], ["3<end>"])
    [row] = forcer().sample(sampler, [[5]], Budget(40))
    assert row == [*ids("so it is"), *ids("\n</think>\n"), *ids("3"), END]


def test_wait_lengthens_thinking_within_the_budget():
    budget = len(ids("so it is 3")) + len(ids("Wait")) + 6
    sampler, asked = scripted(["so it is 3</think>\n3<end>"], ["so it is 3 so it is 3 so it is"],
                              ["3<end>"])
    [row] = forcer().sample(sampler, [[5]], Budget(budget, answer=9, waits=1))
    assert asked[1][0] == [[5, *ids("so it is 3"), *ids("Wait")]] and asked[1][1] == [6]
    start, _ = forcer().closes_at(row)
    assert row[budget:budget + 1] == forcer().closing[:1] and start >= budget
    assert TOKENIZER.decode(row).count("</think>") == 1 and row[-1] == END


def test_a_prompt_that_does_not_open_thinking_gets_its_tag_on_top():
    opening = ids("<think>\n")
    sampler, asked = scripted(["<think>\n" + "so it is 3 " * 20, "the answer is 3<end>"],
                              ["3<end>"])
    first, second = forcer(opened=False).sample(sampler, [[5], [6]], Budget(8))
    assert asked[0][1] == [8 + len(opening)] * 2
    assert first[:len(opening)] == opening
    assert first[len(opening) + 8:][:len(forcer().closing)] == forcer().closing
    assert TOKENIZER.decode(second[:-1]) == "the answer is 3"


@pytest.mark.parametrize("budget", [3, 10])
def test_every_sample_of_a_set_keeps_to_its_budget(tmp_path, budget):
    save_tiny(TEXTS, TinyModel(layers=1, width=32, heads=2), TEMPLATE, 0, tmp_path)
    load_tokenizer(tmp_path).save_pretrained(tmp_path)
    done = dict(sample_sets(str(tmp_path), str(tmp_path), {"a": [CHAT], "a @n": [CHAT]}, 3,
                            StudentSampling(max_tokens=6), 0,
                            budgets={"a @n": Budget(budget, answer=4)}))
    assert all(tokens <= 6 for _, tokens in done["a"][0])
    closing = len(forcer().closing)
    for completion, tokens in done["a @n"][0]:
        assert completion.closed and tokens <= budget + closing + 4


def test_a_prompt_asks_for_its_length():
    asked = asking_length([{"role": "user", "content": "What?"}], 300)
    assert asked == [{"role": "user", "content": "What?\n\nThink for 300 tokens."}]


def test_vllm_is_asked_in_the_same_two_passes_with_a_limit_for_each_prompt(tmp_path, monkeypatch):
    save_tiny(TEXTS, TinyModel(layers=1, width=32, heads=2), TEMPLATE, 0, tmp_path)
    asked, word = [], ids("3")[:1]

    class Engine:
        """What LLM.generate takes and gives; says one token only and never ends a turn."""

        llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: None))

        def __init__(self, **options):
            self.longest = options["max_model_len"]

        def generate(self, prompts, params):
            asked.append([(one["prompt_token_ids"], each.max_tokens)
                          for one, each in zip(prompts, params, strict=True)])
            assert all(len(ids) + limit <= self.longest for ids, limit in asked[-1])
            said = [SimpleNamespace(token_ids=word * each.max_tokens) for each in params]
            return [SimpleNamespace(outputs=[one]) for one in said]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(
        LLM=Engine, SamplingParams=lambda **given: SimpleNamespace(**given)))
    monkeypatch.setattr(sample, "_vllm_available", lambda: True)
    [(_, [[(completion, tokens)]])] = sample.sample_sets(
        str(tmp_path), str(tmp_path), {"a": [CHAT]}, 1, StudentSampling(max_tokens=6), 0,
        budgets={"a": Budget(11, answer=4)})
    prompt = prompt_ids(TOKENIZER, CHAT)
    closing = forcer().closing
    assert asked == [[(prompt, 11)], [(prompt + word * 11 + closing, 4)]]
    assert completion.closed and completion.answer == TOKENIZER.decode(word * 4).strip()
    assert tokens == 11 + len(closing) + 4
