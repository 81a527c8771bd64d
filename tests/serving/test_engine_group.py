"""Engines side by side in processes of their own, where a fake takes vllm.LLM's place."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from pipeline.config.experiment import Runtime
from pipeline.errors import UserError
from pipeline.serving.engine_group import EngineGroup, check_engines, start_engines

HERE = Path(__file__).parents[2]
PATIENCE = 200      # seconds; engines import this file, and shall not import conftest


SEEN = ("RANK", "TORCHELASTIC_USE_AGENT_STORE", "VLLM_ENABLE_V1_MULTIPROCESSING")


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pid, seconds=PATIENCE):
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


class Fake:
    """Answers a prompt with what it knows: its process, its options and its weights' sums."""

    def __init__(self, folder=None, **options):
        self.options, self.weights = options, {}
        model: object = self
        for name in ("model", "model_runner", "driver_worker", "model_executor"):
            model = SimpleNamespace(**{name: model})
        self.llm_engine, self.asked = model, 0
        if folder:
            self.meet(Path(folder))

    def meet(self, folder):
        """As vLLM does: alone, or with its memory given and the other one about."""
        (folder / f"{os.getpid()}.started").touch()
        started = [len(list(folder.glob("*.started")))]
        while self.options.get("kv_cache_memory_bytes") and started[-1] < 2:
            time.sleep(0.02)
            started.append(len(list(folder.glob("*.started"))))
        if not self.options.get("kv_cache_memory_bytes"):
            time.sleep(0.3)
            assert started[0] == len(list(folder.glob("*.started"))), "not alone"

    def load_weights(self, weights):
        self.weights |= {name: float(weight.sum()) for name, weight in weights}

    def generate(self, prompts, params, use_tqdm):
        assert not use_tqdm
        if params == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if params == "sleep":
            time.sleep(60)
        seen = {name: os.environ.get(name) for name in SEEN}
        return [(prompt, os.getpid(), self.options, self.weights, seen) for prompt in prompts]

    def reset_prefix_cache(self):
        return True


@pytest.fixture
def pair(monkeypatch):
    for name in SEEN:
        monkeypatch.setenv(name, "1")        # as under accelerate, on several GPUs
    made = EngineGroup(2, {"seed": 3, "distributed_executor_backend": "external_launcher",
                       "gpu_memory_utilization": 0.5}, Fake)
    yield made
    made.close()


def test_engines_share_the_prompts_and_answer_in_their_order(pair):
    answers = pair.generate(list(range(5)), "params")
    assert [answer[0] for answer in answers] == list(range(5))
    processes = [answer[1] for answer in answers]
    assert processes[0] == processes[1] == processes[2] != processes[3] == processes[4]
    assert os.getpid() not in processes
    assert [one[2]["seed"] for one in answers[2:4]] == [6, 7]       # no two draw the same numbers
    assert answers[0][2]["gpu_memory_utilization"] == 0.25
    assert answers[0][2]["distributed_executor_backend"] is None
    assert list(answers[0][4].values()) == [None, None, "0"]
    assert [os.environ[name] for name in SEEN] == ["1", "1", "1"]
    assert len(pair.generate([7], "params")) == 1 and pair.generate([], "params") == []


def known(pair):
    return [answer[3] for answer in pair.generate([0, 1], "params")]


def test_every_engine_reads_each_weight_while_it_stands(pair):
    matrix = torch.nn.Parameter(torch.ones(3, 2))

    def merged():           # as peft's adapters are, while TRL asks for the weights
        matrix.data += 1
        yield "matrix", matrix.data
        yield "bias", torch.full((4,), 0.5, dtype=torch.bfloat16)
        matrix.data -= 1

    model = pair.llm_engine.model_executor.driver_worker.model_runner.model
    for _ in range(2):
        model.load_weights(merged())
        pair.reset_prefix_cache()
        assert known(pair) == [{"matrix": 12.0, "bias": 2.0}] * 2
    model.load_weights([("matrix", matrix), ("other", 2 * matrix)])     # what stands: at once
    assert known(pair) == [{"matrix": 6.0, "bias": 2.0, "other": 12.0}] * 2


@pytest.mark.parametrize("given", [{}, {"kv_cache_memory_bytes": 10**9}])
def test_engines_start_one_by_one_unless_their_memory_is_given(given, tmp_path):
    made = EngineGroup(2, {"folder": str(tmp_path), **given}, Fake)
    assert len(made.generate([1, 2], "params")) == 2
    made.close()


