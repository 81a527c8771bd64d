"""A wheel works from any folder: prompts, configs and the report's page travel with it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Run limbeck from an unpacked wheel, in an empty folder."""
    made = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(made)],
                   cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(made.glob("limbeck-*.whl"))) as wheel:
        wheel.extractall(made / "site")
    (made / "work").mkdir()

    def run(*arguments, stdin=""):
        return subprocess.run([sys.executable, "-m", "stages", *arguments], cwd=made / "work",
                              env={**os.environ, "PYTHONPATH": str(made / "site")}, check=True,
                              input=stdin, capture_output=True, text=True).stdout

    return run


def test_plan_and_judge_work_outside_a_checkout_with_the_checkouts_keys(installed, limbeck):
    assert installed("plan") == limbeck("plan").stdout
    assert "never made" in installed("plan", "-c", "configs/laptop.yaml")
    row = json.dumps({"prediction": r"\boxed{7}", "gold": "7"})
    assert json.loads(installed("judge", "-", stdin=row))["verdict"] == "correct"


def test_stages_run_and_their_data_go_to_the_working_folder(installed):
    small = ("prepare.held_out=4", "prepare.limit=12", "generate.samples=2")
    folder = Path(installed("path", "prepare", *small).strip())
    installed("filter", *small)
    assert json.loads((folder / "manifest.json").read_text())["counts"]["problems"] == 8
    assert folder.parts[-3:-1] == ("data", "artifacts") and folder.parents[2].name == "work"
