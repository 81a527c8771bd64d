"""What the client does with every kind of fault an endpoint can have."""

import email.utils
import itertools
import json
import random
import socket
import time

import pytest

from pipeline.config.teacher import OpenAITeacher, Sampling, TeacherRuntime
from pipeline.errors import UserError
from pipeline.teacher import Request, TraceStore, generate
from pipeline.teacher.rate_limit import (
    AdaptiveLimiter,
    TokenBucket,
    retry_after,
    seconds_of,
    stated_rate,
)
from tests.fault_server import Answer, FaultServer, completion, stream

TEACHER = OpenAITeacher(model="m")
SAMPLING = Sampling(max_tokens=100)
GOOD = Answer(completion("42", reasoning_content="six times seven"))


def questions(count, samples=1):
    return [Request(f"p{i}", sample, chat) for i in range(count)
            for chat in [[{"role": "user", "content": f"question {i}"}]]
            for sample in range(samples)]


def ask(script, folder, requests=None, sampling=SAMPLING, **runtime):
    """(outcome or UserError, traces, calls) of asking a server that follows `script`."""
    server = FaultServer(script)
    requests = requests or questions(1)
    with server.running() as url, TraceStore(folder) as store:
        settings = TeacherRuntime(**{"base_url": url, "max_wait": 0.02, "n": 1, **runtime})
        try:
            outcome = generate(requests, teacher=TEACHER, sampling=sampling, runtime=settings,
                               store=store)
        except UserError as error:
            outcome = error
        return outcome, store.collect(requests, TEACHER, sampling), server.calls


def scripted(*answers):
    """A script that goes through `answers` and stays with the last one."""
    return lambda call: answers[min(call.number, len(answers) - 1)]


def sse(body, **options):
    return Answer(body, headers={"Content-Type": "text/event-stream"}, length=False, **options)


RETRIED = {
    "429": Answer(b"{}", 429), "429 with Retry-After": Answer(b"{}", 429, {"Retry-After": "0.01"}),
    "429 with a date": Answer(b"{}", 429, {"Retry-After": email.utils.formatdate(0, usegmt=True)}),
    "429 with 0": Answer(b"{}", 429, {"Retry-After": "0"}),
    "429 with a negative": Answer(b"{}", 429, {"Retry-After": "-3"}),
    "429 with a century": Answer(b"{}", 429, {"Retry-After": "1000000000"}),
    "429 with nonsense": Answer(b"{}", 429, {"Retry-After": "soon"}),
    "408": Answer(b"", 408), "409": Answer(b"", 409), "500": Answer(b"oops", 500),
    "502 HTML": Answer(b"<html>bad gateway</html>", 502), "503": Answer(b"", 503),
    "529": Answer(b"", 529), "empty": Answer(b""), "blank lines": Answer(b"\n" * 10_000),
    "keep-alives only": Answer(b": keep-alive\n\n" * 50), "HTML": Answer(b"<html></html>"),
    "half JSON": Answer(GOOD.body[:60]), "cut body": Answer(GOOD.body, cut=60),
    "reset body": Answer(GOOD.body, cut=60, reset=True), "reset": Answer(b"", cut=0, reset=True),
    "no choices": Answer(b'{"choices": []}'), "not an object": Answer(b"[1]"),
    "empty answer": Answer(completion("")), "blank answer": Answer(completion(" \n ")),
    "null answer": Answer(completion(None)),
    "error in 200": Answer(b'{"error": {"message": "upstream is busy", "code": 502}}'),
    "error text in 200": Answer(b'{"error": "overloaded"}'),
    "error in the choice": Answer(b'{"choices": [{"error": {"message": "x", "code": 502}}]}'),
    "finish error": Answer(completion("4", finish="error")),
    "no finish": Answer(completion("4", finish=None)),
    "slow": Answer(GOOD.body, delay=1.5),
}


@pytest.mark.parametrize("name", RETRIED)
@pytest.mark.parametrize("times", [1, 2])
def test_a_passing_fault_is_asked_again_until_the_answer_comes(name, times, tmp_path):
    timeout = {"timeout": 0.7} if name == "slow" else {}
    outcome, traces, calls = ask(scripted(*[RETRIED[name]] * times, GOOD), tmp_path, **timeout)
    assert len(calls) == times + 1 and outcome.retries == times
    assert traces.select("thinking", "answer", "complete").rows() == [
        ("six times seven", "42", True)]