def test_an_engine_that_ends_is_named_and_none_is_left(pair):
    first, second = (answer[1] for answer in pair.generate([1, 2], "params"))
    with pytest.raises(UserError, match=r"a vLLM engine ended with code -9.*runtime\.engines"):
        pair.generate([1, 2], "die")
    assert gone(first) and gone(second)


def test_engines_that_cannot_start_say_so(tmp_path, capfd):
    with pytest.raises(UserError, match="a vLLM engine ended with code 1"):
        EngineGroup(2, {"folder": str(tmp_path / "missing")}, Fake)
    assert "FileNotFoundError" in capfd.readouterr().err


def test_engines_end_with_a_trainer_that_is_killed():
    code = ("from tests.serving.test_engine_group import EngineGroup, Fake; import time\n"
            "if __name__ == '__main__':\n"
            "    two = EngineGroup(2, {}, Fake)\n"
            "    print(*(a[1] for a in two.generate([1, 2], 'params')), flush=True)\n"
            "    time.sleep(600)\n")
    with subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": str(HERE)}) as trainer:
        numbers = list(map(int, trainer.stdout.readline().split()))
        assert len(numbers) == 2
        trainer.kill()
    until = time.monotonic() + PATIENCE
    while not all(map(gone, numbers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert all(map(gone, numbers))


TRAINER = """
import time
import polars      # its handler of SIGINT lets a read go on
from tests.serving.test_engine_group import EngineGroup, Fake

class Loud(Fake):
    def __init__(self, **options):
        super().__init__(**options)
        print("made", flush=True)

if __name__ == "__main__":
    EngineGroup(2, {}, Loud).generate([1, 2], "sleep")
else:
    print("importing", flush=True)
    time.sleep(1)
"""


@pytest.mark.parametrize(("number", "said"), [
    (signal.SIGINT, ["importing"]), (signal.SIGKILL, ["importing"]),
    (signal.SIGINT, ["importing", "made"] * 2)])
def test_a_stopped_trainer_ends_at_once_and_its_engines_say_and_make_nothing(number, said,
                                                                             tmp_path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    with subprocess.Popen([sys.executable, tmp_path / "trainer.py"], cwd=HERE, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                          env={**os.environ, "PYTHONPATH": str(HERE)}) as trainer:
        assert [trainer.stdout.readline().strip() for _ in said] == said
        time.sleep(0.3)         # until it waits
        (os.kill if number == signal.SIGKILL else os.killpg)(trainer.pid, number)
        try:
            out, err = trainer.communicate(timeout=PATIENCE)      # of its engines as well
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(trainer.pid, signal.SIGKILL)
    assert trainer.returncode == -number and out == ""
    assert err.count("Traceback") == (number == signal.SIGINT)      # the trainer's own


@pytest.mark.parametrize(("error", "said"), [
    (ValueError("1 error\n  Free memory is less"), "1 error Free memory is less"),
    (RuntimeError(), "RuntimeError"), (ImportError("no module foo"), "no module foo")])
def test_one_engine_that_cannot_start_is_one_sentence(error, said):
    def refuse(**options):
        raise error

    with pytest.raises(UserError, match=f"did not start .{said}.; its messages are above"):
        start_engines(refuse, {"model": "m"})


def test_one_engine_whose_cache_is_given_needs_no_share_of_the_gpu_free():
    assert start_engines(dict, {"kv_cache_memory_bytes": 8}) == {
        "kv_cache_memory_bytes": 8, "gpu_memory_utilization": 0.01}


def test_one_engine_is_what_it_was():
    assert start_engines(dict, {"model": "m", "engines": 1}) == start_engines(dict, {"model": "m"})
    vllm = {"max_num_seqs": 8}
    assert Runtime(vllm=vllm).engine() == vllm == start_engines(dict, Runtime(vllm=vllm).engine())
    assert Runtime(vllm=vllm, engines=2).engine() == {**vllm, "engines": 2}


@pytest.mark.parametrize("given", [{"vllm_tensor_parallel_size": 2},
                                   {"vllm_enable_sleep_mode": True}])
def test_what_is_for_one_engine_is_refused_with_several(given):
    check_engines(1, SimpleNamespace(**given), "rl")
    with pytest.raises(UserError, match=rf"rl\.trainer\.{next(iter(given))}=.*runtime\.engines=1"):
        check_engines(2, SimpleNamespace(**given), "rl")
    with pytest.raises((UserError, ValidationError), match="tensor_parallel_size spreads"):
        Runtime(vllm={"tensor_parallel_size": 2}, engines=2)
