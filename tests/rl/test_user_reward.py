"""Rewards of the user's own: found before any work, held to TRL's contract, part of the key."""

import math
import re
import subprocess
from pathlib import Path

import pytest
import tiny_rl

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.rl.rewards import RewardContext, reward_functions
from stages import rl
from stages.graph import plans
from tests.rl.test_rl_launch import stage

ROOT = Path(__file__).resolve().parents[2]
ROWS = {"prompts": ["p"] * 3, "completions": ["a", "bb", "ccc"], "completion_ids": [[1]] * 3,
        **{name: [name] * 3 for name in ("problem_id", "problem", "answer", "kind", "source",
                                         "split", "meta")},
        "trainer_state": None, "log_extra": None, "log_metric": None}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def experiment(*rewards):
    given = ", ".join(f"{key}: 1.0" for key in rewards)
    return load(Experiment, [ROOT / "configs/default.yaml"], [f"rl.rewards={{{given}}}"])


def own(text, key="own.py:own"):
    """The reward function that the config makes of `text`, a file."""
    Path("own.py").write_text(text)
    [(weight, function)] = reward_functions({key: 0.5}, RewardContext()).values()
    assert weight == 0.5
    return function


def test_the_readmes_own_reward_refines_in_a_launched_process(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write, command = re.findall(r"^(?:echo 'def|limbeck rl rl.rewards).*", (
        ROOT / "configs/README.md").read_text("utf-8"), re.MULTILINE)
    subprocess.run(write, shell=True, check=True)
    given = command.removeprefix("limbeck rl ").replace("'", "")
    made, inputs, out = stage(tmp_path, given, "rl.phases=[{}]", "rl.evaluate_every=0",
                              "rl.keep=last", "rl.dynamic_sampling=0")
    rl.check(made)
    assert rl.run(made, inputs, out)["steps"] == 3 and (out / "job.json").is_file()
    for line in tiny_rl.log(out):
        right, fresh, brief = (line[f"rewards/{name}/mean"]
                               for name in ("accuracy", "repetition", "brevity"))
        assert brief == pytest.approx(-line["completions/mean_length"] / 1000)
        assert line["reward"] == pytest.approx(right + fresh + 0.2 * brief, abs=1e-6)


def test_an_edited_reward_remakes_rl_and_nothing_before_it():
    def keys():
        made = plans(experiment("accuracy", "own.py:own"), "rl")
        return {name: plan.key for name, plan in made.items()}

    file = Path("own.py")
    file.write_text("def own(**given): return [0.0]")
    before = keys()
    file.touch()
    assert keys() == before
    file.write_text("def own(**given): return [1.0]")
    after = keys()
    assert {name for name in after if after[name] != before[name]} == {"rl"}


def test_an_edited_reward_is_read_anew():
    assert own("def own(**given): return [0, 0, 0]")(**ROWS) == [0, 0, 0]
    assert own("def own(**given): return [1, 1, 1]")(**ROWS) == [1, 1, 1]


@pytest.mark.parametrize(("text", "keys", "said"), [
    (None, ["own.py:own"], "own.py does not exist"),
    ("", ["own.py:own"], "own.py defines no 'own'"),
    ("own = 3", ["own.py:own"], "'own' of own.py is of type int and cannot be called"),
    ("def own(:", ["own.py:own"], r"own.py cannot be imported: SyntaxError: .*own\.py, line 1"),
    ("\nimport nowhere_at_all", ["own.py:own"],
     "own.py cannot be imported: ModuleNotFoundError in line 2: No module named 'nowhere_at_all'"),
    ("raise SystemExit(0)", ["own.py:own"], "own.py cannot be imported: SystemExit in line 1"),
    ("def own(completions, solution, **rest): ...", ["own.py:own"],
     "own.py:own cannot be called with prompts,.*, answer,.*missing .*'solution'"),
    ("def own(completions): ...", ["own.py:own"], "unexpected keyword argument"),
    ("def accuracy(**given): ...", ["own.py:accuracy"], "the name of another reward, 'accuracy'"),
    ("def process(**given): ...", ["own.py:process"], "the name of another reward, 'process'"),
    ("def own(**given): ...", ["own.py:own", "./own.py:own"],
     r"\./own.py:own has the name of another reward, 'own'"),
    ("", ["own.py"], "rl.rewards names 'own.py'; there are accuracy, .*path/to/file.py:function")])
def test_a_reward_that_cannot_be_had_is_refused_before_the_run(text, keys, said):
    if text is not None:
        Path("own.py").write_text(text)
    with pytest.raises(UserError, match=said) as refused:
        rl.check(experiment(*keys))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("body", "expected"), [
    ("return [0.5, None, 2]", [0.5, None, 2]), ("return (len(c) > 1 for c in completions)",
                                                [False, True, True]),
    ("import torch; return torch.tensor([len(c) / 2 for c in completions])", [0.5, 1.0, 1.5]),
    ("import numpy; return list(numpy.float32([1, 2, 3]))", [1, 2, 3]),
    ("return [SCALE * len(rest['answer'][i]) for i in range(3)]", [0.6] * 3)])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_trl_takes_of_a_reward_is_taken(kind, body, expected):
    if kind == "async def":
        body = f"import asyncio; await asyncio.sleep(0); {body}"
    reward = own(f"SCALE = 0.1\n{kind} own(completions, **rest):\n    {body}\n")
    assert reward(**ROWS) == pytest.approx(expected)
    assert reward(**ROWS) == pytest.approx(expected)


def test_a_nan_is_undecided():
    assert math.isnan(own("def own(**given): return [float('nan'), 1, 1]")(**ROWS)[0])


@pytest.mark.parametrize(("body", "said"), [
    ("return [0.0]", "own.py:own returned 1 values for 3 completions"),
    ("return [0.0, 1.0, 'long']", "own.py:own failed: TypeError: it returned 'long', which"),
    ("return [0.0, 1.0, float('-inf')]", "own.py:own failed: TypeError: it returned -inf"),
    ("return 1.0", "own.py:own failed: TypeError"),
    ("return None", "own.py:own failed: TypeError"),
    ("raise SystemExit", "own.py:own failed: SystemExit in line 2"),
    ("return [{}[c] for c in completions]", "own.py:own failed: KeyError in line 2: 'a'")])
def test_what_no_reward_may_return_or_raise_is_told_with_its_name(body, said):
    with pytest.raises(UserError, match=said):
        own(f"def own(completions, **rest):\n    {body}")(**ROWS)


def test_a_reward_that_fails_while_training_stops_the_run_and_what_it_logs_is_kept(tmp_path):
    Path("own.py").write_text("def own(completions, log_metric, trainer_state, **rest):\n"
                              "    log_metric('mine', 7.0)\n"
                              "    assert trainer_state.global_step < 2, 'late'\n"
                              "    return [None if i < 4 else i / 8 for i in range(8)]\n")
    start, out = tiny_rl.build(tmp_path), tmp_path / "out"
    with pytest.raises(UserError, match=r"own\.py:own failed: AssertionError in line 3: late"):
        tiny_rl.refined(start, out, rewards={"own.py:own": 1.0})
    told = tiny_rl.log(out)
    assert [line["step"] for line in told] == [1, 2]
    assert all(line["mine"] == 7.0 and line["unjudged"] == 0.5 for line in told)
    assert all(line["rewards/own/mean"] == pytest.approx(5.5 / 8) for line in told)


def test_ctrl_c_in_a_reward_stays_what_it_is():
    with pytest.raises(KeyboardInterrupt):
        own("def own(**given): raise KeyboardInterrupt")(**ROWS)
