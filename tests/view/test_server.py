"""The page's server: who may ask, what is answered, and a sentence for what is broken."""

import http.client
import json
import shutil

import pytest
from made_run import made_run

from pipeline.curate.reviews import read_reviews
from pipeline.errors import UserError
from pipeline.view.server import _listening
from tests.view.served import TOKEN, serving, workspace


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    made_run(folder)
    return folder


@pytest.fixture
def ask(run, tmp_path):
    """Ask the server over a made run: (status, headers, text)."""
    space = workspace(tmp_path, [run])
    with serving(space) as (_, port):
        def send(path, method="GET", body=None, token=TOKEN, **headers):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            sent = {"X-Limbeck-Token": token} if token else {}
            connection.request(method, path, body, {**sent, **headers})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

        send.space = space
        yield send


def told(answer, status=200):
    assert answer[0] == status, answer
    return json.loads(answer[2])


def test_without_the_token_nothing_is_answered(ask):
    for path in ("/", "/static/app.js", "/api/state", "/?token=wrong", "/api/state?token=" + TOKEN):
        status, headers, text = ask(path, token=None)
        assert (status, "Set-Cookie" in headers) == (403, False)
        assert "made up" not in text
    assert ask("/api/review", "POST", "[]", token=None)[0] == 403


def test_the_address_with_the_token_gives_a_cookie_that_no_script_reads(ask):
    status, headers, _ = ask(f"/?token={TOKEN}", token=None)
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert ask("/api/state", token=None, Cookie=cookie.split(";")[0])[0] == 200


def test_another_host_name_is_refused(ask):
    assert ask("/api/state", Host="evil.example")[0] == 421
    assert ask("/api/state", Host="evil.example:80")[0] == 421