@pytest.mark.parametrize("name", sorted(set(RETRIED) - {"slow"}))
def test_attempts_are_bounded_and_nothing_broken_is_stored(name, tmp_path):
    outcome, traces, calls = ask(scripted(RETRIED[name]), tmp_path, max_attempts=3)
    assert len(calls) == 3
    assert isinstance(outcome, UserError) and traces.is_empty()


@pytest.mark.parametrize("status", [400, 422, 413, 403])
def test_a_refused_request_is_asked_once_and_its_neighbours_are_answered(status, tmp_path):
    def script(call):
        poisoned = call.question == "question 3"
        return Answer(b'{"error": {"message": "too long"}}', status) if poisoned else GOOD

    outcome, traces, calls = ask(script, tmp_path, questions(8))
    assert len(calls) == 8 and outcome.failed == 1 and len(traces) == 7
    assert "too long" in next(iter(outcome.reasons))


@pytest.mark.parametrize("status", [401, 403, 404, 402])
def test_a_wrong_key_or_model_ends_the_run_at_once(status, tmp_path):
    outcome, _, calls = ask(lambda _: Answer(b'{"error": "no"}', status), tmp_path,
                            questions(500), concurrency=4)
    assert isinstance(outcome, UserError) and "127.0.0.1" in str(outcome)
    assert len(calls) <= 8


def test_a_dead_port_ends_the_run_after_a_few_attempts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        began = time.monotonic()
        with pytest.raises(UserError, match="base_url"), TraceStore(tmp_path) as store:
            generate(questions(14_000), teacher=TEACHER, sampling=SAMPLING, store=store,
                     runtime=TeacherRuntime(base_url=url))
    assert time.monotonic() - began < 30


def test_requests_that_all_fail_end_the_run_early(tmp_path):
    outcome, _, calls = ask(lambda _: Answer(b'{"error": "bad"}', 400), tmp_path, questions(2000))
    assert isinstance(outcome, UserError) and len(calls) < 100


@pytest.mark.parametrize(("good", "n"), [(0, 1), (7, 4)])
def test_few_problems_that_all_fail_end_the_run_early_too(good, n, tmp_path):
    def script(call):
        if int(call.question.split()[1]) >= good:
            return Answer(b'{"error": "bad"}', 400)
        return Answer(completion(*["42"] * call.body.get("n", 1)))

    outcome, traces, calls = ask(script, tmp_path, questions(15, 40), concurrency=16, n=n)
    assert (outcome.stopped if good else isinstance(outcome, UserError))
    assert len(traces) == 40 * good and len(calls) < 40 * good // n + 80


def test_retry_after_is_obeyed_and_never_beyond_max_wait(tmp_path):
    waits = [Answer(b"", 429, {"Retry-After": "1"}), Answer(b"", 429, {"Retry-After": "9999"})]
    _, _, calls = ask(scripted(*waits, GOOD), tmp_path, max_wait=1.5)
    first, second = (b.time - a.time for a, b in itertools.pairwise(calls))
    assert 1.0 <= first < 1.5 <= second < 3.0


def test_a_wait_longer_than_allowed_is_said_when_it_ends_the_run(tmp_path):
    outcome, _, _ = ask(scripted(Answer(b"slow", 429, {"Retry-After": "3600"})), tmp_path,
                        max_attempts=2)
    assert "asks to wait 3,600 s, beyond runtime.teacher.max_wait" in str(outcome)


@pytest.mark.parametrize(("rates", "tokens", "seconds"), [
    ({"rpm": 600, "tpm": None}, 500, 0.1), ({"rpm": None, "tpm": 60_000}, 500, 0.5),
    ({"rpm": 600, "tpm": 60_000}, 500, 0.5), ({"rpm": 600, "tpm": 60_000}, 50, 0.1)])
