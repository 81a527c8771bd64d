"""A stage as pure data: its key, its folder, its manifest.

The key is a digest of the stage's name, version, config section, seed, input keys, the text of the
files it reads and the files of local model folders; runtime knobs are not part of it. Output is
built in `KEY.partial` and renamed when whole, so a folder without `.partial` is always complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from pipeline import shared_artifacts
from pipeline.bucket_leases import open_leases
from pipeline.errors import LockedError, UserError
from pipeline.leases import Leases

Counts = dict[str, Any]
WAIT_SECONDS = 0.5
"""Between two looks at whether another process has ended."""
UNDER_WAY = "under_way.json"
"""What a half-made artifact is to be made of, for who looks at it meanwhile."""
LEASES = ".leases"
"""Folder beside the artifacts by which processes know who makes which."""
LARGE_FILE = 1 << 24
"""Bytes from which a model's file is known by its size and time of change."""


class Settings(Protocol):
    """What a plan reads of an experiment, beside the section of its stage."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Stage:
    """One arrow of the flow. `needs` and `files` are functions of the whole experiment."""

    name: str
    load: Callable[[], Any]
    """Imports the module that has `run`, and `check`, `check_fully` and `summary` if it needs them.
    """
    help: str = ""
    needs: Callable[[Any], tuple[str, ...]] = lambda experiment: ()
    files: Callable[[Any], tuple[Path, ...]] = lambda experiment: ()
    models: Callable[[Any], tuple[str, ...]] = lambda experiment: ()
    """Models it loads; of local folders the files count, of hub ids the name in the config."""
    next: str | None = None
    """The stage that a user runs after this one."""
    model: str | None = None
    """What evaluate calls the model that this stage makes."""
    version: int = 1
    resumable: bool = False
    shows_name: bool = False
    of_the_whole: bool = False
    """Whether it is made once, of every step and every variant of the experiment."""
    reads_all: bool = False
    """Whether all that its needs stand on are its inputs too."""

    def run(self, experiment: Settings, inputs: Mapping[str, Path], out: Path) -> Counts:
        """Make the artifact in `out` from those of `inputs`."""
        return self.load().run(experiment, inputs, out)

    def check(self, experiment: Settings, fully: bool = False) -> None:
        """Raise UserError if the stage could not run with these settings.

        `fully` also asks what takes seconds: libraries that import torch, the hub.
        """
        for name in ("check", *(["check_fully"] if fully else [])):
            if check := getattr(self.load(), name, None):
                check(experiment)

    def summary(self, counts: Counts) -> str:
        """Say in one line what was made."""
        return getattr(self.load(), "summary", str)(counts)


@dataclass(frozen=True)
class Plan:
    """The ingredients of one stage, and the folder of its artifact, made or not."""

    stage: Stage
    key: str
    folder: Path
    ingredients: dict[str, Any] = field(repr=False)
    experiment: Any = field(default=None, repr=False, compare=False)
    """What it is made for, with artifact names in place of STEP.STAGE."""
    inputs: Mapping[str, Plan] = field(default_factory=dict, repr=False, compare=False)

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the finished artifact; None if it is not made."""
        path = self.folder / "manifest.json"
        found = path if path.is_file() else shared_artifacts.known_manifest(self.folder)
        return read_manifest(found) if found else None

    def fetched(self) -> Path:
        """The folder, after its artifact was downloaded if only the object store has it."""
        return shared_artifacts.fetched(self.folder)


ARTIFACT = re.compile(r"[a-z]+-[0-9a-f]{12}")
"""An artifact's name: stage and key. Its folder, below runtime.artifacts, has the same."""


def artifact_of(name: str, key: str) -> str:
    """Return the artifact of an input: of another step `name` is it already, of its own a stage."""
    return name if is_artifact(name) else f"{stage_of(name)}-{key}"


def stage_of(name: str) -> str:
    """Return STAGE of STAGE, STEP.STAGE or either with @LABEL."""
    return name.partition("@")[0].rpartition(".")[2]


def is_artifact(name: str) -> bool:
    """Whether `name` is an artifact's, not a hub id or a folder elsewhere."""
    return ARTIFACT.fullmatch(name) is not None


def model_identity(model: str) -> str:
    """Return what a model is known by wherever it lies: an artifact's name, a digest, a hub id."""
    folder = Path(model)
    if folder.name == "model" and is_artifact(folder.parent.name):
        return folder.parent.name
    return f"folder-{folder_digest(folder)[:12]}" if folder.is_dir() else model


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest at `path`. Raises UserError if it is damaged."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        made = None
    if not isinstance(made, dict) or "counts" not in made:
        raise UserError(f"{path.parent} is damaged (its {path.name} is not whole); delete that "
                        "folder and the same command makes it anew")
    return made


@lru_cache(maxsize=256)
def _digest_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes. Raises UserError if it is missing."""
    if not path.is_file():
        raise UserError(f"file {path} does not exist; check the config key that names it")
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


def folder_digest(folder: Path) -> str:
    """Return a digest of a model folder's files: texts by content, weights by size and time."""
    files = sorted(path for path in folder.iterdir()
                   if path.is_file() and not path.name.startswith("."))
    return hashlib.sha256(json.dumps([_file_state(path) for path in files]).encode()).hexdigest()


def _file_state(path: Path) -> tuple[str, int, str | int]:
    stat = path.stat()
    # Weights take seconds a gigabyte to read, and every command works out the keys.
    small = stat.st_size < LARGE_FILE
    return path.name, stat.st_size, file_digest(path) if small else stat.st_mtime_ns