def test_every_answer_forbids_what_is_not_the_pages_own(ask):
    for path in ("/", "/api/state", "/static/view.css", "/nowhere"):
        policy = ask(path)[1]["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy


def test_a_verdict_is_taken_only_from_the_page(ask):
    line = json.dumps([{"key": "k", "reviewer": "Ada", "verdict": "good"}])
    assert ask("/api/review", "POST", line)[0] == 403
    assert told(ask("/api/review", "POST", line, **{"X-Limbeck": "1"}))["kept"][0]["id"]
    assert [one["key"] for one in read_reviews(ask.space.reviews_path)] == ["k"]
    for wrong in ("{}", "nonsense", '[{"reviewer": "Ada"}]', '["x"]'):
        assert "error" in told(ask("/api/review", "POST", wrong, **{"X-Limbeck": "1"}), 400)
    assert len(read_reviews(ask.space.reviews_path)) == 1


def test_files_outside_the_page_are_not_served(ask):
    for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/static/", "/etc/passwd"):
        assert ask(path)[0] in (403, 404)


def test_traces_are_found_by_words_by_expression_and_by_problem(ask):
    state = told(ask("/api/state"))
    assert state["sources"][0]["id"] == "filter-key"
    page = told(ask("/api/traces?source=filter-key&limit=5&where=reason+%3D%3D+%22wrong%22"))
    assert {row["verdict"] for row in page["rows"]} == {"wrong"}
    assert page["total"] == 400 > page["found"] > len(page["rows"]) == 5
    grouped = told(ask("/api/traces?source=filter-key&group=problem&sort=pass_rate"))
    assert (grouped["groups"], len(grouped["problems"][0]["list"])) == (100, 4)
    found = told(ask("/api/traces?source=filter-key&search=low+WAIT"))
    assert found["found"] == 400
    assert told(ask("/api/traces?source=filter-key&search=absentword"))["found"] == 0


@pytest.mark.parametrize(("query", "said"), [
    ("traces?source=filter-key&where=nonsense", "names 'nonsense', which is no column"),
    ("traces?source=filter-key&where=__import__('os')", "cannot be read"),
    ("traces?source=filter-key&sort=nothing", "no column 'nothing' to sort by"),
    ("traces?source=gone-abc", "gone-abc is not there any more"),
    ("traces?source=filter-key&offset=x", "is no whole number"),
    ("trace?source=filter-key&row=4000", "there is no trace 4,000"),
    ("tokens?source=evaluate-key&row=0", "no token rows were made from these traces"),
    ("queue?source=filter-key&kind=odd", "there is no queue 'odd'"),
    ("queue?source=filter-key&kind=blind", "needs two models"),
    ("completions?run=rl-key", "kept no completions"),
    ("curves?run=sft-none", "sft-none is not there any more")])
def test_what_cannot_be_answered_is_one_sentence(ask, query, said):
    error = told(ask(f"/api/{query}"), 400)["error"]
    assert said in error
    assert "\n" not in error


def test_a_trace_shows_what_the_judge_compared_and_the_second_grader(ask):
    trace = told(ask("/api/trace?source=evaluate-key&row=0"))
    assert trace["problem"] == "Make 0 of 2 & 3."
    assert len(trace["siblings"]) == 16
    assert trace["judged"]["verdict"] in ("correct", "wrong")


def test_damaged_half_made_and_deleted_artifacts_are_named(run, tmp_path):
    root = tmp_path / "artifacts"
    shutil.copytree(run, root)
    (root / "generate-key" / "manifest.json").write_text("{")
    (root / "filter-key" / "judged.parquet").write_bytes(b"PAR1 torn")
    (root / "sft-abc123.partial").mkdir()
    (root / "empty-abc123").mkdir()
    space = workspace(tmp_path, [root])
    troubles = " ".join(space.troubles())
    for said in ("generate-key is damaged", "sft-abc123 is not finished", "empty-abc123 is no art"):
        assert said in troubles
    with pytest.raises(UserError, match=r"judged.parquet cannot be read"):
        space.table("filter-key")
    shutil.rmtree(root / "evaluate-key")
    space = workspace(tmp_path, [root])
    with pytest.raises(UserError, match="evaluate-key is not there any more"):
        space.table("evaluate-key")


def test_a_verdict_on_a_trace_that_is_gone_is_kept(run, tmp_path):
    space = workspace(tmp_path, [run])
    shown = space.trace("evaluate-key", 0)
    lines = [{"key": shown["key"], "reviewer": "Ada", "verdict": "bad", "row": 99_999,
              "source": "deleted-key"}]
    space.review(lines)
    other = workspace(tmp_path, [run])
    assert other.trace("evaluate-key", 0)["review"] == "bad"


def test_an_edited_answer_is_kept_under_its_own_key(run, tmp_path):
    space = workspace(tmp_path, [run])
    shown = space.trace("evaluate-key", 0)
    line = {"key": shown["key"], "problem_key": shown["problem_key"], "reviewer": "Ada",
            "verdict": "bad"}
    with pytest.raises(UserError, match="the edited trace has no answer"):
        space.review([{**line, "edit": {"thinking": "x", "answer": " "}}])
    (kept,) = space.review([{**line, "edit": {"thinking": "", "answer": "\\boxed{0+0}"}}])
    assert kept["edit"]["thinking"] is None
    assert kept["edit"]["key"] != shown["key"]


def test_queues_are_the_same_for_everybody_and_blind_pairs_tell_nothing(run, tmp_path):
    space = workspace(tmp_path, [run])
    kept = space.queue("filter-key", "random", 20, 3, None)
    assert kept == workspace(tmp_path, [run]).queue("filter-key", "random", 20, 3, None)
    assert kept != space.queue("filter-key", "random", 20, 4, None)
    frame = space.table("filter-key").frame
    assert all(frame["kept"][row] for (row,) in kept)
    longest = [row for (row,) in space.queue("filter-key", "longest", 5, 0, None)]
    assert frame["tokens"].gather(longest).to_list() == frame["tokens"].sort()[-5:].to_list()[::-1]
    pairs = space.queue("evaluate-key", "blind", 60, 0, ("sft", "rl"))
    models = space.table("evaluate-key").frame["model"]
    assert {frozenset(models[row] for row in pair) for pair in pairs} == {frozenset(("sft", "rl"))}
    first = [models[one] for one, _ in pairs]
    assert 10 < first.count("sft") < 50
    (side, *_) = space.queue("filter-key", "problem", 3, 0, None)
    assert len({frame["problem_id"][row] for row in side}) == 1 < len(side)


def test_a_taken_port_is_one_sentence():
    with _listening(0) as taken, \
            pytest.raises(UserError, match=r"port \d+ cannot be had .*--port"):
        _listening(taken.getsockname()[1])
