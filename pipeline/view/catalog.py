"""What there is to look at: the artifacts of one folder or several, whole, half-made or damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.stage import UNDER_WAY, read_manifest

FOLDER = re.compile(r"(?P<stage>.+)-(?P<key>[0-9a-z]{3,64})(?P<partial>\.partial)?")
TABLES = {"judged.parquet": "judged traces", "traces.parquet": "traces",
          "completions.parquet": "evaluation"}
"""Tables of completions that one can read in, by file name."""


@dataclass(frozen=True)
class Artifact:
    """One stage's folder. `state` is made, partial or damaged; `trouble` says why it is damaged."""

    stage: str
    key: str
    folder: Path
    state: str
    manifest: dict[str, Any] = field(default_factory=dict, repr=False)
    trouble: str = ""

    @property
    def name(self) -> str:
        """The folder's name without `.partial`."""
        return self.folder.name.removesuffix(".partial")

    @property
    def inputs(self) -> dict[str, str]:
        """{stage: key} of what it was made from."""
        return self.manifest.get("inputs", {})

    @property
    def config(self) -> dict[str, Any]:
        """Its section of the config."""
        return self.manifest.get("config", {})


def scan(root: Path, planned: Mapping[str, Mapping[str, Any]] | None = None) -> list[Artifact]:
    """The artifacts in `root`, the newest first.

    `planned` holds the ingredients, by folder name, of stages that are not finished. Raises
    UserError if there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} does not exist, so there is nothing to look at; run `limbeck "
                        "generate`, or name a folder of artifacts or a file of traces")
    found = [one for path in root.iterdir() if (one := _artifact(path, planned or {}))]
    return sorted(found, key=lambda one: (_time(one.folder), one.name), reverse=True)


def _time(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:                 # deleted meanwhile
        return 0.0


def _artifact(path: Path, planned: Mapping[str, Mapping[str, Any]]) -> Artifact | None:
    match = FOLDER.fullmatch(path.name)
    if match is None or not path.is_dir():
        return None
    stage, key = match["stage"], match["key"]
    if match["partial"]:
        known = dict(planned.get(path.name.removesuffix(".partial"), {}))
        with suppress(OSError, ValueError):
            known = json.loads((path / UNDER_WAY).read_text(encoding="utf-8"))
        return Artifact(stage, key, path, "partial", known)
    try:
        manifest = read_manifest(path / "manifest.json")
        return Artifact(stage, str(manifest.get("key") or key), path, "made", manifest)
    except UserError as error:
        return Artifact(stage, key, path, "damaged", trouble=str(error))
    except OSError as error:
        return Artifact(stage, key, path, "damaged", trouble=f"{path} is no artifact "
                        f"({error.strerror}: manifest.json); delete that folder")


def by_key(artifacts: Iterable[Artifact]) -> dict[str, Artifact]:
    """The artifacts by key, whole ones before half-made ones."""
    ordered = sorted(artifacts, key=lambda one: one.state == "made")
    return {one.key: one for one in ordered}


def lineage(artifact: Artifact, known: Mapping[str, Artifact]) -> list[Artifact]:
    """All that `artifact` was made from and that is still there, in order, and itself last."""
    found: dict[str, Artifact] = {}
    for key in artifact.inputs.values():
        if (other := known.get(key)) is not None and other.key != artifact.key:
            found |= {one.name: one for one in lineage(other, known)}
    return [*found.values(), artifact]


def table_of(artifact: Artifact) -> Path | None:
    """The table of completions in a whole artifact, if it has one."""
    if artifact.state != "made":
        return None
    return next((path for name in TABLES if (path := artifact.folder / name).is_file()), None)
