"""The trace store: nothing lost, nothing twice, no damage unnoticed."""

import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from pipeline import tables
from pipeline.config.teacher import OpenAITeacher, Sampling, SolverTeacher, VllmTeacher
from pipeline.errors import UserError
from pipeline.teacher import store_segment
from pipeline.teacher.request import Job, Keys, Request, consecutive, jobs
from pipeline.teacher.store import TraceStore
from pipeline.teacher.store_journal import read_journal
from pipeline.teacher.trace_rows import asked_row
from tests.conftest import PATIENCE, ROOT

TEACHER = OpenAITeacher(model="m")


def chat(text):
    return [{"role": "user", "content": text}]


def requests(count, samples=1):
    return [Request(f"p{i}", sample, chat(f"question {i}")) for i in range(count)
            for sample in range(samples)]


def row(request, sampling, teacher=TEACHER, **changes):
    keys = Keys(teacher, sampling)
    job = Job(keys.of(request.messages), request.messages, range(request.sample,
                                                                 request.sample + 1))
    said = {"thinking": "hm", "answer": f"{request.problem_id}/{request.sample}",
            "finish_reason": "stop", "complete": True, "prompt_tokens": 3, "completion_tokens": 4,
            "cost_usd": 0.5, "seconds": 1.0, "model": "m"}
    return asked_row(job, request.sample, keys.origin, sampling) | said | changes


def fill(folder, wanted, sampling, **changes):
    with TraceStore(folder) as store, store.writing():
        for request in wanted:
            store.append(row(request, sampling, **changes))


def as_traces(stored):
    """What the store gives as the rows of generate, which adds the problem's source."""
    return tables.Trace.validate(stored.with_columns(source=pl.lit("set")), cast=True)


def missing(folder, wanted, sampling, teacher=TEACHER):
    return TraceStore(folder).missing(wanted, teacher, sampling)


def test_an_empty_store_misses_everything_and_gives_an_empty_table(tmp_path):
    wanted = requests(3, 2)
    store = TraceStore(tmp_path / "none")
    assert store.missing(wanted, TEACHER, Sampling()) == wanted
    assert as_traces(store.collect(wanted, TEACHER, Sampling())).is_empty()


def test_only_what_was_never_asked_is_missing(tmp_path):
    sampling = Sampling(temperature=0.6, max_tokens=10)
    fill(tmp_path, requests(4, 2), sampling)
    wanted = requests(5, 3)
    left = missing(tmp_path, wanted, sampling)
    assert {(r.problem_id, r.sample) for r in left} == {
        *((f"p{i}", 2) for i in range(4)), *(("p4", s) for s in range(3))}
    traces = TraceStore(tmp_path).collect(wanted, TEACHER, sampling)
    assert as_traces(traces).height == 8
    assert traces["answer"].to_list() == [f"p{i}/{s}" for i in range(4) for s in range(2)]


def test_what_will_take_longest_is_missing_first_and_the_rest_in_order(tmp_path):
    lengths = [30, 900, 200, 5000]
    for i, tokens in enumerate(lengths):
        fill(tmp_path / "store", requests(6)[i:i + 1], Sampling(), completion_tokens=tokens)
    left = missing(tmp_path / "store", requests(6, 2), Sampling())
    known_mean = sum(lengths) / len(lengths)
    expected = dict(zip(["p0", "p1", "p2", "p3"], lengths, strict=True))
    found = [expected.get(r.problem_id, known_mean) for r in left]
    assert len(left) == 8 and found == sorted(found, reverse=True)
    assert [r for r in left if r.problem_id in ("p4", "p5")] == requests(6, 2)[8:]
    assert missing(tmp_path / "none", requests(6, 2), Sampling()) == requests(6, 2)


def test_the_key_is_teacher_messages_and_sampling_but_not_max_tokens(tmp_path):
    sampling = Sampling(temperature=0.6, max_tokens=10)
    wanted = requests(1)
    fill(tmp_path, wanted, sampling)
    assert not missing(tmp_path, wanted, Sampling(temperature=0.6, max_tokens=9000))
    others = [Sampling(temperature=0.7), Sampling(temperature=0.6, top_p=0.9),
              Sampling(temperature=0.6, seed=1), Sampling(temperature=0.6, extra={"a": 1})]
    assert all(missing(tmp_path, wanted, other) for other in others)
    for teacher in (OpenAITeacher(model="n"), VllmTeacher(model="m"), SolverTeacher()):
        assert missing(tmp_path, wanted, sampling, teacher)
    assert missing(tmp_path, [Request("p0", 0, chat("another"))], sampling)
    assert not missing(tmp_path, [Request("renamed", 0, wanted[0].messages)], sampling)


