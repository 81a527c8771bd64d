"""The manifests of everything that a model stands on, kept beside its weights.

A checkpoint that is moved, copied or uploaded still says what made it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.shared_artifacts import KNOWN
from pipeline.stage import artifact_of, read_manifest

FILE = "lineage.json"
SECRET = re.compile(r"(?:token|api_?key|secret|password)$", re.I)
KEPT = ("stage", "key", "version", "seed", "config", "inputs", "files", "counts", "seconds",
        "finished", "git_commit", "python", "libraries")


def chain(folder: Path, places: Sequence[Path] = ()) -> dict[str, dict[str, Any]]:
    """{stage: manifest} of an artifact and all that it was made of, the oldest first.

    Artifacts are looked for beside it and in `places`.
    A second artifact of the same stage, of another step, has its folder's name. Raises UserError
    if a manifest is missing: a folder beside it was deleted or moved.
    """
    found: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()

    def visit(folder: Path) -> None:
        manifest = read_manifest(folder / "manifest.json")
        for name, key in manifest.get("inputs", {}).items():
            above = next((path for place in (folder.parent, *places)
                          for base in (place, place / KNOWN)
                          for path in base.glob(f"*-{key}/manifest.json")), None)
            if above is None:
                raise UserError(f"{folder} was made of {artifact_of(name, key)}, which is not "
                                "beside it any more; its lineage ends there")
            if key not in seen:
                visit(above.parent)
        stage = manifest.get("stage", folder.name)
        seen.add(manifest["key"])
        name = folder.name.removesuffix(".partial")       # it is written before the folder is whole
        found[name if stage in found else stage] = portable(manifest)

    visit(folder)
    return found


def portable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without what belongs to this machine: folders in file names, and secrets."""
    kept = {name: manifest[name] for name in KEPT if name in manifest}
    kept["files"] = {Path(name).name: digest for name, digest in kept.get("files", {}).items()}
    return {**kept, "config": without_secrets(kept.get("config", {}))}


def without_secrets(node: Any) -> Any:
    """A config tree whose keys that name a secret have no value."""
    if isinstance(node, Mapping):
        return {key: "(left out)" if SECRET.search(str(key)) and isinstance(value, str)
                else without_secrets(value) for key, value in node.items()}
    return [without_secrets(value) for value in node] if isinstance(node, list) else node


def write(folder: Path, places: Sequence[Path] = ()) -> None:
    """Write the lineage of a finished artifact beside its model, if it has one."""
    if (folder / "model").is_dir():
        with suppress(UserError):       # of an artifact whose makers were cleaned away
            write_file(folder / "model", chain(folder, places))


def write_file(folder: Path, found: Mapping[str, Any]) -> None:
    """Write a lineage into the folder of a checkpoint."""
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The lineage of a checkpoint or an artifact. Raises UserError if the folder has none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give a checkpoint, or the folder that `limbeck "
                        "path STAGE` prints")
    for path in (folder / FILE, folder / "model" / FILE):
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise UserError(f"{path} is damaged; copy it again from the folder in which "
                                "the checkpoint was made") from None
    made = next((place for place in (folder, folder.parent)
                 if (place / "manifest.json").is_file()), None)
    if made is None:
        raise UserError(f"{folder} has no {FILE} and no manifest.json: limbeck did not make it, "
                        "or an older version did and it was moved since")
    return chain(made)


def lines(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One line a stage: its key, what it was made of, when, and what it names."""
    from datetime import UTC, datetime

    for name, manifest in found.items():
        when = datetime.fromtimestamp(manifest.get("finished", 0), UTC).strftime("%Y-%m-%d %H:%M")
        parts = [artifact_of(name, manifest["key"]), when, named(manifest)]
        if manifest.get("git_commit"):
            parts.append(f"commit {manifest['git_commit']}")
        made_of = ", ".join(manifest.get("inputs", {}))
        yield "  ".join(filter(None, parts)) + (f"  from {made_of}" if made_of else "")


def named(manifest: Mapping[str, Any]) -> str:
    """The problems, the teacher or the student that a stage's config names."""
    config = manifest.get("config", {})
    teacher = config.get("teacher")
    if isinstance(teacher, Mapping):
        return str(teacher.get("model") or teacher.get("traces") or teacher.get("type"))
    if manifest.get("stage") == "filter":
        return str(config.get("keep") or "")
    return str(config.get("problems") or config.get("model") or "")