def make_plan(stage: Stage, experiment: Settings, inputs: Mapping[str, Plan],
              place: Callable[[str], Path]) -> Plan:
    """Work out key and folder of `stage` from its config, its inputs and its files.

    `place` says where an artifact of a name is, or would be made.
    """
    section = getattr(experiment, stage.name, None)
    ingredients = {
        "stage": stage.name, "version": stage.version, "seed": experiment.seed,
        "config": section.model_dump(mode="json") if section is not None else {},
        "inputs": {name: plan.key for name, plan in inputs.items()},
        "files": {str(path): file_digest(path) for path in stage.files(experiment)},
        **({"name": experiment.name} if stage.shows_name else {}),
    }
    if folders := [model for model in stage.models(experiment) if Path(model).is_dir()]:
        ingredients["folders"] = {model: folder_digest(Path(model)) for model in folders}
    text = json.dumps({**ingredients, **{kind: list(ingredients[kind].values())
                                         for kind in ("files", "folders") if kind in ingredients}},
                      sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Plan(stage, key, place(f"{stage.name}-{key}"), ingredients, experiment, inputs)


def execute(plan: Plan, experiment: Settings, inputs: Mapping[str, Plan],
            provenance: Mapping[str, Any], wait: bool = False,
            finish: Callable[[Path], None] = lambda folder: None) -> Counts:
    """Run the stage into `KEY.partial`, write the manifest, rename; returns the manifest.

    A partial folder left by an interrupted run is used again if the stage can resume; `finish` is
    called with it once its manifest is there. Raises LockedError if another process, here or on
    another node, makes the same, unless it shall `wait`, or if that took this one for dead.
    """
    partial = plan.folder.with_name(plan.folder.name + ".partial")
    plan.folder.parent.mkdir(parents=True, exist_ok=True)
    check_rename(plan.folder.parent)
    with leases_in(plan.folder.parent) as leases:
        _take(leases, plan, wait)
        shared_artifacts.known_manifest(plan.folder, anew=True)
        if (made := plan.manifest) is not None:     # another process has made it meanwhile
            return made
        if partial.exists() and not plan.stage.resumable:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        under_way = partial / UNDER_WAY
        under_way.write_text(json.dumps({**plan.ingredients, "key": plan.key}), encoding="utf-8")
        began = time.time()
        counts = plan.stage.run(experiment, {n: p.fetched() for n, p in inputs.items()}, partial)
        manifest = {**provenance, **plan.ingredients, "key": plan.key, "counts": counts,
                    "seconds": round(time.time() - began, 3), "finished": int(time.time())}
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (partial / "manifest.json").write_text(text, encoding="utf-8")
        under_way.unlink(missing_ok=True)
        finish(partial)
        leases.renew()
        leases.check_held(plan.folder)
        partial.replace(plan.folder)
        shared_artifacts.send(plan.folder, leases.check_held)
        return manifest


def share(plan: Plan) -> None:
    """Upload the artifact if it is finished here and an earlier upload was broken off."""
    if (plan.folder / "manifest.json").is_file() and not shared_artifacts.is_sent(plan.folder):
        with leases_in(plan.folder.parent) as leases:
            if leases.take([plan.folder.name]):
                shared_artifacts.send(plan.folder, leases.check_held)


def leases_in(artifacts: Path) -> Leases:
    """Who makes what in the folder `artifacts`, or the store that it is a copy of."""
    return open_leases(artifacts / LEASES)


@lru_cache(maxsize=16)
def check_rename(folder: Path) -> None:
    """Raise UserError if the file system of `folder` cannot rename a folder."""
    # Artifacts are made beside their place and renamed, so that each is whole or not there.
    probe, renamed = (folder / f".{part}-{secrets.token_hex(4)}" for part in ("probe", "renamed"))
    probe.mkdir()
    try:
        (probe / "file").touch()
        probe.replace(renamed)
    except OSError as error:
        raise UserError(f"the file system of {folder} renames no folder ({error.strerror}), so "
                        "what is made there could not appear whole; set runtime.artifacts to a "
                        "folder on another one, and copy finished artifacts there") from None
    finally:
        for left in (probe, renamed):
            shutil.rmtree(left, ignore_errors=True)


def _take(leases: Leases, plan: Plan, wait: bool) -> None:
    """Take the lease of the artifact, or say who has it: at once, or while it waits for that."""
    said = False
    while not leases.take([plan.folder.name]):
        who = _maker(leases, plan)
        if not wait:
            raise LockedError(f"{who}; --wait waits for it")
        if not said:
            print(f"{plan.stage.name}: {who}; waiting for it", file=sys.stderr)
        said = True
        time.sleep(WAIT_SECONDS)
    # Opening a folder asks a network file system anew for what it said was not there.
    with os.scandir(plan.folder.parent):
        return


def _maker(leases: Leases, plan: Plan) -> str:
    """Say who makes the artifact, since when, and how to break that off."""
    lease = leases.held.get(plan.folder.name)
    if lease is None:
        return f"another process has just made or left {plan.folder}"
    host, _, process, _ = lease.by.split(".")
    under_way = plan.folder.with_name(plan.folder.name + ".partial") / UNDER_WAY
    began = ""
    with suppress(OSError):         # it has just begun, or ended
        began = time.strftime(" since %Y-%m-%d %H:%M", time.localtime(under_way.stat().st_mtime))
    return (f"process {process} on {host} makes {plan.folder}{began}; end it, or if it is dead "
            f"and its node with it, delete {leases.heartbeat.where(lease.by)}")