def test_throughput_options_of_vllm_are_not_part_of_the_key():
    slow, fast = (VllmTeacher(model="m", vllm={"max_num_seqs": n}) for n in (8, 512))
    other = VllmTeacher(model="m", vllm={"quantization": "fp8"})
    assert slow.identity() == fast.identity() != other.identity()


def test_raising_max_tokens_asks_again_only_what_was_cut_off(tmp_path):
    short = Sampling(max_tokens=10)
    wanted = requests(3)
    fill(tmp_path, wanted[:2], short)
    fill(tmp_path, wanted[2:], short, finish_reason="length", complete=False, answer="cut")
    assert not missing(tmp_path, wanted, short)
    assert not missing(tmp_path, wanted, Sampling(max_tokens=5))
    longer = Sampling(max_tokens=20)
    assert missing(tmp_path, wanted, longer) == wanted[2:] == missing(tmp_path, wanted, Sampling())
    fill(tmp_path, wanted[2:], longer, answer="whole")
    traces = TraceStore(tmp_path).collect(wanted, TEACHER, short)
    assert traces["answer"].to_list() == ["p0/0", "p1/0", "whole"]


def test_what_is_cut_off_without_a_limit_is_not_asked_for_ever(tmp_path):
    fill(tmp_path, requests(1), Sampling(), finish_reason="length", complete=False,
         completion_tokens=500)
    assert not missing(tmp_path, requests(1), Sampling())
    assert not missing(tmp_path, requests(1), Sampling(max_tokens=400))
    assert missing(tmp_path, requests(1), Sampling(max_tokens=600))


def test_a_failure_is_recorded_and_asked_again(tmp_path):
    fill(tmp_path, requests(2), Sampling(), failure="HTTP 400", finish_reason=None, answer=None)
    assert missing(tmp_path, requests(2), Sampling()) == requests(2)
    assert TraceStore(tmp_path).collect(requests(2), TEACHER, Sampling()).is_empty()


def test_logprobs_come_back_as_they_went_in_and_only_when_asked(tmp_path):
    sampling = Sampling(top_logprobs=2)
    packed = {"token_ids": [5, 7], "token_logprobs": [-0.5, -1.5], "top_ids": [5, 6, 7, None],
              "top_logprobs": [-0.5, -2.0, -1.5, None]}
    fill(tmp_path, requests(1), sampling, **packed)
    found = TraceStore(tmp_path).collect(requests(1), TEACHER, sampling).row(0, named=True)
    assert {name: found[name] for name in packed} == packed and found["token_texts"] is None
    assert set(Sampling(top_logprobs=2).identity()) == {"top_logprobs"}


def test_equal_chats_of_two_problems_are_asked_once(tmp_path):
    twins = [Request("a", 0, chat("same")), Request("b", 0, chat("same"))]
    assert len(list(jobs(twins, Keys(TEACHER, Sampling()), 8))) == 1
    fill(tmp_path, twins[:1], Sampling())
    assert TraceStore(tmp_path).collect(twins, TEACHER, Sampling())["problem_id"].to_list() == [
        "a", "b"]


def test_runs_are_consecutive_and_bounded():
    assert list(consecutive({5, 1, 2, 3, 9}, 2)) == [range(1, 3), range(3, 4), range(5, 6),
                                                     range(9, 10)]
    assert list(consecutive([], 4)) == []


def test_rows_of_a_killed_writer_are_read_and_become_a_segment(tmp_path):
    store = TraceStore(tmp_path)
    context = store.writing()
    context.__enter__()
    for request in requests(3):
        store.append(row(request, Sampling()))
    store._journal.close()                       # as a kill would leave it: lock gone, no segment
    store._journal = None
    context.__exit__(None, None, None)
    journal = next(tmp_path.glob("*.journal"))
    whole = journal.read_bytes()
    for cut in range(0, len(whole), 97):
        journal.write_bytes(whole[:cut])
        assert len(read_journal(journal)) == whole[:cut].count(b"\n")
    journal.write_bytes(whole[:-5])
    assert len(missing(tmp_path, requests(3), Sampling())) == 1
    with store.writing():
        pass
    assert not list(tmp_path.glob("*.journal"))
    assert len(missing(tmp_path, requests(3), Sampling())) == 1


