"""Commands in the documents are real: each parses, names what exists, and its config loads."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from pipeline.config.experiment import Experiment
from pipeline.config.load import load
from stages.__main__ import app
from stages.graph import STAGES

ROOT = Path(__file__).resolve().parents[1]
# One level only: a packed artifact under data/ holds a README of its own.
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
             for path in [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/README.md")]}
README = DOCUMENTS["README.md"]
CLI = typer.main.get_command(app).commands
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text):
    """The lines of every sh block; one continued by a backslash is one line."""
    return [line for kind, block in FENCE.findall(text) if kind == "sh"
            for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def code(text):
    """Every inline code span and every line of a sh block."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text)) + blocks(text)


LINES = [(name, line.split(" | ")[-1]) for name, text in DOCUMENTS.items() for line in blocks(text)]
COMMANDS = sorted({(name, line) for name, line in LINES if line.startswith("limbeck ")})
SPANS = [(name, span) for name, text in DOCUMENTS.items() for span in code(text)]


def spans(pattern):
    """(document, match) of each span that `pattern` finds; there are some."""
    found = [(name, match) for name, span in SPANS for match in re.finditer(pattern, span)]
    assert found
    return found


def make_targets():
    """What `make` can be asked for."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE)) | set(STAGES) | {"all", "plan"}


def test_there_are_commands_to_test():
    here = [name for name, _ in COMMANDS]
    assert len(COMMANDS) >= 24
    assert here.count("README.md") >= 5
    assert {"configs/README.md", "data/README.md", "prompts/README.md"} <= set(here)
    assert {"results/README.md", "CONTRIBUTING.md"} <= set(DOCUMENTS)


@pytest.mark.parametrize(("document", "line"), COMMANDS)
def test_every_limbeck_command_parses_and_its_config_loads(document, line):
    name, *words = shlex.split(line)[1:]
    assert name in CLI
    given = CLI[name].make_context(name, list(words)).params
    if "overrides" in given:
        files = [ROOT / path for path in given.get("config") or ["configs/default.yaml"]]
        load(Experiment, files, given["overrides"] or [])
    assert given.get("stage", "prepare").rpartition(".")[2] in STAGES


def test_every_key_set_in_the_text_loads():
    sections = "|".join(Experiment.model_fields)
    for _, match in spans(rf"^(?:{sections})\.[\w.]+=[^…]+$"):
        overrides = re.split(r" (?=\w+\.[\w.]+=)", match[0].replace("'", ""))
        # gsm8k.yaml: only an openai teacher has a batch API.
        load(Experiment, [ROOT / "configs/gsm8k.yaml"], overrides)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_line_of_a_block_is_of_a_kind_that_is_tested(document):
    kinds = (r"(limbeck|make|echo|(\.venv/bin/)?(pip install|transformers serve|ruff|mypy|"
             r"(python -m )?pytest)|(\S+=\S+ )*(python (-m )?)?(benchmarks|\.ci)[/.]\S+)( |$)")
    assert not [line for line in blocks(DOCUMENTS[document]) if not re.match(kinds, line)]


def test_every_limbeck_command_in_the_text_exists():
    for document, match in spans(r"^limbeck ([a-z][a-z-]*)"):
        assert match[1] in CLI, (document, match[0])
    for document, match in spans(r"\$\(limbeck path (\w+)"):
        assert match[1] in STAGES, (document, match[0])


def test_every_option_of_a_command_in_the_text_exists():
    for document, match in spans(r"^limbeck ([a-z]+) (.*)"):
        known = {name for option in CLI[match[1]].params for name in option.opts}
        asked = re.findall(r"(?<!\S)--?[a-z][a-z-]*", match[2].split(" | ")[0])
        assert {*asked} <= known | {"--help"}, (document, match[0])


def test_every_make_target_named_exists():
    for document, match in spans(r"^make ([^\"=]*)"):
        targets = [word for word in match[1].split() if word not in ("PYTHON", "ARGS")]
        assert targets and {*targets} <= make_targets(), (document, match[0])


def test_every_script_named_exists_and_knows_its_options():
    named = r"(?:^|\s)(benchmarks/\w+\.\w+|-m benchmarks\.\w+|\.ci/\w+)([^|;]*)"
    for document, match in spans(named):
        module = re.fullmatch(r"-m benchmarks\.(\w+)", match[1])
        script = ROOT / (f"benchmarks/{module[1]}.py" if module else match[1])
        assert script.is_file(), (document, match[0])
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", match[2]):
            assert f'"{option}"' in script.read_text(encoding="utf-8"), (document, option)


def test_every_recipe_of_a_script_exists():
    recipes = (ROOT / "benchmarks/qwen.sh").read_text(encoding="utf-8")
    for document, match in spans(r"benchmarks/qwen\.sh (\w+)( \w+)?"):
        stage, recipe = match[1], (match[2] or "").strip()
        assert stage == "all" or stage in STAGES, (document, match[0])
        assert not recipe or f"\n{recipe}=(" in recipes, (document, match[0])


def test_every_extra_that_pip_is_asked_for_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for document, match in spans(r"pip install '\.\[(\w+)\]'"):
        assert match[1] in project["optional-dependencies"], (document, match[0])
    # Nothing is published under the name.
    for document, text in DOCUMENTS.items():
        assert "limbeck[" not in text, document


def test_every_file_named_exists():
    folders = "benchmarks|configs|pipeline|prompts|results|stages|tests"
    for document, match in spans(rf"(?<![\w/.])((?:{folders})/[\w./-]*\.[a-z]+)\b"):
        assert (ROOT / match[1]).exists(), (document, match[1])
    for folder in ("configs", "prompts", "results"):
        for name in re.findall(r"^\| `([\w./*-]+\.[a-z]+)` \|", DOCUMENTS[f"{folder}/README.md"],
                               re.MULTILINE):
            assert list((ROOT / folder).glob(name)), (folder, name)


@pytest.mark.parametrize("folder", ["configs", "results", "prompts"])
def test_every_file_of_a_folder_is_named_in_its_readme(folder):
    for file in {*(ROOT / folder).glob("*.*")} - {ROOT / folder / "README.md"}:
        assert f"`{file.name}`" in DOCUMENTS[f"{folder}/README.md"], file


def test_no_table_stands_twice():
    rows = [line for text in DOCUMENTS.values() for line in text.splitlines()
            if line.startswith("|") and len(re.findall(r"\d+\.\d", line)) > 1]
    assert rows and len(rows) == len({*rows})


def test_the_readme_is_short():
    assert len(README.splitlines()) < 200


def test_the_tree_names_only_what_exists():
    tree = README.split("## The tree")[1].split("```")[1]
    for name in re.findall(r"^(\w+)/", tree, re.MULTILINE):
        assert (ROOT / name).is_dir(), name
    for name in re.findall(r"\b(\w+\.py)\b", tree):
        assert list(ROOT.glob(f"*/{name}")), name


def test_the_tree_names_every_folder_of_pipeline_and_every_file_beside_them():
    tree = README.split("## The tree")[1].split("```")[1]
    folders = {path.parent.name for path in (ROOT / "pipeline").glob("*/*.py")}
    assert {*re.findall(r"^  (\w+)/", tree, re.MULTILINE)} == folders
    flat = re.search(r"^  ((?:\w+ )+) ", tree, re.MULTILINE)[1].split()
    assert {*flat} == {path.stem for path in (ROOT / "pipeline").glob("*.py")} - {"__init__"}
