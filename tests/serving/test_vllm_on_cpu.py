"""vLLM itself, in its build for processors: `make test-vllm` installs it and runs these."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import tiny_rl
import torch

from tests.conftest import ROOT
from tests.vllm_on_cpu import disguise, installed

pytestmark = [pytest.mark.timeout(600),
              pytest.mark.skipif(not installed() or torch.cuda.is_available(),
                                 reason="needs vLLM's build for processors: make test-vllm")]
ENGINE = "{kv_cache_memory_bytes: 100000000, max_num_seqs: 64, max_model_len: 512, " \
         "enforce_eager: true, dtype: float32}"
# vLLM's attention on a processor takes no smaller heads than 32.
LINE = ("-c", ROOT / "configs/default.yaml", "-c", ROOT / "configs/tiny.yaml",
        "student.tiny.heads=1", f"runtime.vllm={ENGINE}", "runtime.judge_workers=1")


@pytest.fixture
def run(limbeck, tmp_path):
    """limbeck with vLLM, in an empty folder."""
    beside = Path(sys.executable).parent
    return partial(limbeck, PYTHONPATH=f"{disguise(tmp_path / 'vllm')}{os.pathsep}{ROOT}",
                   PATH=f"{beside}{os.pathsep}{os.environ['PATH']}", OMP_NUM_THREADS="1",
                   VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_LOGGING_LEVEL="WARNING")


def made(tmp_path, stage):
    [folder] = (tmp_path / "data/artifacts").glob(f"{stage}-*")
    return folder


@pytest.mark.parametrize("engines", [1, 2])
def test_rollouts_are_drawn_from_the_weights_that_are_trained(engines, run, tmp_path):
    (tmp_path / "own.py").write_text("def odd(completion_ids, **rest):\n"
                                     "    return [sum(ids) % 5 / 4 for ids in completion_ids]\n")
    done = run("rl", *LINE, f"runtime.engines={engines}", "rl.rewards={own.py:odd: 1.0}",
               "rl.trainer.use_vllm=true", "rl.trainer.vllm_max_model_length=512",
               "rl.trainer.max_steps=4", "rl.trainer.learning_rate=0.02")
    steps = tiny_rl.log(made(tmp_path, "rl"))
    assert len(steps) == 4 and all(step["frac_reward_zero_std"] < 1 for step in steps)
    assert abs(steps[-1]["entropy"] - steps[0]["entropy"]) > 0.01     # the weights have moved
    for step in steps:
        assert step["sampling/sampling_logp_difference/max"] < 1e-3
    assert "leaked" not in done.stderr


def test_servers_say_what_their_model_says_and_are_asked_once(run, tmp_path):
    run("sft", *LINE, "sft.trainer.num_train_epochs=30")
    teacher = f"model: {made(tmp_path, 'sft') / 'model'}"
    shutil.rmtree(made(tmp_path, "generate"))
    asked = ("generate", *LINE, "generate.samples=1", "generate.prompt=plain",
             "generate.sampling={temperature: 0, max_tokens: 60}")
    served = f"generate.teacher={{type: vllm, {teacher}, servers: 2, vllm: {ENGINE}}}"
    for given in (served, f"generate.teacher={{type: transformers, {teacher}}}"):
        run(*asked, given)
    tables = {json.loads((path.parent / "manifest.json").read_text())["config"][
        "teacher"]["type"]: pl.read_parquet(path)
        for path in (tmp_path / "data/artifacts").glob("generate-*/traces.parquet")}
    said = {kind: dict(table.select(
        "problem_id", pl.concat_str("thinking", "answer", ignore_nulls=True)).iter_rows())
            for kind, table in tables.items()}
    assert said["vllm"] == said["transformers"] and len(set(said["vllm"].values())) > 5
    for folder in (tmp_path / "data/artifacts").glob("generate-*"):
        shutil.rmtree(folder)
    assert "(0 asked" in run(*asked, served).stderr


def test_a_served_student_sees_the_tokens_it_is_trained_on(run, tmp_path):
    run("student", *LINE)
    said = run("doctor", made(tmp_path, "student") / "model", "--vllm",
               VLLM_CPU_KVCACHE_SPACE="1").stdout
    assert "tokens as in training" in said and "vllm thinking" in said, said


SAMPLED = """
import json, sys
from pipeline.config.evaluate import StudentSampling
from pipeline.student import sample
model, ways = sys.argv[1], (sample._by_vllm, sample._by_transformers)
prompts = [[5, 6, 7 + at] for at in range(20)]
for way in ways:
    with way(model, [1], 40, StudentSampling(temperature=0, max_tokens=30), 0,
             {"dtype": "float32", "kv_cache_memory_bytes": 10**8, "enforce_eager": True}) as run:
        print(json.dumps(run(prompts, [30] * 10 + [9] * 10)))
"""


def test_the_engine_of_an_evaluation_samples_as_transformers_does(run, tmp_path):
    run("student", *LINE)
    done = subprocess.run([sys.executable, "-c", SAMPLED,
                           made(tmp_path, "student") / "model"], text=True,
                          capture_output=True, timeout=280, check=False, cwd=tmp_path,
                          env={**os.environ, **run.keywords})
    assert done.returncode == 0, done.stderr
    engine, transformers = [json.loads(line) for line in done.stdout.splitlines()
                            if line.startswith("[[")]
    assert engine == transformers and {len(row) for row in engine[10:]} == {9}


def test_both_scorers_store_the_same_distributions(run, tmp_path):
    run("student", *LINE)
    for scorer in (f"{{type: vllm, engine: {ENGINE}}}", "{type: transformers, dtype: float32}"):
        run("logits", *LINE, "sft.method.type=logits", f"logits.scorer={scorer}", "logits.top_k=8",
            f"logits.teacher={made(tmp_path, 'student') / 'model'}")
    first, second = (pl.concat(pl.read_parquet(path) for path in folder.glob("shard-*.parquet"))
                     .sort("row") for folder in (tmp_path / "data/artifacts").glob("logits-*"))
    assert first.select("row", "check", "counts").equals(second.select("row", "check", "counts"))
    for name, apart in (("logps", 1), ("rest", 1), ("ids", 0)):     # of 256 levels; two may tie
        gap = (first[name].explode().cast(pl.Int64) - second[name].explode().cast(pl.Int64)).abs()
        assert (gap <= apart).mean() > 0.999 and len(gap) >= len(first)