def test_a_kill_between_rename_and_removal_doubles_nothing(tmp_path):
    fill(tmp_path, requests(2), Sampling())
    segment = next(tmp_path.glob("*.parquet"))
    (tmp_path / f"{segment.name[:6]}.journal").touch()
    (tmp_path / "000007.partial").write_bytes(b"half")
    fill(tmp_path, requests(3)[2:], Sampling())
    assert len(TraceStore(tmp_path).collect(requests(3), TEACHER, Sampling())) == 3


def test_two_writers_at_once_are_read_together(tmp_path):
    wanted = requests(4)
    one, other = TraceStore(tmp_path), TraceStore(tmp_path)
    with one.writing(), other.writing():
        for request, store in zip(wanted, (one, other, one, other), strict=True):
            store.append(row(request, Sampling()))
        assert len(list(tmp_path.glob("*.journal"))) == 2
        assert not missing(tmp_path, wanted, Sampling())
    assert len(list(tmp_path.glob("*.parquet"))) == 2 and not list(tmp_path.glob("*.journal"))
    assert len(TraceStore(tmp_path).collect(wanted, TEACHER, Sampling())) == 4


@pytest.mark.parametrize("trials", [80, pytest.param(400, marks=pytest.mark.slow)])
def test_every_flipped_bit_and_every_truncation_is_detected(trials, tmp_path):
    wanted = requests(40, 5)
    fill(tmp_path, wanted, Sampling())
    segment = next(tmp_path.glob("*.parquet"))
    good, rng = segment.read_bytes(), random.Random(trials)
    detected = 0
    for trial in range(trials):
        bad = bytearray(good)
        if trial % 4 == 3:
            bad = bad[:rng.randrange(len(bad))]
        else:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        segment.write_bytes(bytes(bad))
        with pytest.raises(UserError, match=r"damaged|cannot be read"):
            TraceStore(tmp_path).collect(wanted, TEACHER, Sampling())
        detected += 1
    print(f"{detected} of {trials} detected")


ENDING = """
import os, sys
from pathlib import Path
import pyarrow.dataset
from pipeline.teacher.store_segment import read_segment
ends = set()
for number in range(44):
    if number < 40 and not os.fork():
        read_segment(Path(sys.argv[1]))
        break    # and ends as any program does, at once
    if number >= 4:    # so many at once that each waits for a core now and then
        ends.add(os.wait()[1])
else:
    assert ends == {0}, ends
"""


