"""A rewriting pass: asked once, judged again, the original kept, and nothing made worse."""

import json

import polars as pl
import pytest

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from stages import filter as stage
from tests.fault_server import Answer, FaultServer, completion

LONG = "\n\n".join(f"Hm, {i}. Warte, wait, 我们 1 + 1 = 2." for i in range(60))
KEEP = 'verdict == "correct"'


@pytest.fixture
def inputs(tmp_path):
    folders = {name: tmp_path / name for name in ("prepare", "generate")}
    problems = [{"problem_id": f"p{i}", "problem": f"{i} + 1?", "answer": str(i + 1),
                 "kind": "math", "source": "s", "split": "problems", "meta": "{}"}
                for i in range(4)]
    tables.write(tables.Problem, pl.DataFrame(problems), folders["prepare"] / "problems.parquet")
    traces = [{"problem_id": f"p{i}", "sample": 0, "thinking": LONG if i < 3 else "short",
               "answer": f"\\boxed{{{i + 1}}}", "finish_reason": "stop", "complete": True,
               "prompt_tokens": 1, "completion_tokens": 900 if i < 3 else 9, "cost_usd": 0.0,
               "seconds": 0.1, "model": "m", "source": "s"} for i in range(4)]
    tables.write(tables.Trace, pl.DataFrame(traces), folders["generate"] / "traces.parquet")
    return folders


def rewriting(call):
    """Rewrites the first soundly, gives the second a wrong answer, the third no two parts."""
    asked = json.loads(call.body["messages"][-1]["content"])
    number = int(asked["problem"].split()[0])
    answer = {0: "So \\boxed{1}.", 1: "So \\boxed{7}."}.get(number)
    text = f"## Thinking\nOne more than {number}.\n\n## Answer\n{answer}" if answer else "I cannot."
    return Answer(completion(text))


def experiment(url, tmp_path, **settings):
    return Experiment.model_validate({
        "generate": {"teacher": {"type": "solver"}},
        "filter": {"keep": KEEP, "rewrite": {"model": "m", "when": "tokens > 100", **settings}},
        "runtime": {"traces": str(tmp_path / "traces"), "judge_workers": 1,
                    "llm_judge": {"base_url": url}}})


def test_what_is_rewritten_is_judged_again_and_the_original_stays_beside_it(inputs, tmp_path):
    server = FaultServer(rewriting)
    with server.running() as url:
        counts = stage.run(experiment(url, tmp_path), inputs, tmp_path / "out")
        stage.run(experiment(url, tmp_path), inputs, tmp_path / "again")
    assert len(server.calls) == 3                       # once, and not the short one
    judged = tables.read(tables.Judged, tmp_path / "out/judged.parquet")
    assert judged["thinking"].to_list() == ["One more than 0.", LONG, LONG, "short"]
    assert judged["answer"][0] == "So \\boxed{1}."
    assert judged["verdict"].to_list() == ["correct"] * 4
    assert judged["original_thinking"].to_list() == [LONG, None, None, None]
    assert judged["original_answer"][0] == "\\boxed{1}" and judged["completion_tokens"][0] < 20
    made = counts["rewrite"]
    assert (made["rewritten"], made["judged_worse"], made["unreadable"]) == (1, 1, 1)
    assert "1 were rewritten" in stage.summary(counts)


def test_the_filter_decides_by_what_was_rewritten(inputs, tmp_path):
    with FaultServer(rewriting).running() as url:
        made = experiment(url, tmp_path)
        made = made.model_copy(update={"filter": made.filter.model_copy(
            update={"keep": KEEP + " and tokens < 100"})})
        stage.run(made, inputs, tmp_path / "out")
    judged = tables.read(tables.Judged, tmp_path / "out/judged.parquet")
    assert judged["kept"].to_list() == [True, False, False, True]


@pytest.mark.parametrize("settings, said", [
    ({"when": "pass_rate > 0.5"}, "'pass_rate', which is no column"),
    ({"prompt": "nowhere.jinja"}, "nowhere.jinja does not exist")])
def test_a_pass_that_cannot_be_made_is_one_sentence(tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        stage.check(experiment("http://127.0.0.1:9/v1", tmp_path, **settings))


def test_a_rewriter_without_an_address_is_one_sentence(tmp_path):
    made = Experiment.model_validate({"generate": {"teacher": {"type": "solver"}},
                                      "filter": {"rewrite": {"model": "m"}}})
    with pytest.raises(UserError, match=r"no address for filter.rewrite"):
        stage.check(made)
