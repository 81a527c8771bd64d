"""`limbeck runs`: which artifacts there are, of what experiment, by what settings they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config.load import flat
from pipeline.errors import UserError
from pipeline.shared_artifacts import known_manifests
from pipeline.stage import artifact_of, read_manifest
from stages.graph import STAGES

Flat = dict[str, Any]


def show_runs(roots: Sequence[Path], current: set[str], as_json: bool = False) -> None:
    """Print every artifact in the folders `roots`; `current` are the names of this config's."""
    rows = [row for stage in STAGES for row in _of_stage(roots, stage)]
    for row in rows:
        row["current"] = Path(row["folder"]).name in current
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if not rows:
        print(f"nothing is made yet in {', '.join(map(str, roots))}")
        return
    wide = max(len(Path(row["folder"]).name) for row in rows)
    for row in rows:
        mark, name = "*" if row["current"] else " ", Path(row["folder"]).name
        print(f"{mark} {name:<{wide}}  {row['made']}  {row['bytes'] / 1e6:>9,.1f} MB  "
              f"{row['experiment'] or ''}  {_differs(row)}".rstrip())
    print("* belongs to the config given; settings are shown where artifacts of a stage differ")


def _of_stage(roots: Sequence[Path], stage: str) -> list[dict[str, Any]]:
    """A row for each artifact of `stage`, newest first."""
    found = sorted(_manifests(roots, stage), key=lambda pair: -pair[1]["finished"])
    settings = _varying([flat(made["config"], stage) | {"seed": made.get("seed")}
                         for _, made in found])
    inputs = _varying([dict(made["inputs"]) for _, made in found])
    return [{"stage": stage, "key": made["key"], "folder": str(folder.resolve()),
             "experiment": made.get("experiment") or made.get("name"),
             "made": datetime.fromtimestamp(made["finished"]).strftime("%Y-%m-%d %H:%M"),
             "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
             "settings": differing,
             "inputs": {name: artifact_of(name, key) for name, key in on.items()}}
            for (folder, made), differing, on in zip(found, settings, inputs, strict=True)]


def _manifests(roots: Sequence[Path], stage: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for root in roots:
        for path in {*root.glob(f"{stage}-*/manifest.json"), *known_manifests(root, stage)}:
            with suppress(UserError):       # a damaged one is named by the command that needs it
                if not path.parent.name.endswith(".partial"):
                    yield path.parent, read_manifest(path)


def _varying(rows: Sequence[Flat]) -> list[Flat]:
    """Of each row the keys whose values are not equal in all rows."""
    keys = sorted({key for row in rows for key in row})
    varying = [key for key in keys
               if len({json.dumps(row.get(key), sort_keys=True) for row in rows}) > 1]
    return [{key: row[key] for key in varying if key in row} for row in rows]


def _differs(row: Mapping[str, Any]) -> str:
    given = [f"{key}={value if isinstance(value, str) else json.dumps(value)}"
             for key, value in row["settings"].items()]
    return ", ".join([*given, *(f"on {name}" for name in row["inputs"].values())])