def test_the_stricter_of_requests_and_tokens_a_minute_is_used_to_95_percent(
        rates, tokens, seconds, monkeypatch):
    """By a clock that only sleeping moves, so that nothing else on the machine counts."""
    now = [1000.0]

    async def sleep(pause):
        now[0] += pause

    async def send(count):
        for _ in range(count):
            await limiter.acquire(tokens)
            limiter.release()

    limiter = AdaptiveLimiter(8, 64, **rates)
    monkeypatch.setattr("pipeline.teacher.rate_limit.time.monotonic", lambda: now[0])
    monkeypatch.setattr("pipeline.teacher.rate_limit.asyncio.sleep", sleep)
    coroutine = send(1001)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert 0.95 <= 1000 * seconds / (now[0] - 1000) <= 1


def test_retry_after_reads_seconds_milliseconds_and_dates():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "250"}) == 0.25
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 27 < retry_after({"retry-after": soon}) <= 30
    assert retry_after({"retry-after": "-1"}) is None and retry_after({}) is None


STREAM = stream("wait, " * 80, "the answer is 42", pieces=16)
FINISH = STREAM.index(b'"stop"')


def cut_points(step):
    return [*range(0, len(STREAM), step), *range(FINISH - 12, FINISH + 12)]


@pytest.mark.parametrize("reset", [True, False])
def test_a_stream_cut_anywhere_is_whole_or_asked_again(reset, tmp_path, step=61):
    cuts = cut_points(step)

    def script(call):
        cut = cuts[int(call.question.split()[1])]
        again = call.question in seen
        seen.add(call.question)
        return sse(STREAM) if again else sse(STREAM, cut=cut, reset=reset)

    seen: set[str] = set()
    outcome, traces, _ = ask(script, tmp_path, questions(len(cuts)), stream=True, concurrency=16)
    assert outcome.failed == 0 and len(traces) == len(cuts)
    whole = ("wait, " * 80).strip(), "the answer is 42", True
    assert set(traces.select("thinking", "answer", "complete").rows()) == {whole}
    early = sum(cut < FINISH for cut in cuts)
    assert early <= outcome.retries <= len(cuts)


@pytest.mark.slow
@pytest.mark.parametrize("reset", [True, False])
def test_a_stream_cut_at_every_byte_is_whole_or_asked_again(reset, tmp_path):
    assert len(STREAM) > 4000
    test_a_stream_cut_anywhere_is_whole_or_asked_again(reset, tmp_path, step=1)


@pytest.mark.parametrize("body", [
    b": keep-alive\n\n" * 20 + STREAM, STREAM.replace(b"\n", b"\r\n"),
    STREAM.replace(b"data: ", b"data:"), STREAM.replace(b"data: [DONE]\n\n", b""),
    b"event: message\n" + STREAM, stream("wait, " * 80, "the answer is 42", field_name="reasoning"),
    completion("the answer is 42", reasoning_content="wait, " * 80)])
def test_streams_of_every_manner_read_the_same(body, tmp_path):
    whole = Answer(body) if body.startswith(b"{") else sse(body)
    _, traces, calls = ask(scripted(whole), tmp_path, stream=True)
    assert len(calls) == 1
    assert traces.select("thinking", "answer").rows() == [
        (("wait, " * 80).strip(), "the answer is 42")]


def test_an_error_event_in_a_stream_is_asked_again(tmp_path):
    half = STREAM[:STREAM.index(b"\n\n", 1000) + 2]
    broken = sse(half + b'data: {"error": {"message": "provider died", "code": 502}}\n\n')
    outcome, traces, calls = ask(scripted(broken, sse(STREAM)), tmp_path, stream=True)
    assert len(calls) == 2 and outcome.retries == 1 and traces["complete"].all()


def test_a_random_body_is_never_a_trace(tmp_path):
    rng = random.Random(0)
    alphabet = [b"\n", b" ", b"{", b"}", b'"choices"', b":", b"[", b"]", b"data: ", b"null",
                b"<html>", b"\x00", b"\xff", b'{"error": 1}', b'"message"', b'"content"']
    bodies = [b"".join(rng.choices(alphabet, k=rng.randrange(12))) for _ in range(1000)]

    def script(call):
        number = int(call.question.split()[1])
        return GOOD if number % 10 == 0 else Answer(bodies[number])

    outcome, traces, _ = ask(script, tmp_path, questions(1000), max_attempts=1, concurrency=32)
    assert len(traces) == 100 and outcome.failed == 900
    assert set(traces["answer"]) == {"42"}


