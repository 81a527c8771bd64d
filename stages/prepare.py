"""prepare: problems with checked gold answers, and a held-out set that shares none of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.problems import Source, is_file, load_rows
from pipeline.progress import progress
from pipeline.stage import Counts, Stage


class PrepareConfig(Source):
    """Which problems are taught, how many are held out, and what a bad gold answer does."""

    held_out: int = Field(default=600, ge=0)
    """Problems kept out of training, for evaluation."""
    bad_gold: Literal["stop", "drop"] = "stop"
    """What to do with a gold answer that fails its own check."""


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write problems.parquet (train) and heldout.parquet."""
    from pipeline import records

    config = experiment.prepare
    rows = _distinct(load_rows(config, experiment.seed))
    good = _check_golds(rows, config.bad_gold)
    if len(good) <= config.held_out:
        raise UserError(f"{config.problems} has {len(good)} usable problems and "
                        f"prepare.held_out={config.held_out} asks for as many; lower it")
    tables = {"heldout": good[:config.held_out], "problems": good[config.held_out:]}
    for name, table in tables.items():
        frame = records.table_of(records.Problem, [{**row, "split": name} for row in table])
        records.write(records.Problem, frame, out / f"{name}.parquet")
    _refuse_overlap(tables)
    return {"problems": len(tables["problems"]), "held_out": len(tables["heldout"]),
            "duplicates": len(rows) - len({row["problem_id"] for row in rows}),
            "bad_gold": len(rows) - len(good)}


def normalise(text: str) -> str:
    """Text as compared for overlap: case, spacing and punctuation do not count."""
    return re.sub(r"\W+", " ", text.casefold()).strip()


def _distinct(rows: list[dict]) -> list[dict]:
    """The first of each set of rows that ask the same; ids must be unique."""
    seen: dict[str, dict] = {}
    for row in rows:
        seen.setdefault(normalise(row["problem"]), row)
    ids = [row["problem_id"] for row in seen.values()]
    if len(set(ids)) != len(ids):
        double = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"two different problems have the id {double!r}; make ids unique")
    return list(seen.values())


def _check_golds(rows: list[dict], policy: str) -> list[dict]:
    from pipeline.verify import Problem, check_gold

    good = []
    with progress("checking gold answers", len(rows)) as advance:
        for row in rows:
            judgement = check_gold(Problem.from_row(row))
            advance(1)
            if judgement.score == 1.0:
                good.append(row)
            elif policy == "stop":
                raise UserError(f"the gold answer {row['answer']!r} of problem "
                                f"{row['problem_id']!r} fails its own check "
                                f"({judgement.verdict}); mend it, or set prepare.bad_gold=drop")
    return good


def _refuse_overlap(tables: Mapping[str, list[dict]]) -> None:
    train = {normalise(row["problem"]) for row in tables["problems"]}
    shared = [row["problem_id"] for row in tables["heldout"] if normalise(row["problem"]) in train]
    if shared:
        raise UserError(f"{len(shared)} held-out problems are in the training set, "
                        f"first {shared[0]!r}")


STAGE = Stage(
    name="prepare", run=run,
    files=lambda e: (Path(e.prepare.problems),) if is_file(e.prepare.problems) else (),
    summary=lambda c: f"{c['problems']:,} problems and {c['held_out']:,} held out")
