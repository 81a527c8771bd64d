"""The README's commands are real: each one parses, names what exists, and its config loads."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from stages.__main__ import app
from stages.graph import STAGES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [line.split(" | ")[-1] for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
         for line in block.splitlines()]
COMMANDS = sorted({line for line in LINES if line.startswith("limbeck ")})


def test_there_are_commands_to_test():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("line", COMMANDS)
def test_every_limbeck_command_parses_and_its_config_loads(line):
    import typer

    name, *words = shlex.split(line)[1:]
    commands = typer.main.get_command(app).commands
    assert name in commands
    commands[name].make_context(name, list(words))
    if name in STAGES or name in ("plan", "config", "estimate", "preview"):
        files = [ROOT / words[i + 1] for i, word in enumerate(words) if word == "-c"]
        overrides = [w for w in words if "=" in w and not w.startswith("-")]
        load(Experiment, files or [ROOT / "configs/default.yaml"], overrides)


def test_every_make_target_named_exists():
    targets = {word for line in LINES if line.startswith("make ") for word in line.split()[1:]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE)) | set(STAGES) | {"all", "plan"}
    assert targets and targets <= known


def test_the_tree_names_only_what_exists():
    tree = README.split("## The tree")[1].split("```")[1]
    for name in re.findall(r"^(\w+)/", tree, re.MULTILINE):
        assert (ROOT / name).is_dir(), name
    for name in re.findall(r"\b(\w+\.py)\b", tree):
        assert list(ROOT.glob(f"*/{name}")), name