def test_a_cut_off_answer_is_asked_once_kept_and_flagged(tmp_path):
    cut = Answer(completion("", finish="length", reasoning_content="and so on and"))
    outcome, traces, calls = ask(scripted(cut), tmp_path, questions(5))
    assert len(calls) == 5 and outcome.cut_off == 5
    assert set(traces.select("finish_reason", "complete", "answer").rows()) == {
        ("length", False, "")}


def test_n_is_one_request_where_honoured_and_many_where_not(tmp_path):
    def honours(call):
        return Answer(completion(*["42"] * call.body.get("n", 1)))

    def refuses(call):
        too_many = call.body.get("n", 1) > 1
        return Answer(b'{"error": "only n = 1 is supported"}', 400) if too_many else GOOD

    requests = questions(3, samples=6)
    # One request waits for the slot while the first is refused, so two may be.
    for folder, script, allowed in (("honours", honours, {3}), ("ignores", lambda _: GOOD, {18}),
                                    ("refuses", refuses, {19, 20})):
        outcome, traces, calls = ask(script, tmp_path / folder, requests, n=8, concurrency=1)
        assert len(traces) == 18 and len(calls) in allowed and outcome.failed == 0
        assert sorted(traces["sample"]) == sorted(list(range(6)) * 3)


def test_broken_choices_of_an_answer_are_asked_again_and_whole_ones_kept(tmp_path):
    half = json.loads(completion("a", "b", "c"))
    half["choices"][1]["finish_reason"] = None
    answers = [Answer(json.dumps(half).encode()), Answer(completion("later"))]
    _, traces, calls = ask(scripted(*answers), tmp_path, questions(1, 3), n=3)
    assert traces["answer"].to_list() == ["a", "later", "c"] and len(calls) == 2


