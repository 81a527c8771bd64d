"""The judge is bounded: no text, thread, loop or dead worker can hang it or make it raise."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.judge import Judgement, JudgePool, Problem, judge
from pipeline.judge.gym import safe_for_scorer
from pipeline.judge.judge import judge_by_rules, resolve
from pipeline.judge.pool import WorkerKilledError
from pipeline.judge.verdict import WorkerTask, judgement
from tests.conftest import PATIENCE

PAYLOAD = "__import__('pathlib').Path({path!r}).touch()"
CASES = Path(__file__).parents[3] / "shared" / "cases" / "resource_attacks.json"
BOUND = 30
"""Seconds in which a judgement ends however busy the machine; a hang or quadratic time is minutes.
"""
FIVE = Problem("p", "", "5")
HEAVY = ["\\boxed{9^{9^{9^9}}}", "\\boxed{(10^8)!}",
         "\\boxed{" + "(" * 4000 + "5" + ")" * 4000 + "}",
         "\\boxed{\\sum_{k=1}^{10^9} \\sin(k^k)}", "\\boxed{" * 50_000, "<answer>" * 50_000,
         "$" * 300_000, "1 " * 200_000, "\\(" * 100_000, "answer is " * 50_000,
         "\\boxed{" + "\\frac" * 900 + "}", "\\boxed{\\int_0^{10^{9}} x^{x^{x}} dx}",
         "\\boxed{" + "the 3 lanes (left, straight, or right).\n   - The " * 8 + "end}",
         "\\boxed{" + "(-," * 200 + "5", "\\boxed{3 people (A, B, C):\n" + "‹a› #" * 300 + "}"]
NAMES = ["math", "choice", "exact"]


@pytest.fixture(scope="module")
def pool() -> Any:
    with JudgePool(workers=1) as shared:
        yield shared


def in_a_thread(task: Callable[[], Judgement]) -> Judgement:
    found: list[Judgement] = []
    thread = threading.Thread(target=lambda: found.append(task()))
    thread.start()
    thread.join(20)
    return found[0]


def in_a_loop(task: Callable[[], Judgement]) -> Judgement:
    async def inside() -> Judgement:
        return task()

    return asyncio.run(inside())


@pytest.mark.parametrize("mode", [lambda task: task(), in_a_thread, in_a_loop])
@pytest.mark.parametrize("kind", NAMES)
def test_heavy_answers_are_judged_in_bounded_time_from_everywhere(
        mode: Callable[..., Judgement], kind: str, pool: JudgePool) -> None:
    problem = Problem("p", "", "A" if kind == "choice" else "5", kind)
    for text in HEAVY:
        before = time.monotonic()
        verdict = mode(lambda text=text: judge(text, problem, pool=pool))
        assert time.monotonic() - before < BOUND, text[:40]
        assert verdict.score != 1.0, text[:40]


PIECES = ["(", ")", "{", "}", ",", ".", "-", "^", "_", "/", "=", "|", " ", "\n", "$", "1", "4.5",
          "a", "cm", "\\frac", "\\text{a b}", "\\(", "\\)", "left", "and", "or", "x", ":", "%", "'",
          "\\circ"]


def test_pieces_repeated_in_any_order_are_judged_in_bounded_time() -> None:
    draw = random.Random(0)
    for _ in range(1000):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 5))) * draw.choice([12, 30, 300])
        answer = text[:1900] + "".join(draw.choices(PIECES, k=draw.randint(0, 2)))
        before = time.monotonic()
        gold = draw.choice(["5", "x=3", "5 cm", "(1, 2)"])
        judge_by_rules(f"\\boxed{{{answer}}}", Problem("p", "", gold))
        safe_for_scorer("puzzle24", answer[:300])
        assert time.monotonic() - before < BOUND, answer[:40]


@pytest.mark.parametrize("mode", [lambda task: task(), in_a_thread, in_a_loop])
def test_known_resource_attacks_end_in_time_from_everywhere(
        mode: Callable[..., Judgement], pool: JudgePool) -> None:
    if not CASES.exists():
        pytest.skip("the resource attacks are not beside this checkout")
    for case in json.loads(CASES.read_text()):
        before = time.monotonic()
        mode(lambda case=case: judge(case["prediction"], Problem("p", "", case["gold"]),
                                     pool=pool))
        assert time.monotonic() - before < BOUND, case["id"]


def test_a_worker_that_hangs_or_dies_costs_its_own_request_alone() -> None:
    with JudgePool(workers=1, seconds=1.0) as pool:
        with pytest.raises(WorkerKilledError, match="timeout"):
            pool.ask("sleep", [30])
        assert pool.ask("sleep", [0.0]) is True
    with JudgePool(workers=1, seconds=PATIENCE) as pool:
        assert pool.ask("sleep", [0.0]) is True
        process = pool._all[0].process
        assert process is not None
        threading.Timer(1.0, lambda: os.kill(process.pid, signal.SIGKILL)).start()
        with pytest.raises(WorkerKilledError, match="error"):
            pool.ask("sleep", [PATIENCE])
        assert pool.ask("sleep", [0.01]) is True


def test_an_answer_that_needs_more_than_a_gigabyte_dies_alone_as_an_error() -> None:
    deferred = WorkerTask("allocate", (1200,), "1", "engine", lambda reply: judgement(
        "correct" if reply else "wrong", "1", "engine"))
    with JudgePool(workers=2) as pool, ThreadPoolExecutor(2) as threads:
        fine = threads.submit(pool.ask, "sleep", [0.2])
        before = time.monotonic()
        lost = resolve(deferred, pool)
        assert (lost.verdict, lost.score) == ("error", None) and time.monotonic() - before < BOUND
        assert fine.result() is True and pool.ask("allocate", [300]) is True


def test_a_pool_starts_no_process_until_one_is_needed() -> None:
    with JudgePool(workers=4) as pool:
        assert pool.judge("\\boxed{5}", FIVE).score == 1.0
        assert all(worker.process is None for worker in pool._all)


def test_a_started_pool_has_its_processes_before_the_first_answer() -> None:
    with JudgePool(workers=2) as pool:
        pool.start()
        processes = [worker.process for worker in pool._all]
        assert all(process and process.poll() is None for process in processes)
        assert pool.judge("\\boxed{\\sin^2 x + \\cos^2 x}", Problem("p", "", "1")).score == 1.0
        pool.start()
        assert [worker.process for worker in pool._all] == processes


def test_many_threads_may_share_one_pool() -> None:
    texts = [f"\\boxed{{\\sum_{{k=1}}^{{{n}}} k}}" for n in range(2, 8)]
    golds = [str(n * (n + 1) // 2) for n in range(2, 8)]
    out: dict[int, str] = {}
    with JudgePool(workers=2) as pool:
        threads = [threading.Thread(target=lambda i=i: out.update(
            {i: pool.judge(texts[i], Problem("p", "", golds[i])).verdict})) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert list(out.values()) == ["correct"] * 6


@settings(max_examples=600, deadline=20_000)
@given(st.text(max_size=200), st.text(max_size=40), st.sampled_from(NAMES))
def test_judge_never_raises(text: str, gold: str, kind: str) -> None:
    for wrapped in (text, f"\\boxed{{{text}}}", f"<think>{text}</think>{text}"):
        found = judge(wrapped, Problem("p", text, gold, kind))
        assert isinstance(found, Judgement) and found.verdict != "error"


LATEX = st.recursive(
    st.sampled_from(["x", "7", "2.5", "\\pi", "n", "-3", "10", "\\sqrt{2}", "e"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: f"\\frac{{{t[0]}}}{{{t[1]}}}"),
        st.tuples(inner, inner).map(lambda t: f"({t[0]}, {t[1]})"),
        st.tuples(inner, inner).map(lambda t: f"{t[0]} + {t[1]}"),
        st.tuples(inner, inner).map(lambda t: f"\\left({t[0]}\\right)^{{{t[1]}}}"),
        inner.map(lambda t: f"\\sqrt{{{t}}}"), inner.map(lambda t: f"\\{{{t}\\}}")), max_leaves=6)


@settings(max_examples=300, deadline=20_000)
@given(LATEX)
def test_every_answer_equals_itself(answer: str) -> None:
    problem = Problem("p", "", answer)
    assert judge(f"<think>so</think> It is \\boxed{{ {answer} }}.", problem).verdict == "correct"


@pytest.mark.parametrize("form", ["{}", "\\boxed{{{}}}", "\\boxed{{\\text{{{}}}}}",
                                  "\\boxed{{\\sqrt{{{}}}}}",
                                  "\\boxed{{\\begin{{pmatrix}} {} \\end{{pmatrix}}}}", "[{}]",
                                  "<answer>{}</answer>", "\\boxed{{\\pi + {}}}", "x = {}"])
def test_no_answer_is_ever_evaluated(form: str, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "reached"

    def forbidden(*args: object, **named: object) -> None:
        raise AssertionError("an evaluator was reached")

    import sympy

    monkeypatch.setattr(sympy, "sympify", forbidden)
    monkeypatch.setattr(sympy.parsing.sympy_parser, "parse_expr", forbidden)
    monkeypatch.setattr(builtins, "eval", forbidden)
    text = form.format(PAYLOAD.format(path=str(marker)))
    for gold in ("5", "\\pi", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", text):
        for kind in (*NAMES, "gym"):
            meta = {"task": "countdown", "numbers": [1], "target": 5}
            judge(text, Problem("p", "", gold, kind, meta=meta))
    assert not marker.exists()


HOOK = """
import sys
def hook(event, arguments):
    if event not in ("exec", "compile", "subprocess.Popen", "os.system", "os.exec"):
        return
    frame, names = sys._getframe(), []
    while frame:
        names.append(frame.f_code.co_filename)
        frame = frame.f_back
    if any(n.endswith("verify/engine.py") for n in names) and not any(
            "importlib" in n or "polys/monomials" in n for n in names):
        with open({log!r}, "a") as log:
            log.write(event + " " + repr(arguments)[:200] + chr(10))
