"""Estimated GPU hours, held against runs that were measured (results/)."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from pipeline.cluster.gpu_hours import Gpus, Work, hours, parameters_of
from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from stages.__main__ import app

RESULTS = Path(__file__).parents[2] / "results"
H200 = Gpus(1, "h200")


def peers(size):
    text = (RESULTS / "sft-peers.json").read_text(encoding="utf-8")
    return next(row["median"] for row in json.loads(text)[size]["summary"]
                if row["contender"] == "limbeck" and row["batch"] == 32)


@pytest.mark.parametrize(("size", "parameters"), [("0.5B", 0.494e9), ("1.5B", 1.544e9)])
def test_sft_takes_what_was_measured(size, parameters):
    tokens = 1e7
    expected = tokens / peers(size) / 3600
    assert hours(Work("sft", parameters, trained=tokens), H200) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize(("name", "gpus"), [("qwen-seeds", 1), ("qwen-two-gpus", 2)])
def test_refinement_takes_what_was_measured(name, gpus):
    runs = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rl"]
    run = next(iter(runs.values()))
    tokens = run["completion_tokens"]
    prompts = run["steps"] * run["completions_a_step"] * 150
    work = Work("rl", 0.494e9, trained=tokens + prompts, scored=tokens + prompts, sampled=tokens)
    measured = run["train_minutes"] / 60
    assert measured / 1.6 < hours(work, Gpus(gpus, "h200")) < measured * 1.6


def test_a_calibration_replaces_what_is_assumed_and_more_gpus_take_less():
    work = Work("rl", 7e9, trained=3.6e6, sampled=3.6e6)
    assert hours(work, Gpus(1, "mine", train_rate=1000, sample_rate=500)) == pytest.approx(3.0)
    assert hours(work, Gpus(8, "h100")) < hours(work, Gpus(1, "h100")) / 7
    with pytest.raises(UserError, match=r"GPU 'abacus' is not known.*a100.*--train-rate"):
        hours(work, Gpus(1, "abacus"))


def test_a_models_size_is_read_from_its_weights_or_its_name(tmp_path):
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "model.safetensors")
    assert parameters_of(str(tmp_path)) == (22.0, "weights")
    assert parameters_of("Qwen/Qwen2.5-Math-1.5B")[0] == 1.5e9
    assert parameters_of("deepseek-ai/DeepSeek-R1-Distill-Llama-70B")[0] == 70e9
    for unknown in ("gpt2", "tiny"):
        with pytest.raises(UserError, match="--student-billions"):
            parameters_of(unknown)


def test_estimate_counts_every_stage_that_is_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["estimate", "-c", str(RESULTS.parent / "configs" / "tiny.yaml"), "--gpus", "4",
             "--gpu-usd", "2", "--student-billions", "0.5"]
    rows = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)["stages"]
    by_name = {row["stage"]: row for row in rows}
    assert by_name["rl"]["sampled_tokens"] == 2 * 8 * 24 // 2
    assert by_name["evaluate"]["sampled_tokens"] == 3 * 8 * 24
    more = json.loads(CliRunner().invoke(
        app, [*given, "--json", "rl.trainer.max_steps=200"]).stdout)["stages"]
    assert {row["stage"]: row["sampled_tokens"] for row in more}["rl"] == 200 * 8 * 24 // 2
    text = CliRunner().invoke(app, given).stdout
    assert "on 4 h100" in text and "60% of traces kept" in text and "assumed: completions" in text
    refused = CliRunner().invoke(app, given[:-2])
    assert "give --student-billions" in str(refused.exception)


SIZES = ("r1-distill-qwen-1.5b", "distill-qwen-7b", "distill-llama-8b", "distill-qwen-14b",
         "distill-qwen-32b", "distill-llama-70b")


@pytest.mark.parametrize("name", SIZES)
def test_the_hours_that_a_size_states_are_what_estimate_prints(name, tmp_path, monkeypatch):
    folder, line = RESULTS.parent / "configs", re.compile(
        r"on (\d+) h100: sft (\S+) h, rl (\S+) h, evaluate (\S+) h\.")
    stated = line.search((folder / f"{name}.yaml").read_text("utf-8")).groups()
    table = (folder / "README.md").read_text("utf-8")
    assert "| `{}.yaml` | {} h100 | {} h | {} h | {} h |".format(name, *stated) in table
    monkeypatch.chdir(tmp_path)
    files = [part for one in dict.fromkeys([SIZES[0], name])
             for part in ("-c", str(folder / f"{one}.yaml"))]
    done = CliRunner().invoke(app, ["estimate", *files, "--gpus", stated[0], "--json",
                                    "--problems", "39800", "--trace-tokens", "10000"])
    printed = json.loads(done.stdout)
    assert [f"{row['hours']:.3g}" for row in printed["stages"]] == list(stated[1:])
    assert f"{printed['generate']['usd']:.0f} dollars" in table
    processes = load(Experiment, [Path(part) for part in files[1::2]]).runtime.launch
    assert processes.get("num_processes", 1) == int(stated[0])


def test_a_pilot_needs_problems_that_are_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["estimate", "--problems", "5", "--pilot", "3"])
    assert "leave out --problems or --pilot" in str(refused.exception)
