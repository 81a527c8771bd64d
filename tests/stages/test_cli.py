"""The command line: what it imports, and what it says to bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from pipeline.errors import UserError
from tests.conftest import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
LIGHT = """
import sys
from stages.__main__ import app
try:
    app({arguments!r}, standalone_mode=False)
except SystemExit:
    pass
tables = {{"numpy.linalg", "pyarrow.lib", "dataframely"}} if "plan" in {arguments!r} else set()
heavy = ({{"torch", "transformers", "trl", "datasets"}} | tables) & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("arguments", [["--help"], ["plan"], ["config"], ["generate"],
                                       ["filter"], ["show", "filter"]], ids=lambda a: a[0])
def test_light_commands_import_no_torch(arguments, tmp_path):
    small = [] if arguments == ["--help"] else [
        "-c", str(ROOT / "configs/default.yaml"), "prepare.limit=30", "prepare.held_out=5",
        "generate.samples=2"]
    if arguments[0] == "show":
        test_light_commands_import_no_torch(["filter"], tmp_path)
    done = subprocess.run([sys.executable, "-c", LIGHT.format(arguments=[*arguments, *small])],
                          cwd=tmp_path, text=True, capture_output=True, check=False,
                          env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr


def refused(limbeck, *arguments, code=2, **environment):
    done = limbeck(*arguments, code=code, **environment)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("limbeck: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_bad_input_gets_one_sentence_that_names_the_thing(limbeck, tmp_path):
    assert "'filter.kep'" in refused(limbeck, "plan", "filter.kep=1")
    assert "'generate.samples'" in refused(limbeck, "plan", "generate.samples=many")
    assert "nowhere.yaml" in refused(limbeck, "plan", "-c", "nowhere.yaml")
    assert "nowhere.jsonl" in refused(limbeck, "prepare", "prepare.problems=nowhere.jsonl")
    assert "cook" in refused(limbeck, "show", "cook")
    assert "not made yet" in refused(limbeck, "show", "filter")
    assert "learning_rat" in refused(limbeck, "sft", "sft.trainer.learning_rat=1")
    assert "rl.start" in refused(limbeck, "rl", "rl.start=nowhere")
    assert not list(tmp_path.glob("data/artifacts/*-*"))


def test_a_hub_that_cannot_be_reached_is_one_sentence_and_no_retries(limbeck, tmp_path):
    done = limbeck("student", "student.model=nobody/nothing", code=2, HF_HUB_OFFLINE="0",
                   HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=tmp_path, http_proxy="",
                   https_proxy="", all_proxy="", HTTP_PROXY="", HTTPS_PROXY="", ALL_PROXY="")
    (said,) = done.stderr.splitlines()
    assert "'nobody/nothing': http://127.0.0.1:9 cannot be reached" in said and "hub id" in said


def test_a_cached_model_and_one_behind_a_proxy_need_no_connection(tmp_path, monkeypatch):
    from huggingface_hub import constants

    from pipeline.student import tokenizer

    for name, value in {"ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": False,
                        "HF_HUB_CACHE": str(tmp_path)}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(tokenizer, "getproxies", lambda: {"https": "http://proxy:3128"})
    tokenizer.check_hub("nobody/nothing")
    monkeypatch.setattr(tokenizer, "getproxies", dict)
    with pytest.raises(OSError, match="cannot be reached"):
        tokenizer.check_hub("nobody/nothing")
    folder = tmp_path / "models--nobody--nothing"
    for file, text in (("refs/main", "abc"), ("snapshots/abc/tokenizer_config.json", "{}")):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text(text)
    tokenizer.check_hub("nobody/nothing")


def test_an_empty_set_a_broken_line_and_a_missing_column_are_named(limbeck, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    assert "no problems" in refused(limbeck, "prepare", "prepare.problems=empty.jsonl")
    (tmp_path / "torn.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n{"prob')
    assert "torn.jsonl:2" in refused(limbeck, "prepare", "prepare.problems=torn.jsonl")
    (tmp_path / "other.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    assert "prepare.problem_column" in refused(limbeck, "prepare", "prepare.problems=other.jsonl")


def test_a_blank_problem_is_named_and_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    from pipeline.config.problems import Source
    from pipeline.problems.sources import load_rows

    rows = [{"problem": "1+1", "answer": "2"}, {"problem": " \n", "answer": "2"}]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    with pytest.raises(UserError, match=r"row 2 of .*p\.jsonl has nothing in 'problem'"):
        load_rows(Source(problems=str(file)), 0)
    file.write_text(json.dumps(rows[0]), encoding="utf-8-sig")
    assert [row["problem"] for row in load_rows(Source(problems=str(file)), 0)] == ["1+1"]


@pytest.mark.parametrize(("pattern", "said"), [
    ("#### (.+", "give a regular expression .*unterminated"), ("#### .+", "in parentheses")])
def test_an_answer_pattern_that_finds_nothing_is_refused_before_any_work(pattern, said):
    with pytest.raises(UserError, match=rf"'prepare\.answer_pattern'.*{said}"):
        load(Experiment, [], [f"prepare.answer_pattern='{pattern}'"])


def test_a_gold_answer_that_fails_its_own_check_stops_before_any_spending(limbeck, tmp_path):
    (tmp_path / "bad.jsonl").write_text(
        '{"id": "good", "problem": "1+1?", "answer": "2"}\n'
        '{"id": "void", "problem": "What is it?", "answer": ""}\n')
    said = refused(limbeck, "generate", "prepare.problems=bad.jsonl", "prepare.held_out=0",
                   "generate.teacher={type: openai, model: m}",
                   "runtime.teacher.base_url=http://127.0.0.1:9/v1")
    assert "'void'" in said and "bad_gold=drop" in said
    limbeck("prepare", "prepare.problems=bad.jsonl", "prepare.held_out=0", "prepare.bad_gold=drop")


def test_an_expression_that_names_no_column_is_refused(limbeck):
    small = ("prepare.limit=30", "prepare.held_out=5", "generate.samples=1")
    said = refused(limbeck, "filter", *small, "filter.keep=verdit == 'correct'")
    assert "'verdit'" in said and "verdict" in said
    assert "cannot be read" in refused(limbeck, "filter", *small, "filter.keep=__import__('os')")


def test_a_read_only_folder_is_one_sentence(limbeck, tmp_path):
    (tmp_path / "file").write_text("")
    said = refused(limbeck, "prepare", f"runtime.artifacts={tmp_path / 'file'}")
    assert "file" in said


def test_path_prints_a_folder_and_nothing_else(limbeck, tmp_path):
    out = limbeck("path", "sft").stdout
    assert out.count("\n") == 1 and Path(out.strip()).is_relative_to(tmp_path)


def test_a_negative_number_of_rows_is_refused(limbeck):
    assert "Invalid value" in limbeck("show", "filter", "--rows", "-1", code=2).stderr


def test_config_says_where_each_value_came_from(limbeck):
    out = limbeck("config", "filter.distinct=false").stdout
    assert "filter.distinct=false  # command line" in out and "seed=0  # default" in out


def test_ctrl_c_is_one_sentence_and_the_next_run_goes_on(limbeck, tmp_path):
    import os
    import signal
    import time

    command = [sys.executable, "-m", "stages", "generate", "generate.samples=200"]
    running = subprocess.Popen(command, cwd=tmp_path, text=True, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not list(tmp_path.glob("data/traces/*.journal")):     # the teacher answers
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130 and "Traceback" not in said
    assert "the same command goes on" in said.splitlines()[-1]
    limbeck("prepare")


def test_a_line_separator_inside_a_string_is_no_new_row(limbeck, tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"id": "a", "problem": "1+1\u2028?", "answer": "2"}\n', encoding="utf-8")
    limbeck("prepare", "prepare.problems=p.jsonl", "prepare.held_out=0")


def test_a_preview_makes_nothing_and_the_next_command_is_given_whole_and_once(limbeck, tmp_path):
    (tmp_path / "own.yaml").write_text("generate: {teacher: {type: solver}, samples: 1}\n")
    given = ("-c", "own.yaml", "prepare.limit=30", "prepare.held_out=5",
             'filter.keep=verdict != "cut_off"')
    assert "run `limbeck generate`" in refused(limbeck, "preview", *given)
    assert not (tmp_path / "data").exists()
    said = limbeck("generate", *given).stderr
    assert said.endswith("; next: limbeck filter -c own.yaml prepare.limit=30 prepare.held_out=5 "
                         "'filter.keep=verdict != \"cut_off\"'\n")
    assert said.count("next:") == 1
    assert "next:" not in limbeck("preview", *given).stderr


def test_plan_refuses_a_filter_that_cannot_work():
    done = subprocess.run([sys.executable, "-m", "stages", "plan", "filter.keep=pass_rat > 0"],
                          cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 2 and "pass_rat" in done.stderr and not done.stdout
