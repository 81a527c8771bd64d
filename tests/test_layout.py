"""The house: each folder of pipeline/ imports only those before it, and a name stands once."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["config", "curate", "problems", "judge", "serving", "cluster", "teacher", "student",
         "train", "sft", "rl", "evaluate", "view", "hub", "export"]
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for top in ("pipeline", "stages") for path in sorted((ROOT / top).rglob("*.py"))}


def imports(path):
    """Modules of this project that a file imports anywhere, in functions and TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in FILES else node.module for name in named)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


IMPORTS = {module: set(imports(path)) & set(FILES) for module, path in FILES.items()}


def floor(module):
    """Place of a module's folder in the order; flat files come before all, stages after."""
    top, *inner = module.split(".")
    return len(ORDER) if top == "stages" else ORDER.index(inner[0]) if inner[:1] and \
        inner[0] in ORDER else -1


def test_a_file_imports_no_later_folder():
    later = [(module, name) for module, names in IMPORTS.items() for name in names
             if floor(name) > floor(module)]
    assert not later


def test_the_order_names_every_folder():
    assert set(ORDER) == {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}


def test_no_files_import_each_other_in_a_circle():
    assert list(TopologicalSorter(IMPORTS).static_order())      # raises CycleError on a circle


def test_no_file_name_stands_twice():
    names = Counter(path.name for path in (ROOT / "pipeline").rglob("*.py"))
    assert [name for name, times in names.items() if times > 1] == ["__init__.py"]


def test_no_folder_is_a_heap():
    for folder in (ROOT / "pipeline").rglob("*/"):
        assert folder.name == "teacher" or len(list(folder.glob("*.py"))) <= 14, folder