sys.addaudithook(hook)
"""
"""Runs first in a worker: logs what it evaluates or starts for an answer. Imports aside, and the
functions that sympy's polynomials write for a number of variables, without a word of the answer."""


def test_no_answer_is_evaluated_in_the_worker_either(tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    log, marker = tmp_path / "log", tmp_path / "reached"
    (tmp_path / "sitecustomize.py").write_text(HOOK.format(log=str(log)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    payload = PAYLOAD.format(path=str(marker))
    with JudgePool(workers=1) as pool:
        for answer in (payload, f"{{{payload}}}", f"\\sqrt{{{payload}}}", f"\\text{{{payload}}}",
                       f"x = {payload}", f"\\begin{{pmatrix}}{payload}\\end{{pmatrix}}",
                       "\\frac{1}{2} + \\sqrt{7}", "1+1", "(1, 2)", "\\{1, 2\\}"):
            for gold in ("5", "\\pi", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", answer):
                with contextlib.suppress(ValueError, WorkerKilledError):
                    pool.ask("math", [gold, answer, True])
    assert not log.exists() and not marker.exists()
    control = "exec(compile('eval(\"1 + 1\")', 'verify/engine.py', 'exec'))"
    subprocess.run([sys.executable, "-c", control], check=True)
    assert "exec" in log.read_text()