def test_a_process_may_end_right_after_it_has_read(tmp_path):
    fill(tmp_path, requests(40, 5), Sampling())
    done = subprocess.run([sys.executable, "-c", ENDING, str(next(tmp_path.glob("*.parquet")))],
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def test_a_damaged_journal_line_is_named(tmp_path):
    store = TraceStore(tmp_path)
    with store.writing():
        for request in requests(3):
            store.append(row(request, Sampling()))
        journal = next(tmp_path.glob("*.journal"))
        data = bytearray(journal.read_bytes())
        data[60] ^= 1
        journal.write_bytes(bytes(data))
        with pytest.raises(UserError, match="line 1"):
            TraceStore(tmp_path).missing(requests(3), TEACHER, Sampling())


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_large_store_knows_what_is_missing(count, tmp_path):
    sampling, problems = Sampling(temperature=0.6), count // 16
    keys, chats = Keys(TEACHER, sampling), [chat(f"question {i}") for i in range(problems)]
    store = TraceStore(tmp_path)
    template = row(requests(1)[0], sampling, thinking="so " * 200)
    with store.writing():
        for start in range(0, problems, 5000):
            part = [template | {"key": keys.of(messages), "sample": sample}
                    for messages in chats[start:start + 5000] for sample in range(16)]
            store._write_segment((tmp_path / f"{start:06d}.journal").absolute(), part)
    wanted = [Request(f"p{i}", s, messages) for i, messages in enumerate(chats) for s in range(17)]
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    left = store.missing(wanted, TEACHER, sampling)
    took = time.monotonic() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{count} stored: {took:.2f} s and {grown >> 20} MB more to know {len(left)} missing")
    assert took < 60 and grown < 2 << 30
    assert len(left) == problems and {request.sample for request in left} == {16}


def test_collect_keeps_the_order_of_the_requests(tmp_path):
    wanted = requests(20, 3)
    shuffled = random.Random(1).sample(wanted, len(wanted))
    fill(tmp_path, shuffled, Sampling())
    traces = TraceStore(tmp_path).collect(wanted, TEACHER, Sampling())
    assert traces.select("problem_id", "sample").rows() == [r[:2] for r in wanted]
    assert isinstance(traces, pl.DataFrame)


@pytest.mark.parametrize("shuffled", [False, True])
def test_traces_come_in_order_and_parts_and_few_segments_are_read_twice(tmp_path, monkeypatch,
                                                                        shuffled):
    for name, value in (("FOLD_ROWS", 6), ("BATCH_ROWS", 5), ("OPEN_SEGMENTS", 2)):
        monkeypatch.setattr(f"pipeline.teacher.store.{name}", value)
    wanted, sampling = requests(20, 3), Sampling(max_tokens=9)
    asked = random.Random(1).sample(wanted, len(wanted)) if shuffled else wanted
    cut = {"finish_reason": "length", "complete": False, "answer": "", "completion_tokens": 9}
    fill(tmp_path, asked, sampling, **cut)
    fill(tmp_path, asked[:50], Sampling(max_tokens=12))     # again, and this time to the end
    with TraceStore(tmp_path) as store, store.writing():
        store.append(row(asked[-1], Sampling(max_tokens=12)))
        read = []
        real = store_segment.read_segment
        monkeypatch.setattr(store_segment, "read_segment",
                            lambda path: read.append(path) or real(path))
        parts = list(store.stream(wanted, TEACHER, Sampling(max_tokens=12)))
    assert [len(part) for part in parts] == [5] * 12
    traces = pl.concat(parts)
    assert traces.select("problem_id", "sample").rows() == [r[:2] for r in wanted]
    whole = {r[:2] for r in (*asked[:50], asked[-1])}
    assert traces["answer"].to_list() == [
        f"{name}/{sample}" if (name, sample) in whole else "" for name, sample, _ in wanted]
    if not shuffled:
        assert len(read) <= len(set(read)) + 2


@pytest.mark.parametrize("full", ["rename", "open"])
def test_a_segment_that_cannot_be_written_loses_no_row_and_leaves_no_half(full, tmp_path,
                                                                          monkeypatch):
    real = getattr(Path, full)

    def refuse(path, *arguments, **options):
        if path.suffix == ".partial":
            raise OSError(28, "No space left on device")
        return real(path, *arguments, **options)

    monkeypatch.setattr("pipeline.teacher.store.FOLD_ROWS", 5)
    wanted, store, refused = requests(12), TraceStore(tmp_path), 0
    with monkeypatch.context() as disk:
        disk.setattr(Path, full, refuse)
        with pytest.raises(UserError, match="finished traces are kept"), store.writing():
            for request in wanted:
                try:
                    store.append(row(request, Sampling()))
                except UserError:
                    refused += 1
    assert refused == 8 and not missing(tmp_path, wanted, Sampling())
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".journal", "", ""]
    fill(tmp_path, requests(13)[12:], Sampling())
    assert len(store.collect(requests(13), TEACHER, Sampling())) == 13
    assert len(list(tmp_path.glob("*.parquet"))) == 2 and not list(tmp_path.glob("*.journal"))


def test_rows_that_hold_an_endpoints_own_word_for_their_end_are_read_in_ours(tmp_path):
    wanted, sampling = requests(2), Sampling(max_tokens=100)
    fill(tmp_path, wanted[:1], sampling, finish_reason="MAX_TOKENS", complete=False)
    fill(tmp_path, wanted[1:], sampling, finish_reason="STOP", complete=False)
    table = TraceStore(tmp_path).collect(wanted, TEACHER, sampling)
    assert table["finish_reason"].to_list() == ["length", "stop"]
    assert table["complete"].to_list() == [False, True]
    assert missing(tmp_path, wanted, Sampling(max_tokens=200)) == wanted[:1]
