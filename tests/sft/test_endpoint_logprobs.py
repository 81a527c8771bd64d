"""Log-probabilities that came with the traces are the teacher's at the student's tokens."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import tiny_sft
import torch

from pipeline import tables
from pipeline.config.experiment import Runtime
from pipeline.config.filter import FilterConfig
from pipeline.config.generate import GenerateConfig
from pipeline.config.sft import LogitsConfig
from pipeline.config.student import PackConfig
from pipeline.config.teacher import OpenAITeacher, Sampling, TeacherRuntime, VllmTeacher
from pipeline.errors import UserError
from pipeline.sft import trainer
from pipeline.sft.teacher_scorer import make_scorer
from pipeline.student.token_rows import IGNORED, read_rows
from pipeline.student.tokenizer import load_tokenizer
from pipeline.teacher import TraceStore, generate
from stages import logits as scoring
from stages.graph import STAGES
from tests.fault_server import Answer, FaultServer, completion

K = 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_sft.build(tmp_path_factory.mktemp("tiny"), rows=24)


@pytest.fixture(scope="module")
def exact(tiny):
    """The teacher as the transformers scorer sees it: the untrained tiny model."""
    return make_scorer(LogitsConfig(teacher=str(tiny / "model"), top_k=K), 10 ** 6)


def samples_of(tiny):
    rows = read_rows(tiny / "rows.parquet")
    return [(ids, np.flatnonzero(labels != IGNORED))
            for ids, labels in zip(rows.ids, rows.labels, strict=True)]


class Endpoint:
    """Says each row's completion with the model's own top K; `by_id` as vLLM, else as OpenAI."""

    def __init__(self, tiny, exact, by_id):
        self.tokenizer, self.by_id = load_tokenizer(tiny / "tokenizer"), by_id
        self.samples = dict(zip((p for p, *_ in tiny_sft.sums(24)), samples_of(tiny), strict=True))
        self.weight = exact.model.get_output_embeddings().weight
        self.exact, self.spoil = exact, None

    def __call__(self, call):
        assert call.body["logprobs"] and call.body["top_logprobs"] == K
        ids, places = self.samples[call.question]
        if self.by_id:
            assert call.body["return_tokens_as_token_ids"]
        with torch.no_grad():
            logps = torch.log_softmax(self.exact._states([(ids, places)])[0] @ self.weight.T, -1)
        own = ids[places].tolist()
        said = [self.said(row, token) for row, token in zip(logps, own, strict=True)]
        said = said if self.by_id else said[:-1]
        if self.spoil:
            self.spoil(said)
        body = json.loads(completion(self.tokenizer.decode(own[:-1])))
        body["choices"][0]["logprobs"] = {"content": said}
        return Answer(json.dumps(body).encode())

    def said(self, row, token):
        top = row.topk(K)
        return {**self.entry(token, row[token]), "top_logprobs": [
            self.entry(i, value) for i, value in zip(top.indices, top.values, strict=True)]}

    def entry(self, token, logp):
        text = f"token_id:{int(token)}" if self.by_id else self.tokenizer.decode([int(token)])
        return {"token": text, "logprob": float(logp)}


def scored(tiny, endpoint, folder):
    """(experiment, inputs) of the logits stage, with the traces asked of `endpoint`."""
    (folder / "plain.jinja").write_text("{{ problem }}")
    teacher = VllmTeacher(model="m") if endpoint.by_id else OpenAITeacher(model="m")
    config = GenerateConfig(teacher=teacher, samples=1, prompt=str(folder / "plain.jinja"),
                            sampling=Sampling(top_logprobs=K, max_tokens=500))
    from pipeline.problems.chats import teacher_chats
    from pipeline.teacher.request_table import RequestTable

    problems = [{"problem_id": f"sum-{i}", "problem": p, "answer": "1", "kind": "math",
                 "source": "x", "split": "problems", "meta": "{}"}
                for i, (p, *_) in enumerate(tiny_sft.sums(24))]
    requests = RequestTable.of(teacher_chats(config, problems), 1)
    with FaultServer(endpoint).running() as url, TraceStore(folder / "traces") as store:
        generate(requests, teacher=teacher, sampling=config.sampling, store=store,
                 runtime=TeacherRuntime(base_url=url, n=1, concurrency=1))
        traces = store.collect(requests, teacher, config.sampling)
    inputs = {name: folder / name for name in ("prepare", "filter", "student", "pack", "logits")}
    for path in inputs.values():
        path.mkdir()
    tables.write(tables.Problem, tables.table_of(tables.Problem, problems),
                  inputs["prepare"] / "problems.parquet")
    judged = traces.with_columns(source=None).select(list(tables.Trace.columns())).with_columns(
        score=1.0, verdict=pl.lit("correct"), extracted=pl.lit("1"), grader=pl.lit("rules"),
        judge_version=pl.lit("1"), pass_rate=1.0, kept=True, reason=pl.lit(""))
    tables.write(tables.Judged, judged, inputs["filter"] / "judged.parquet")
    (inputs["student"] / "tokenizer").symlink_to(tiny / "tokenizer")
    (inputs["pack"] / "rows.parquet").symlink_to(tiny / "rows.parquet")
    return SimpleNamespace(generate=config, filter=FilterConfig(), pack=PackConfig(),
                           runtime=Runtime(traces=folder / "traces"),
                           logits=LogitsConfig(scorer={"type": "traces"}, mass=1.0)), inputs


@pytest.mark.parametrize("by_id", [False, True])
def test_what_the_endpoint_said_equals_what_the_model_gives(tiny, exact, by_id, tmp_path):
    experiment, inputs = scored(tiny, Endpoint(tiny, exact, by_id), tmp_path)
    scoring.check(experiment)
    scorer = scoring._from_traces(experiment, inputs, load_tokenizer(tiny / "tokenizer"),
                                   read_rows(tiny / "rows.parquet"))
    samples, named, tokens = samples_of(tiny), 0.0, 0
    with torch.no_grad():
        for (ids, places), ours, theirs in zip(samples, scorer(samples), exact(samples),
                                               strict=True):
            known = len(places) - (not by_id)
            own = dict(enumerate(ids[places][:known].tolist()))
            for row, token in own.items():
                pairs = zip(ours.ids[row].tolist(), ours.logps[row].tolist(), strict=True)
                found = {i: logp for i, logp in pairs if np.isfinite(logp)}
                wanted = dict(zip(theirs.ids[row].tolist(), theirs.logps[row].tolist(),
                                  strict=True))
                assert set(found) - {token} <= set(wanted) and token in found
                assert all(abs(logp - wanted.get(i, logp)) < 1e-5 for i, logp in found.items())
                tail = np.exp(ours.tail_logprob[row])
                assert abs(np.exp(list(found.values())).sum() + tail - 1) < 1e-5
                named += len(set(found) & set(wanted)) / K
                tokens += 1
            if not by_id:
                assert ours.ids[-1, 0] == ids[-1] and ours.logps[-1, 0] == 0
    assert named == tokens if by_id else named > 0.6 * tokens   # bytes alone have no text
    counts = scoring.run(experiment, inputs, inputs["logits"])
    assert counts["loss_tokens"] == sum(len(places) for _, places in samples)
    job = tiny_sft.job(tiny, tmp_path / "out", {"method": {"type": "logits"}}, max_steps=2)
    assert trainer.train(job.model_copy(update={"logits": inputs["logits"]}))["steps"] == 2


def test_the_sampled_tokens_own_log_probability_is_the_models(tiny, exact, tmp_path):
    experiment, inputs = scored(tiny, Endpoint(tiny, exact, by_id=True), tmp_path)
    scorer = scoring._from_traces(experiment, inputs, load_tokenizer(tiny / "tokenizer"),
                                   read_rows(tiny / "rows.parquet"))
    everything = make_scorer(LogitsConfig(teacher=str(tiny / "model"), top_k=255), 10 ** 6)
    outside = 0
    with torch.no_grad():
        for (ids, places), ours, theirs in zip(samples_of(tiny), scorer(samples_of(tiny)),
                                               everything(samples_of(tiny)), strict=True):
            for row, token in enumerate(ids[places].tolist()):
                mine = ours.logps[row][(ours.ids[row] == token) & np.isfinite(ours.logps[row])]
                wanted = theirs.logps[row][theirs.ids[row] == token]
                assert len(mine) == 1
                assert not len(wanted) or abs(mine[0] - wanted[0]) < 1e-5
                outside += token not in theirs.ids[row][:K]
    assert outside > 10


def other_token(said):
    said[3]["token"] = "?!"


def one_less(said):
    del said[2:4]


def none_at_all(said):
    said.clear()


@pytest.mark.parametrize(("spoil", "why"), [
    (other_token, r"'\?!' at the endpoint where its row has"), (one_less, "tokens at the endpoint"),
    (none_at_all, "without log-probabilities")])
def test_other_tokens_than_the_students_are_refused_with_the_remedy(spoil, why, tiny, exact,
                                                                    tmp_path):
    endpoint = Endpoint(tiny, exact, by_id=False)
    endpoint.spoil = spoil
    experiment, inputs = scored(tiny, endpoint, tmp_path)
    with pytest.raises(UserError, match=f"sum-0#0 .*{why}.*sft.method.type=sequence"):
        scoring.run(experiment, inputs, inputs["logits"])


def test_traces_as_a_scorer_need_the_option_that_stores_them():
    config = GenerateConfig(teacher=OpenAITeacher(model="m"))
    for settings, said in (({}, "generate.sampling.top_logprobs"),
                           ({"temperature": 2.0}, "temperature 1 only")):
        experiment = SimpleNamespace(
            filter=FilterConfig(), pack=PackConfig(), runtime=Runtime(),
            generate=config if not settings else config.model_copy(
                update={"sampling": Sampling(top_logprobs=5)}),
            logits=LogitsConfig(scorer={"type": "traces"}, **settings))
        with pytest.raises(UserError, match=said):
            scoring.check(experiment)
    assert STAGES["logits"].needs(experiment) == ("student", "pack", "prepare", "filter")
