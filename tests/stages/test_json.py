"""Commands that a script reads print JSON and nothing else on standard output."""

import json
import os
import resource
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from stages import __main__ as command_line
from stages.__main__ import app
from tests.conftest import ROOT

SMALL = ("prepare.limit=30", "prepare.held_out=10", "generate.samples=1")


def test_commands_print_json_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def read(*arguments, code=0):
        done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    found = read("estimate", *SMALL)["generate"]
    assert found["missing"] == 20 and found["usd"] == 0 and found["hours"] > 0
    assert CliRunner().invoke(app, ["generate", *SMALL]).exit_code == 0
    came, *_ = read("preview", *SMALL)
    assert (came["what"], came["traces"]) == ("came", 20)
    assert [row["stage"] for row in read("runs", *SMALL)] == ["prepare", "generate"]
    assert {row["stage"]: row["state"] for row in read("plan", *SMALL)}["filter"] == "would run"
    assert read("path", "generate", *SMALL)["made"] and read("show", "generate", *SMALL)["rows"]
    check, *_ = read("doctor", str(tmp_path / "nowhere"), code=1)
    assert not check["ok"] and "nowhere" in check["sentence"]


class PanicException(BaseException):
    """Named as Rust's."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PanicException(
    "called `Result::unwrap()` on an `Err` value: PyErr { type: <class 'KeyboardInterrupt'>, "
    "value: KeyboardInterrupt() }")])
def test_a_ctrl_c_that_typer_does_not_see_is_one_sentence(monkeypatch, capsys, error):
    def stop():
        raise error

    monkeypatch.setattr(command_line, "app", stop)
    monkeypatch.setattr(command_line.signal, "signal", lambda *given: None)
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_a_ctrl_c_within_code_in_a_string_is_130_too(tmp_path):
    (tmp_path / "stopped.py").write_text(
        "from stages import __main__ as line\n"
        "line.app = lambda: exec('raise KeyboardInterrupt')\n"
        "line.main()\n")
    done = subprocess.run([sys.executable, "-m", "stopped"], cwd=tmp_path, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 130 and "the same command goes on" in done.stderr


def of_numpy(path):
    import numpy as np

    with path.open("wb") as file:
        np.zeros(1 << 20).tofile(file)


def of_safetensors(path):
    import torch
    from safetensors.torch import save_file

    save_file({"weights": torch.zeros(1 << 20)}, path)


@pytest.mark.parametrize("write", [of_numpy, of_safetensors])
def test_a_full_disk_is_one_sentence_whoever_wrote(write, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "app", lambda: write(tmp_path / "file"))
    monkeypatch.setattr(command_line.signal, "signal", lambda *given: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))      # the system's word is another
    try:
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stopped.value.code == 2 and "free space or fix permissions" in capsys.readouterr().err