def test_a_segment_that_is_refused_amid_an_answer_loses_none_of_its_choices(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    script = scripted(Answer(completion(*"abc")))
    monkeypatch.setattr("pipeline.teacher.store.FOLD_ROWS", 2)
    with monkeypatch.context() as disk:
        disk.setattr("pipeline.teacher.store.store_segment.write", refuse)
        outcome, _, _ = ask(script, tmp_path, questions(1, 3), n=3)
    assert isinstance(outcome, UserError) and "cannot be written" in str(outcome)
    _, traces, calls = ask(script, tmp_path, questions(1, 3), n=3)
    assert traces["answer"].to_list() == list("abc") and not calls


def test_an_endpoint_that_wants_another_name_for_the_limit_gets_it(tmp_path):
    def script(call):
        if "max_tokens" in call.body:
            return Answer(b'{"error": "use max_completion_tokens instead of max_tokens"}', 400)
        assert call.body["max_completion_tokens"] == 100
        return GOOD

    outcome, traces, _ = ask(script, tmp_path, questions(20), concurrency=4)
    assert len(traces) == 20 and not outcome.failed


def test_seeds_follow_the_sample_however_samples_are_grouped(tmp_path):
    seeds = set()

    def script(call):
        seeds.update(call.body["seed"] + i for i in range(call.body.get("n", 1)))
        return Answer(completion(*["42"] * call.body.get("n", 1)))

    ask(script, tmp_path, questions(1, 10), n=4, sampling=Sampling(seed=100))
    assert seeds == set(range(100, 110))


def limited(per_second):
    """A script that allows so many requests a second, by a token bucket with a burst of 5."""
    state = {"tokens": 5.0, "last": time.monotonic(), "refused": 0}

    def script(call):
        state["tokens"] = min(5.0, state["tokens"] + (call.time - state["last"]) * per_second)
        state["last"] = call.time
        if state["tokens"] < 1:
            state["refused"] += 1
            return Answer(b"", 429, {"Retry-After": "0.05"})
        state["tokens"] -= 1
        headers = {"x-ratelimit-limit-requests": str(per_second * 60)}
        return Answer(GOOD.body, headers=headers, delay=0.02)

    return script, state


@pytest.mark.parametrize("rpm", [6000, None])
def test_a_stated_rate_is_used_and_not_passed(rpm, tmp_path):
    script, state = limited(100)
    _, traces, calls = ask(script, tmp_path, questions(400), rpm=rpm, concurrency=None,
                           max_wait=5)
    sent = calls[-1].time - calls[0].time
    assert len(traces) == 400 and 400 / sent <= 101
    assert state["refused"] / len(calls) < (0.01 if rpm else 0.05)
    print(f"rate {400 / sent:.1f} of 100 a second, {state['refused']} of {len(calls)} refused")


def test_an_unstated_limit_is_found(tmp_path):
    """429s beyond 12 requests at once, told by nothing else: slots settle near them."""
    server_busy = {"now": 0, "refused": 0}

    def script(call):
        if server.in_flight > 12:
            server_busy["refused"] += 1
            return Answer(b"", 429)
        return Answer(GOOD.body, delay=0.02)

    server = FaultServer(script)
    with server.running() as url, TraceStore(tmp_path) as store:
        outcome = generate(questions(600), teacher=TEACHER, sampling=SAMPLING, store=store,
                           runtime=TeacherRuntime(base_url=url, max_attempts=20, max_wait=0.1))
    assert outcome.failed == 0 and outcome.asked == 600
    assert server_busy["refused"] < 150


def test_rates_are_read_from_headers():
    minute = {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "599",
              "x-ratelimit-reset-requests": "100ms"}
    day = {"x-ratelimit-limit-requests": "14400", "x-ratelimit-remaining-requests": "14370",
           "x-ratelimit-reset-requests": "3m0s"}
    assert stated_rate(minute, "requests") == 10
    assert stated_rate(day, "requests") == pytest.approx(1 / 6)
    assert stated_rate({}, "requests") is None
    assert seconds_of("1h2m3.5s") == 3723.5 and seconds_of("?") == 0


def test_slots_shrink_on_refusal_and_rise_on_answers():
    limiter = AdaptiveLimiter(8, 64, None, None)
    for _ in range(100):
        limiter.in_flight = int(limiter.slots)
        limiter.on_answer(1.0, 100)
    assert limiter.slots == 64
    sent = time.monotonic()
    limiter.on_overload(None, sent)
    once = limiter.slots
    limiter.on_overload(None, sent)
    assert once == limiter.slots < 64
    assert TokenBucket(None).wait(5) == 0


@pytest.mark.parametrize("indices", [[1, 2, 3, 4], [0] * 4, [7, 7, 7, 7], [9, 3, -1, 10**9],
                                     ["a", None, 0, 1]])
@pytest.mark.parametrize("samples", [1, 4])
def test_choices_numbered_in_another_way_are_all_kept_and_asked_once(indices, samples, tmp_path):
    def script(call):
        body = json.loads(completion(*"abcd"[:call.body.get("n", 1)]))
        for choice, index in zip(body["choices"], indices, strict=False):
            choice["index"] = index
        return Answer(json.dumps(body).encode())

    _, traces, calls = ask(script, tmp_path, questions(1, samples), n=4, max_attempts=3)
    assert len(calls) == 1 and sorted(traces["answer"]) == list("abcd"[:samples])


def event(index, text, finish="stop"):
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def test_an_error_event_between_choices_keeps_the_whole_one_and_asks_for_the_other(tmp_path):
    def script(call):
        if not call.number:
            return sse(event(0, "first") + b'data: {"error": {"message": "x", "code": 502}}\n\n')
        return sse(b"".join(event(i, "later") for i in range(call.body.get("n", 1))))

    _, traces, calls = ask(script, tmp_path, questions(2, 2), n=2, stream=True, concurrency=1)
    assert sorted(traces["answer"]) == ["first", "later", "later", "later"]
    assert [call.body.get("n", 1) for call in calls] == [2, 1, 2] or \
        [call.body.get("n", 1) for call in calls] == [2, 2, 1]


def test_a_whole_choice_outlives_the_time_that_its_neighbour_took_too_long_for(tmp_path):
    late = sse(event(0, "first") + event(1, "half", None), linger=9)
    outcome, traces, calls = ask(scripted(late, sse(event(0, "later"))), tmp_path, questions(1, 2),
                                 n=2, stream=True, timeout=4.0)
    assert traces["answer"].to_list() == ["first", "later"] and not outcome.failed
    assert [call.body.get("n", 1) for call in calls] == [2, 1]


@pytest.mark.parametrize("part", ["model", "token", "error"])
def test_a_lone_surrogate_anywhere_is_stored_with_a_question_mark(part, tmp_path):
    body = json.loads(completion("42"))
    if part == "model":
        body["model"] = "m\ud800"
    if part == "token":
        body["choices"][0]["logprobs"] = {"content": [{"token": "\ud83d", "logprob": -0.5}]}
    bad = {"error": {"message": "no \ud800", "code": 400}} if part == "error" else body

    def script(call):
        return Answer(json.dumps(bad).encode()) if call.question == "question 1" else GOOD

    outcome, traces, calls = ask(script, tmp_path, questions(3),
                                 sampling=Sampling(max_tokens=100, top_logprobs=1))
    assert len(calls) == 3 and len(traces) == 3 - (part == "error")
    assert outcome.reasons.total() == (part == "error") and "\ud800" not in str(outcome.reasons)


@pytest.mark.parametrize(("status", "refused"), [(400, {0}), (403, {0}), (403, {0, 1, 2, 3}),
                                                 (400, set(range(25)))])
def test_refused_problems_end_nothing_while_others_are_still_to_answer(status, refused, tmp_path):
    def script(call):
        if int(call.question.split()[1]) in refused:
            return Answer(b'{"error": {"message": "content policy"}}', status)
        return Answer(GOOD.body, delay=0.5)

    count, samples = (10, 24) if len(refused) == 1 else (40, 1)
    outcome, traces, calls = ask(script, tmp_path, questions(count, samples), concurrency=100)
    assert len(calls) == count * samples and outcome.failed == len(refused) * samples
    assert len(traces) == (count - len(refused)) * samples and outcome.stopped is None


@pytest.mark.parametrize("status", [400, 403])
def test_a_run_that_asks_only_what_was_refused_before_goes_on_with_gaps(status, tmp_path):
    def script(call):
        poisoned = int(call.question.split()[1]) % 12 == 0
        return Answer(b'{"error": "content policy"}', status) if poisoned else GOOD

    for again in (False, True):
        outcome, traces, _ = ask(script, tmp_path, questions(300), concurrency=32)
        assert len(traces) == 275 and outcome.reused == 275 * again
        assert outcome.failed == 25 and outcome.stopped is None


def test_what_was_refused_before_is_asked_after_what_never_was(tmp_path):
    def script(call):
        refused = int(call.question.split()[1]) % 5 == 0
        return Answer(b'{"error": "content policy"}', 400) if refused else GOOD

    ask(script, tmp_path, questions(200), concurrency=4)
    asked = set()
    for _ in range(3):                       # each ends at some twenty refused ones in a row
        outcome, traces, calls = ask(script, tmp_path, questions(300), concurrency=4)
        asked |= {call.question for call in calls}
        assert len(traces) == 240 and "in a row failed" in outcome.stopped
    assert len(asked) == 80 + 60             # the fresh ones, and every refused one in its turn


def test_answers_in_flight_are_kept_when_the_account_is_empty(tmp_path):
    def script(call):
        answered = call.number < 4
        return Answer(GOOD.body, delay=0.5) if answered else Answer(b"top up", 402)

    outcome, traces, calls = ask(script, tmp_path, questions(100), concurrency=8)
    assert len(traces) == 4 and len(calls) < 40
    assert "top up the account" in outcome.stopped


def test_a_stopped_run_does_not_wait_for_attempts_that_will_not_be_made(tmp_path):
    def script(call):
        slow = Answer(b"slow", 500, {"Retry-After": "60"})
        return GOOD if call.number < 4 else slow if call.number == 4 else Answer(b"top up", 402)

    began = time.monotonic()
    outcome, traces, calls = ask(script, tmp_path, questions(50), concurrency=2, max_wait=60)
    assert time.monotonic() - began < 30 and "top up the account" in outcome.stopped
    assert len(traces) == 4 and outcome.asked == len(calls) - 1
