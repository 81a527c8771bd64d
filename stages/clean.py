"""`limbeck clean`: what of the artifacts nothing reads any more, and its size."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.stage import leases_in


def clean(artifacts: Path, partial: bool, delete: bool) -> None:
    """Print, and with `delete` remove, checkpoints of finished stages, `partial` folders too."""
    total = 0
    for folder in [*checkpoints(artifacts), *(interrupted(artifacts) if partial else ())]:
        size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
        total += size
        print(f"{size / 1e6:>10,.1f} MB  {folder}")
        if delete:
            shutil.rmtree(folder)
    said = "deleted" if delete else "may go; --delete deletes it"
    print(f"{total / 1e6:>10,.1f} MB  {said}")


def checkpoints(artifacts: Path) -> Iterator[Path]:
    """Yield the checkpoint folders of finished stages, which have their model beside them."""
    for manifest in sorted(artifacts.glob("*/manifest.json")):
        stage = manifest.parent
        if not stage.name.endswith(".partial") and (stage / "model").is_dir():
            yield from sorted(folder for pattern in ("", "phase-*/")
                              for folder in stage.glob(f"{pattern}checkpoints/checkpoint-*"))


def interrupted(artifacts: Path) -> Iterator[Path]:
    """Yield the folders of interrupted stages that no process is making now."""
    folders = sorted(artifacts.glob("*.partial"))
    if not folders:
        return
    with leases_in(artifacts) as leases:
        for folder in folders:
            if leases.take([folder.stem]):
                yield folder
