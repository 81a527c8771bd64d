"""Every dialect, whole or streamed, whole or damaged, reads as the same thinking and answer."""

import itertools
import json

import pytest

from pipeline.config.teacher import OpenAITeacher, Sampling
from pipeline.teacher import dialects
from pipeline.teacher.answer import Choice, MalformedReplyError, Usage, read_usage
from pipeline.teacher.budget import Price
from pipeline.teacher.dialects import Message
from pipeline.teacher.probe import dialect as dialect_of
from pipeline.teacher.request import Job
from pipeline.teacher.sse import read_body
from pipeline.teacher.store import TraceStore
from pipeline.teacher.trace_rows import asked_row, pack_logprobs, trace_rows

THINKING, ANSWER = "Six times seven.\nThat is 42.", "The answer is \\boxed{42}."


def deepseek(thinking, answer):
    return {"content": answer, "reasoning_content": thinking}


def openrouter(thinking, answer):
    details = [{"type": "reasoning.text", "text": thinking}] if thinking else []
    return {"content": answer, "reasoning": thinking, "reasoning_details": details}


def openrouter_details(thinking, answer):
    half = len(thinking) // 2
    details = [{"type": "reasoning.text", "text": part} for part in (thinking[:half],
                                                                     thinking[half:])]
    return {"content": answer, "reasoning_details": details}


def vllm(thinking, answer):
    return {"content": answer or None, "reasoning": thinking, "tool_calls": []}


def vllm_both(thinking, answer):
    return {"content": answer or None, "reasoning": thinking, "reasoning_content": thinking}


def sglang(thinking, answer):
    return {"content": answer, "reasoning_content": thinking, "tool_calls": None}


def renamed(thinking, answer):
    return {"content": answer, "chain_of_thought": thinking}


def parts(thinking, answer):
    return {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": thinking}]},
                        {"type": "text", "text": answer}]}


def inline(thinking, answer):
    return {"content": f"<think>\n{thinking}\n</think>\n\n{answer}"}


def inline_opened_by_template(thinking, answer):
    return {"content": f"{thinking}\n</think>\n\n{answer}"}


def inline_beside_the_field(thinking, answer):
    return {"content": f"<think>{thinking}</think>{answer}", "reasoning_content": thinking}


def close_left_in_content(thinking, answer):
    return {"content": f"</think>\n{answer}", "reasoning_content": f"<think>{thinking}"}


DIALECTS = [deepseek, openrouter, openrouter_details, vllm, vllm_both, sglang, renamed, parts,
            inline, inline_opened_by_template, inline_beside_the_field, close_left_in_content]


def whole(message, finish):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}
    return json.dumps({"id": "1", "model": "m", "choices": [choice],
                       "usage": {"prompt_tokens": 5, "completion_tokens": 9}})


def streamed(message, finish):
    deltas = [{"role": "assistant", "content": ""}]
    order = sorted(message.items(), key=lambda item: item[0] == "content")
    for name, value in order:
        pieces = ([value[i:i + 3] for i in range(0, len(value), 3)] if isinstance(value, str)
                  else [[part] for part in value or []])
        deltas += [{name: piece} for piece in pieces] or [{name: value}]
    events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
              for delta in deltas]
    events += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
               {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}}]
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return ": keep-alive\n\n".join([*lines, "data: [DONE]\n\n"])


FORMS = [whole, streamed]


@pytest.mark.parametrize("dialect,form", itertools.product(DIALECTS, FORMS))
def test_a_whole_answer_reads_the_same_in_every_dialect(dialect, form):
    reply = read_body(form(dialect(THINKING, ANSWER), "stop"))
    assert reply.choices[0] == Choice(THINKING, ANSWER, "stop", True)
    assert reply.usage == Usage(prompt=5, completion=9)


@pytest.mark.parametrize("dialect,form", itertools.product(DIALECTS, FORMS))
def test_an_answer_cut_off_keeps_its_text_and_is_not_complete(dialect, form):
    reply = read_body(form(dialect(THINKING, ANSWER[:9]), "length"))
    assert reply.choices[0] == Choice(THINKING, ANSWER[:9].strip(), "length", False)


@pytest.mark.parametrize("dialect,form", itertools.product(
    [deepseek, openrouter, vllm, vllm_both, sglang, renamed], FORMS))
