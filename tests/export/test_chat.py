"""A checkpoint behind an endpoint, and a talk with it."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.student import TinyModel
from pipeline.config.teacher import TeacherRuntime
from pipeline.errors import UserError
from pipeline.export.chat import Talk, converse
from pipeline.export.checkpoint_server import Endpoint, Student
from pipeline.export.thinking_stream import ThinkingStream
from pipeline.student.tiny import save_tiny
from pipeline.teacher.probe import _probe
from stages.chat import _found
from tests.student.test_tiny import CORPUS, TEMPLATE


@given(st.text(alphabet="a<>/think \n", max_size=40), st.data())
def test_thinking_is_split_alike_however_the_text_is_cut(thought, data):
    text = f"<think>\n{thought.replace('think', '')}</think>\nanswer"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    split = ThinkingStream()
    parts = [part for piece in pieces for part in split.feed(piece)] + split.end()
    said = {kind: "".join(text for one, text in parts if one == kind)
            for kind in ("thinking", "answer")}
    assert said["answer"] == "answer"
    assert said["thinking"] == thought.replace("think", "").lstrip("\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    save_tiny(CORPUS, TinyModel(layers=1, width=32, heads=2), TEMPLATE, 0, folder)
    return folder


def test_the_endpoint_passes_the_probe_and_refuses_a_body_without_messages(folder):
    from aiohttp import ClientSession
    from aiohttp.test_utils import TestServer

    from pipeline.config.teacher import OpenAITeacher, Sampling

    async def asked():
        async with TestServer(Endpoint(Student(str(folder), str(folder))).application()) as server:
            url = str(server.make_url("/v1"))
            found = await _probe(TeacherRuntime(base_url=url), OpenAITeacher(model="student"),
                                 Sampling(max_tokens=12))
            async with ClientSession() as session:
                bad = await session.post(f"{url}/chat/completions", json={"n": 1})
                return found, bad.status

    found, status = asyncio.run(asked())
    assert found.dialect and found.thinking and found.usage
    assert found.streams and found.n and found.logprobs
    assert status == 400


class Scripted(Talk):
    """A talk whose model says what `events` say."""

    def __init__(self, *events):
        self.events, self.messages, self.folded, self.thinking = events, [], False, ""

    def _stream(self):
        for event in self.events:
            if event is KeyboardInterrupt:
                raise event
            yield event


def test_ctrl_c_stops_the_answer_alone_and_folding_hides_the_thinking(capsys):
    talk = Scripted(([("thinking", "hm")], None), ([("answer", "42")], None), KeyboardInterrupt)
    lines = iter(["/fold", "What?", "/think"])

    def read():
        for line in lines:
            return line
        raise EOFError

    converse(talk, read)
    shown = capsys.readouterr().out
    assert "42" in shown and "stopped; 2 tokens" in shown
    assert shown.count("hm") == 1 and shown.rstrip().endswith("hm")
    assert talk.messages[-1] == {"role": "assistant", "content": "42"}


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    from pipeline.config.experiment import Experiment
    from pipeline.config.load import load

    root = Path(__file__).resolve().parents[2]
    experiment = load(Experiment, [root / "configs/default.yaml"],
                      [f"runtime.artifacts={tmp_path}"])
    with pytest.raises(UserError, match="sft is not made yet for this config; run `limbeck sft`"):
        _found(experiment, "sft")
    with pytest.raises(UserError, match="there is no model 'nonsense'"):
        _found(experiment, "nonsense")
