"""Training runs as they are now: curves, alarms, differences of config, completions kept.

Read anew at every look, so a run is followed while it trains and after it was killed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config.load import flat
from pipeline.errors import UserError
from pipeline.evaluate.page import CURVES
from pipeline.view.catalog import Artifact, lineage

POINTS = 1_500
"""Points of a curve that are sent; of a longer one every so manieth."""
EXTRA = ("gpu", "kl", "clip_ratio/region_mean", "reward_std", "learning_rate")
TEXT_CHARS = 60_000


def training_runs(artifacts: Iterable[Artifact]) -> list[dict[str, Any]]:
    """Every artifact with a training log, the newest first."""
    return [{"name": one.name, "stage": one.stage, "key": one.key, "state": one.state,
             "steps": _last_step(one.folder), "trouble": one.trouble}
            for one in artifacts if logs_of(one.folder)]


def logs_of(folder: Path) -> list[Path]:
    """The logs of a run: its own, or those of its phases while it trains."""
    whole = folder / "log.jsonl"
    return [whole] if whole.is_file() else sorted(folder.glob("phase-*/log.jsonl"))


def read_live(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that another process may be writing to; [] without a file."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:          # a line that a kill cut in two
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _log(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run's logs, steps counted on from phase to phase."""
    rows: list[dict[str, Any]] = []
    for path in logs_of(folder):
        before = max((row.get("step", 0) for row in rows), default=0)
        rows += [{**row, "step": row.get("step", 0) + before} for row in read_live(path)]
    return rows


def _last_step(folder: Path) -> int:
    return max((int(row.get("step", 0)) for row in _log(folder)), default=0)


def curves(artifact: Artifact) -> dict[str, Any]:
    """{"state", "steps", "alarms", "plots": [{key, name, meaning, percent, points}]} of a run."""
    log = _log(artifact.folder)
    known = {key: (name, meaning, share) for key, name, meaning, share
             in CURVES.get(artifact.stage, ())}
    keys = dict.fromkeys((*known, *(key for row in log for key in row if _is_extra(key))))
    plots = [{"key": key, "name": name, "meaning": meaning, "percent": share, "points": points}
             for key in keys if (points := _points(log, key))
             for name, meaning, share in [known.get(key, (key.replace("_", " "), "", False))]]
    return {"name": artifact.name, "state": artifact.state,
            "steps": max((int(row.get("step", 0)) for row in log), default=0),
            "seconds": artifact.manifest.get("seconds"),
            "alarms": read_live(artifact.folder / "alarms.jsonl"), "plots": plots}


def _is_extra(key: str) -> bool:
    return (key.startswith(("rewards/", "gpu")) and not key.endswith("/std")) or key in EXTRA


def _points(log: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    found = [(row["step"], row[key]) for row in log
             if isinstance(row.get(key), int | float) and math.isfinite(row[key])]
    every = max(1, -(-len(found) // POINTS))
    return found[::every] + ([found[-1]] if every > 1 and (len(found) - 1) % every else [])


def differences(chosen: list[Artifact], known: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """The config keys in which runs, with all they were made from, differ: {key, values}.

    A run that does not say what it is made of differs in nothing.
    """
    trees = [_settings(one, known) for one in chosen if one.manifest]
    if len(trees) < len(chosen):
        return []
    keys = sorted({key for tree in trees for key in tree})
    rows = [{"key": key, "values": [tree.get(key) for tree in trees]} for key in keys]
    return [row for row in rows
            if len({json.dumps(value, default=str) for value in row["values"]}) > 1]


def _settings(artifact: Artifact, known: Mapping[str, Artifact]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    chain = lineage(artifact, known)
    several = {one.stage for one in chain if sum(o.stage == one.stage for o in chain) > 1}
    for one in chain:
        stage = one.name if one.stage in several and one is not artifact else one.stage
        out[f"{stage}.seed"] = one.manifest.get("seed")
        out |= flat(one.config, stage)
    return out


def kept_tables(folder: Path) -> dict[int, Path]:
    """{step: file} of the completions that refinement kept, in the order of steps."""
    found = {}
    for path in sorted(folder.glob("**/completions/*.parquet")):
        digits = "".join(filter(str.isdigit, path.stem))
        if digits:
            found[int(digits)] = path
    return dict(sorted(found.items()))


def kept_completions(artifact: Artifact, step: int | None) -> dict[str, Any]:
    """{"steps", "step", "rewards", "rows"}: completions of one step beside each reward term.

    Without `step` the last one. Raises UserError if none were kept.
    """
    tables = kept_tables(artifact.folder)
    if not tables:
        raise UserError("this run kept no completions; set rl.keep_completions to the steps "
                        "between two tables of them")
    step = max(tables) if step is None else step
    if step not in tables:
        raise UserError(f"no completions were kept at step {step}")
    try:
        table = pl.read_parquet(tables[step])
    except (OSError, pl.exceptions.PolarsError):
        raise UserError(f"the completions of step {step} are being written or are damaged; "
                        "look at another step, or again later") from None
    texts = [name for name in ("prompt", "completion") if name in table.columns]
    rewards = [name for name, kind in table.schema.items()
               if kind.is_numeric() and name != "step"]
    rows = [{**{name: _text(row[name]) for name in texts}, **{name: row[name] for name in rewards}}
            for row in table.iter_rows(named=True)]
    return {"steps": list(tables), "step": step, "rewards": rewards, "rows": rows}


def _text(value: Any) -> str:
    """A prompt or completion as text, whichever way TRL holds it."""
    if isinstance(value, list):
        value = "\n\n".join(str(turn.get("content") if isinstance(turn, dict) else turn)
                            for turn in value)
    return str(value or "")[:TEXT_CHARS]