def test_a_thinking_cut_off_is_thinking_without_an_answer(dialect, form):
    reply = read_body(form(dialect(THINKING, ""), "length"))
    assert reply.choices[0] == Choice(THINKING, "", "length", False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_inline_thinking_that_never_closes_is_no_answer(form, finish):
    opened_by_model = read_body(form({"content": f"<think>\n{THINKING}"}, finish))
    by_template = read_body(form({"content": THINKING}, finish), prompt_opens_thinking=True)
    for reply in (opened_by_model, by_template):
        assert reply.choices[0] == Choice(THINKING, "", finish, False)


@pytest.mark.parametrize("dialect,form", itertools.product([deepseek, vllm, inline,
                                                            inline_beside_the_field], FORMS))
def test_empty_thinking_is_empty(dialect, form):
    reply = read_body(form(dialect("", ANSWER), "stop"))
    assert reply.choices[0].answer == ANSWER and reply.choices[0].complete
    assert not reply.choices[0].thinking


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_without_any_thinking_is_complete(form):
    choice = read_body(form({"content": ANSWER, "reasoning_content": None}, "stop")).choices[0]
    assert choice == Choice(None, ANSWER, "stop", True)


@pytest.mark.parametrize("form", FORMS)
def test_a_tag_quoted_in_an_answer_moves_nothing_where_a_field_holds_the_thinking(form):
    quoted = "Write <think> first and </think> last."
    choice = read_body(form(deepseek(THINKING, quoted), "stop")).choices[0]
    assert (choice.thinking, choice.answer) == (THINKING, quoted)


@pytest.mark.parametrize("form", FORMS)
def test_several_choices_keep_their_index(form):
    one = json.loads(whole(deepseek("a", "b"), "stop"))
    one["choices"].insert(0, {"index": 1, "finish_reason": "eos",
                              "message": deepseek("c", "d")})
    reply = read_body(json.dumps(one))
    assert reply.choices == {0: Choice("a", "b", "stop", True), 1: Choice("c", "d", "stop", True)}


@pytest.mark.parametrize("body", [
    "", "\n\n", ": keep-alive", "<!doctype html>", '{"choices": [{"index"', "null", "[]", "{}",
    '{"choices": []}', '{"choices": [7]}', '{"choices": [{"finish_reason": "stop"}]}',
    '{"error": {"message": "no"}}', "data: [DONE]", "data: {", 'data: {"choices": []}',
    whole(deepseek(None, ""), "stop"), whole(deepseek("", " "), "stop"),
    whole(deepseek(THINKING, ANSWER), None), whole(deepseek(THINKING, ANSWER), "error"),
    streamed(deepseek(THINKING, ANSWER), None), "[" * 100_000])
def test_what_is_not_an_answer_is_damage(body):
    with pytest.raises(MalformedReplyError):
        read_body(body)


def nodes(tree, path=()):
    """Paths of everything inside a JSON tree."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(
        tree if isinstance(tree, list) else ())
    for key, value in inside:
        yield (*path, key)
        yield from nodes(value, (*path, key))


@pytest.mark.parametrize("junk", [None, 7, -1.5, "x", [], {}, [None], {"a": 1}, True, 10**400, 0,
                                   float("nan"), float("-inf"), 1e300, "\ud800",
                                   f"token_id:{10**10}"])
def test_any_part_replaced_by_junk_is_damage_or_an_answer_that_is_stored(junk, tmp_path):
    body = json.loads(whole(openrouter(THINKING, ANSWER), "stop"))
    body["choices"][0]["logprobs"] = {"content": [
        {"token": "a", "logprob": value, "top_logprobs": [{"token": "a", "logprob": value}]}
        for value in (0, -0.5)]}
    body["usage"] |= {"cost": 0.25, "completion_tokens_details": {"reasoning_tokens": 3}}
    job, teacher = Job("key", [], range(1)), OpenAITeacher(model="m")
    sampling, rows = Sampling(max_tokens=10, top_logprobs=2), []
    for path in list(nodes(body)):
        for make in (lambda tree: json.dumps(tree), lambda tree: f"data: {json.dumps(tree)}\n\n"):
            tree = json.loads(json.dumps(body))
            inner = tree
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = junk
            try:
                reply = read_body(make(tree))
            except MalformedReplyError:
                continue
            assert all(choice.thinking or choice.answer for choice in reply.choices.values())
            (row,) = trace_rows(job, reply, Price(output=1), 0.5, teacher, sampling)
            assert 0 <= row["cost_usd"] < 1e12
            rows.append(asked_row(job, len(rows), "", sampling) | row)
    with TraceStore(tmp_path) as store, store.writing():
        for row in rows:
            store.append(row)
    assert store._index("key").height == len(rows) > 0


def test_a_lone_surrogate_can_be_stored():
    choice = read_body(whole({"content": "x \ud800 y"}, "stop")).choices[0]
    assert choice.answer == "x ? y"


def test_usage_is_read_in_every_form():
    assert read_usage({"prompt_tokens": 10, "completion_tokens": 7, "prompt_cache_hit_tokens": 4,
                       "completion_tokens_details": {"reasoning_tokens": 5}}) == Usage(10, 4, 7, 5)
    assert read_usage({"prompt_tokens": 10, "completion_tokens": None, "cost": 0.25,
                       "prompt_tokens_details": {"cached_tokens": 3}}) == Usage(10, 3, 0, 0, 0.25)
    assert read_usage(None) is read_usage({}) is read_usage({"completion_tokens": -3}) is None
    apart = {"prompt_tokens": 10, "completion_tokens": 50,
             "completion_tokens_details": {"reasoning_tokens": 400}}
    assert read_usage(apart) == Usage(10, 0, 450, 400) == read_usage(apart | {"total_tokens": 460})
    fewer = {"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": 190,
             "completion_tokens_details": {"reasoning_tokens": 80}}
    assert read_usage(fewer) == Usage(10, 0, 180, 80)
    assert read_usage(fewer | {"total_tokens": 110}) == Usage(10, 0, 100, 80)


@pytest.mark.parametrize("form", [lambda body: json.dumps(body),
                                  lambda body: f"data: {json.dumps(body)}\n\n"])
@pytest.mark.parametrize(("usage", "logprobs"), [
    ({"completion_tokens_details": "x"}, None), ({"prompt_tokens_details": [1]}, None),
    ({}, "x"), ({}, {"content": [None]}), ({}, {"content": "x"}),
    *(({}, {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": tops}]})
      for tops in ({"a": -0.1}, 5, [None]))])
def test_an_odd_bill_or_odd_logprobs_cost_no_answer(form, usage, logprobs):
    body = json.loads(whole(deepseek(THINKING, ANSWER), "stop"))
    body["usage"] |= usage
    body["choices"][0]["logprobs"] = logprobs
    reply = read_body(form(body))
    assert reply.choices[0] == Choice(THINKING, ANSWER, "stop", True) and not reply.broken
    assert reply.usage == Usage(prompt=5, completion=9)


def test_a_new_dialect_is_one_function_and_one_line_and_the_probe_names_it(monkeypatch):
    def in_a_box(message, prompt_opens_thinking):
        if "box" not in message:
            return None
        return Message(message["box"]["inside"], message["box"]["lid"], True, "a box")

    body = whole({"box": {"inside": THINKING, "lid": ANSWER}}, "stop")
    with pytest.raises(MalformedReplyError, match="empty answer"):
        read_body(body)
    monkeypatch.setattr(dialects, "DIALECTS", (in_a_box, *dialects.DIALECTS))
    assert read_body(body).choices[0] == Choice(THINKING, ANSWER, "stop", True)
    assert dialect_of(body) == "a box"
    known = whole(deepseek(THINKING, ANSWER), "stop")
    assert dialect_of(known) == "thinking in message.reasoning_content"


@pytest.mark.parametrize(("message", "name"), [
    (vllm(THINKING, ANSWER), "thinking in message.reasoning"),
    (renamed(THINKING, ANSWER), "thinking in message.chain_of_thought"),
    (parts(THINKING, ANSWER), "content parts"),
    (inline(THINKING, ANSWER), "inline <think>, opened by the model"),
    (inline_opened_by_template(THINKING, ANSWER),
     "inline <think>, opened by the server's template"),
    ({"content": ANSWER, "reasoning": ""}, "plain content"),
    ({**inline(THINKING, ANSWER), "reasoning": ""}, "inline <think>, opened by the model")])
def test_the_probe_says_where_the_thinking_stood(message, name):
    assert dialect_of(whole(message, "stop")) == name


def test_a_stream_that_errs_after_a_whole_choice_keeps_it():
    event = json.dumps({"choices": [{"index": 0, "delta": {"content": "42"},
                                     "finish_reason": "stop"}]})
    for end in ('{"error": {"message": "provider died", "code": 502}}', '{"cho'):
        reply = read_body(f"data: {event}\n\ndata: {end}\n\n")
        assert reply.choices[0].answer == "42" and reply.usage is None and reply.broken


def test_logprobs_are_packed_by_id_or_by_text():
    def entry(token, *tops):
        return {"token": token, "logprob": -0.5,
                "top_logprobs": [{"token": top, "logprob": -1.0} for top in tops]}

    ids = Choice(None, "x", "stop", True, [entry("token_id:5", "token_id:5", "token_id:6"),
                                           entry("token_id:7", "token_id:7")])
    packed = pack_logprobs(ids, 2)
    assert packed["token_ids"] == [5, 7] and packed["top_ids"] == [5, 6, 7, None]
    assert packed["top_logprobs"] == [-1.0, -1.0, -1.0, None]
    texts = pack_logprobs(Choice(None, "x", "stop", True, [entry("a", "a", "b")]), 1)
    assert texts["token_texts"] == ["a"] and texts["top_texts"] == ["a"]
    assert pack_logprobs(ids, Sampling().top_logprobs) == {}


@pytest.mark.parametrize(("said", "end"), [
    ("STOP", "stop"), ("MAX_TOKENS", "length"), ("end_turn", "stop"), ("Length", "length"),
    ("FinishReason.MAX_TOKENS", "length"), ("maxTokens", "length"), ("EOS", "stop"),
    ("FINISH_REASON_STOP", "stop"), ("model_context_window_exceeded", "length"),
    ("SAFETY", "content_filter"), ("tool_use", "tool_calls"), ("tired", "tired")])
@pytest.mark.parametrize("form", FORMS)
def test_the_end_is_read_in_the_words_of_any_protocol(form, said, end):
    choice = read_body(form(deepseek(THINKING, ANSWER), said)).choices[0]
    assert (choice.finish_reason, choice.complete) == (end, end == "stop")


@pytest.mark.parametrize("said", ["ERROR", "Abort", "null"])
@pytest.mark.parametrize("form", FORMS)
def test_an_end_that_is_a_failure_is_damage_in_any_case(form, said):
    with pytest.raises(MalformedReplyError):
        read_body(form(deepseek(THINKING, ANSWER), said))
