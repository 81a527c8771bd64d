"""What a model was made from: the keys of every stage before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.stage import read_manifest


def lineage(folder: Path) -> dict[str, Any]:
    """Return stage → key of the artifact in `folder` and of all that it stands on."""
    manifest = read_manifest(folder / "manifest.json")
    stages = {manifest["stage"]: manifest["key"], **manifest["inputs"]}
    for name, key in manifest["inputs"].items():
        before = folder.with_name(f"{name}-{key}")
        if (before / "manifest.json").is_file():
            stages = {**lineage(before)["stages"], **stages}
    return {"git_commit": manifest.get("git_commit"), "seed": manifest.get("seed"),
            "stages": stages}
