"""Runs plans and prints them: what stands behind the commands."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config.experiment import Experiment
from pipeline.config.load import origin_of, references, renamed
from pipeline.errors import LackingError, LockedError, UserError
from pipeline.hub import lineage
from pipeline.objects import check_reached
from pipeline.prompts import ROOT
from pipeline.serving.disk import DiskFullGuard
from pipeline.shared_artifacts import fetched
from pipeline.stage import (
    WAIT_SECONDS,
    Plan,
    execute,
    is_artifact,
    read_manifest,
    share,
    stage_of,
)
from pipeline.student.tiny import resolve
from stages.graph import MODELS, STAGES, plans

LIBRARIES = ("torch", "transformers", "trl", "vllm", "datasets", "polars", "math-verify", "openai")


def plan_of(experiment: Experiment, name: str) -> Plan:
    """Return the plan of `name`: STAGE, STEP.STAGE or either with @LABEL of a variant.

    Raises UserError if there is no such stage.
    """
    target = name.partition("@")[0]
    if target in experiment.all_steps():
        raise UserError(f"{target} is a step; name one of its stages, as {target}."
                        f"{experiment.all_steps()[target].goal}")
    if target not in STAGES and "." not in target:
        raise UserError(f"there is no stage {target!r}; the stages are {', '.join(STAGES)}")
    made = plans(experiment, *stage_targets(experiment, target, "one"))
    if name in STAGES and name not in made:
        name = stage_targets(experiment, name, "one")[0]
    if name not in made:
        raise UserError(f"there is no {name}; there are "
                        f"{', '.join(one for one in made if one.partition('@')[0] == target)}")
    return made[name]


def step_plan(experiment: Experiment, stage: str, step: str | None) -> Plan:
    """Return the plan of `stage` in `step`, if any is named."""
    return plan_of(experiment, f"{step}.{stage}" if step else stage)


def stage_targets(experiment: Experiment, name: str, step: str | None = None) -> list[str]:
    """Return what to plan for stage `name`: of `step`, else of every step that needs it.

    Raises UserError if it is of many steps and one is wanted (`step` is "one").
    """
    if step not in (None, "one"):
        return [f"{step}.{name}"]
    if "." in name or not experiment.steps or STAGES[name].of_the_whole:
        return [name]
    found = [one for one in plans(experiment, *goals(experiment))
             if stage_of(one) == name]
    several = list(dict.fromkeys(one.partition("@")[0] for one in found))
    if not several:
        raise UserError(f"no step of this config needs {name}")
    if step == "one" and len(several) > 1 and name not in several:
        raise UserError(f"several steps have a stage {name}; name one of {', '.join(several)}")
    return several if step is None else [name] if name in several else several


def goals(experiment: Experiment) -> list[str]:
    """Return what the whole experiment is made for: its report, and the goal of every step."""
    return ["report", *(f"{name}.{step.goal}" for name, step in experiment.all_steps().items())]


def make(experiment: Experiment, target: str | Sequence[str],
         given: Sequence[str] | None = None, wait: bool = False) -> None:
    """Run the stage `target`, or several, and every stage they need that is not made yet.

    `given` are the arguments that led to `experiment`: the next command needs them too. With `wait`
    a stage that another process makes, and a trace store that one writes to, are waited for.
    """
    targets = [target] if isinstance(target, str) else list(target)
    chain = plans(experiment, *targets)
    todo = _todo(chain)
    _check(experiment, [chain[name] for name in todo.values()])
    for plan in chain.values():
        share(plan)
    for name in todo.values():
        plan = chain[name]
        with DiskFullGuard(Path(f"{plan.folder}.partial")):
            manifest = _executed(plan, wait)
        _close(name, plan, manifest, given if name.partition("@")[0] in targets else None)
    for name, plan in chain.items():
        if name.partition("@")[0] in targets and plan.key not in todo:
            _close(name, plan, plan.manifest or {}, given, cached=True)


def check_targets(experiment: Experiment, targets: Sequence[str]) -> None:
    """Raise UserError if `make` would refuse `targets` before any work."""
    chain = plans(experiment, *targets)
    _check(experiment, [chain[name] for name in _todo(chain).values()])


def _todo(chain: Mapping[str, Plan]) -> dict[str, str]:
    """{key: name} of what is not made; equal keys are one artifact."""
    todo: dict[str, str] = {}
    for name, plan in chain.items():
        if plan.manifest is None:
            todo.setdefault(plan.key, name)
    return todo


def _executed(plan: Plan, wait: bool) -> dict[str, Any]:
    """The manifest of the stage after it ran, once nothing else writes where it would."""
    experiment, said = _located(plan.experiment, fetched), False
    provenance = {**_provenance(), "experiment": experiment.name}
    while True:
        try:
            return execute(plan, experiment, plan.inputs, provenance, wait,
                           partial(lineage.write, places=experiment.runtime.folders()))
        except LockedError as error:
            if not wait:
                raise
            if not said:
                print(f"{plan.stage.name}: {error}: waiting for it", file=sys.stderr)
            said = True
            time.sleep(WAIT_SECONDS)


def _check(experiment: Experiment, todo: Sequence[Plan]) -> None:
    """Refuse, before any work, what a stage of `todo` or one after it would refuse.

    Of stages that another command runs, perhaps on another machine, what this one lacks is no
    matter, and what takes seconds to know is asked only before a teacher is paid.
    """
    if not todo:
        return
    check_reached(experiment.runtime.places())
    keys = {plan.key for plan in todo}
    later = {plan.key: plan for plan in plans(experiment, *goals(experiment)).values()
             if plan.key not in keys and plan.manifest is None}
    pays = any(plan.stage.name == "generate"
               and plan.experiment.generate.teacher.type not in ("solver", "file") for plan in todo)
    for fully in (False, True):
        for plan in todo:
            _check_one(plan, fully)
        for plan in later.values() if pays or not fully else ():
            with suppress(LackingError):
                _check_one(plan, fully)


def _check_one(plan: Plan, fully: bool = False) -> None:
    settings = _located(plan.experiment)
    # A model of another step that is not made yet cannot be looked at.
    plan.stage.check(settings, fully and not any(map(is_artifact, references(settings))))


def _located(experiment: Experiment, place: Callable[[Path], Path] = Path) -> Experiment:
    """`experiment` with folders of models and traces in place of artifact names."""
    def folder(name: str) -> str:
        if not is_artifact(name) or not (made := place(experiment.runtime.artifact(name))).is_dir():
            return name
        return resolve(made) if name.partition("-")[0] in MODELS else str(made)

    return renamed(experiment, folder)


def _close(name: str, plan: Plan, manifest: Mapping[str, Any], given: Sequence[str] | None,
           cached: bool = False) -> None:
    """Print the closing line of a stage: what, where, how long, and what to run next."""
    following, counts = plan.stage.next, manifest["counts"]
    took = "already made" if cached else f"{manifest['seconds']:.1f} s"
    follow = ""
    if given is not None and following:
        again, at = [*given], given.index("--step") if "--step" in given else None
        if at is not None and STAGES[following].of_the_whole:
            del again[at:at + 2]
        follow = f"; next: {shlex.join(['limbeck', following, *again])}"
    shown = _shown(plan.folder / counts.get("page", ""))
    print(f"{name}: {plan.stage.summary(counts)} → {shown} ({took}){follow}", file=sys.stderr)


def _shown(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def _provenance() -> dict[str, Any]:
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = ""
    if shutil.which("git") and (ROOT / ".git").exists():
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True,
                                capture_output=True, check=False).stdout.strip()
    return {"git_commit": commit or None, "libraries": libraries,
            "python": sys.version.split()[0],
            "command": shlex.join(["limbeck", *sys.argv[1:]])}


def show_plan(experiment: Experiment, as_json: bool = False) -> bool:
    """Print every stage, cached or to run, and why; returns whether any would run."""
    rows = plan_rows(experiment)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        wide = max(len(row["stage"]) for row in rows)
        for row in rows:        # whole, whatever the terminal's width: names differ at their ends
            print(f"{row['stage']:<{wide}}  {row['state']:<9}  {_shown(Path(row['folder']))}  "
                  f"{row['why']}".rstrip())
    return any(row["state"] != "cached" for row in rows)


def plan_rows(experiment: Experiment) -> list[dict[str, str]]:
    """The stage, key, state, reason and folder of every stage up to the report."""
    check_reached(experiment.runtime.places())
    chain = plans(experiment, *goals(experiment))
    for name, plan in chain.items():
        if plan.manifest is None:
            try:
                _check_one(plan)
            except LackingError as error:
                print(f"plan: {name} cannot run here: {error}", file=sys.stderr)
    return [{"stage": name, "key": plan.key, "state": "cached" if plan.manifest else "would run",
             "why": "" if plan.manifest else _why(plan, chain),
             "folder": str(plan.folder.resolve())} for name, plan in chain.items()]


def _why(plan: Plan, chain: Mapping[str, Plan]) -> str:
    """What differs from the newest artifact of the same stage."""
    if plan.folder.with_name(plan.folder.name + ".partial").exists():
        return "interrupted; goes on" if plan.stage.resumable else "interrupted"
    manifests = plan.folder.parent.glob(f"{plan.stage.name}-*/manifest.json")
    old = _newest(manifests)
    if old is None:
        return "never made"
    new = plan.ingredients
    remade = [f"{name} changed" for name in new["inputs"]
              if old["inputs"].get(name) != new["inputs"][name]]
    keys = [f"{plan.stage.name}.{key}" for key in changed_keys(old["config"], new["config"])]
    files = [path for kind in ("files", "folders") for path, digest in new.get(kind, {}).items()
             if digest not in old.get(kind, {}).values()]
    rest = ["code version"] if old["version"] != new["version"] else []
    whole = [key for key in ("seed", "name") if old.get(key) != new.get(key)]
    return ", ".join(remade + keys + files + rest + whole) or "its artifact was deleted"


def _newest(manifests: Iterable[Path]) -> dict[str, Any] | None:
    """The newest undamaged manifest, if any."""
    for path in sorted(manifests, key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(UserError):
            return read_manifest(path)
    return None


def changed_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two config trees."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [prefix]
    return [key for name in sorted(set(old) | set(new))
            for key in changed_keys(old.get(name), new.get(name),
                                    f"{prefix}.{name}" if prefix else name)]


def judged_rows(plan: Plan) -> list[dict[str, Any]]:
    """The filter stage's traces as rows of `limbeck judge`: completion, gold, kind, id."""
    if plan.manifest is None:
        raise UserError("filter is not made yet for this config; run `limbeck filter`")
    judged = pl.read_parquet(plan.fetched() / "judged.parquet")
    problems = pl.read_parquet(plan.inputs["prepare"].fetched() / "problems.parquet")
    gold = problems.select("problem_id", "kind", "meta", gold="answer")
    return [{**row, "id": f"{row['problem_id']}#{row['sample']}",
             "completion": f"<think>{row['thinking'] or ''}</think>{row['answer'] or ''}"}
            for row in judged.join(gold, on="problem_id").iter_rows(named=True)]


def print_config(experiment: Experiment, layers: Sequence[tuple[str, dict]]) -> None:
    """Each key with its value and its origin, one a line."""
    def walk(node: Any, location: tuple[str, ...]) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, (*location, key))
        else:
            origin = origin_of(location, layers)
            print(f"{'.'.join(location)}={json.dumps(node, ensure_ascii=False)}  # {origin}")

    tree = experiment.model_dump(mode="json", context="everything")
    for section in ("sft", "rl"):       # no part of the section's key, but part of what it does
        defaults = getattr(experiment, section).trainer_defaults()
        tree[section]["trainer"] = {**defaults, **tree[section]["trainer"]}
    walk(tree, ())
