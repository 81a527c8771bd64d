"""Artifacts in an object store: made here, uploaded with the manifest last, fetched where needed.

One without its manifest there is not made: whoever wants it makes or uploads it again. Checkpoints
from which training goes on stay on the machine that trains.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from pipeline.objects import Bucket, bucket_of

MANIFEST = "manifest.json"
KNOWN = ".bucket"
"""Folder beside the local copies with the manifests, NAME/manifest.json, of what the store holds.
"""

GROUP = 16
"""Files that are uploaded between two looks at whether another process took over."""


def known_manifest(folder: Path, anew: bool = False) -> Path | None:
    """The manifest of the artifact that `folder` is to be a copy of, if the store holds it whole.

    The store is listed once, and `anew` again.
    """
    if (bucket := bucket_of(folder.parent)) is None:
        return None
    if anew:
        _listed.cache_clear()
    path = folder.parent / KNOWN / folder.name / MANIFEST
    if folder.name not in _listed(bucket):
        path.unlink(missing_ok=True)
        return None
    if not path.is_file():
        found = bucket.read([f"{folder.name}/{MANIFEST}"])
        for data in found.values():
            _note(path, data)
        return path if found else None
    return path


def known_manifests(root: Path, stage: str) -> list[Path]:
    """Manifests of a stage's artifacts that are in the store that `root` is a copy of, not here."""
    bucket = bucket_of(root)
    names = [name for name in (_listed(bucket) if bucket else ()) if name.startswith(f"{stage}-")]
    return [path for name in sorted(names) if not (root / name / MANIFEST).is_file()
            and (path := known_manifest(root / name)) is not None]


def is_made(folder: Path) -> bool:
    """Whether the artifact is whole, here or in the store that `folder` is a copy of."""
    return (folder / MANIFEST).is_file() or known_manifest(folder) is not None


def is_sent(folder: Path) -> bool:
    """Whether others can find the artifact in `folder`."""
    return bucket_of(folder.parent) is None or known_manifest(folder) is not None


def fetched(folder: Path) -> Path:
    """Return `folder` after its artifact was downloaded, if it is in the store and not here."""
    if (folder / MANIFEST).is_file() or known_manifest(folder) is None:
        return folder
    from filelock import FileLock

    bucket, half = bucket_of(folder), folder.parent / KNOWN / folder.name / "half"
    assert bucket is not None
    with FileLock(half.with_name("lock")):       # once for all processes of this machine
        if not (folder / MANIFEST).is_file():
            shutil.rmtree(half, ignore_errors=True)
            bucket.fetch([name for name, one in bucket.names(deep=True).items()
                          if one["type"] == "file"], half)
            half.replace(folder)
    return folder


def send(folder: Path, check_held: Callable[[object], None]) -> None:
    """Upload the finished artifact in `folder`, if that is a local copy.

    Raises LockedError, by `check_held`, if the process was taken for dead meanwhile.
    """
    if (bucket := bucket_of(folder)) is None:
        return
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    bucket.delete([name for name in bucket.names(deep=True) if name not in files])
    names = sorted(files.keys() - {MANIFEST})
    for part in (*(names[start:start + GROUP] for start in range(0, len(names), GROUP)),
                 [MANIFEST]):
        check_held(bucket.url)
        bucket.send({name: files[name] for name in part})
    _note(folder.parent / KNOWN / folder.name / MANIFEST, (folder / MANIFEST).read_bytes())
    _listed.cache_clear()


def _files(folder: Path) -> list[Path]:
    found = []
    for top, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith("checkpoint-")]
        found += [Path(top) / name for name in names]
    return found


@lru_cache(maxsize=8)
def _listed(bucket: Bucket) -> frozenset[str]:
    return frozenset(bucket.names())


def _note(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}")
    half.write_bytes(data)
    half.replace(path)
