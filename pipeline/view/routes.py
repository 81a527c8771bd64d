"""What the page may ask for: one function and one line in GET each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from pipeline.curate import reviews
from pipeline.errors import UserError
from pipeline.view import runs
from pipeline.view.queues import QUEUES
from pipeline.view.results import costs, evaluation
from pipeline.view.trace_table import ORDER, Found, TraceTable
from pipeline.view.workspace import Workspace

Query = Any
MOST_ROWS = 500
PAGE_COLUMNS = ("row", "problem_id", "sample", "model", "benchmark", "verdict", "score", "kept",
                "reason", "extracted", "tokens", "pass_rate", "difficulty", "finish_reason",
                "grader", "source", "review", "reviews")


def _number(query: Query, name: str, default: int, most: int = 1 << 40) -> int:
    text = query.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} is no whole number")
    return min(int(text), most)


def state(workspace: Workspace, query: Query) -> dict[str, Any]:
    """What there is: tables, runs, evaluations, troubles, queues."""
    artifacts = workspace.artifacts()
    made = [one for one in artifacts if one.state == "made"]
    current = set(workspace.places.planned) or {one.name for one in artifacts}
    return {"sources": workspace.sources(), "troubles": workspace.troubles(),
            "runs": runs.training_runs(artifacts), "queues": QUEUES,
            "evaluations": [{"name": one.name, "key": one.key, "current": one.name in current}
                            for one in made if one.stage == "evaluate"],
            "ends": [{"name": one.name, "current": one.name in current}
                     for one in _ends(workspace)],
            "reviews_file": str(workspace.reviews_path), "folders":
                [str(root) for root in workspace.places.roots]}


def _ends(workspace: Workspace) -> list[Any]:
    """The artifacts that nothing else was made from: each stands for one whole run."""
    artifacts = workspace.artifacts()
    used = {key for one in artifacts for key in one.inputs.values()}
    return sorted((one for one in artifacts if one.key not in used and one.inputs),
                  key=lambda one: (one.name not in workspace.places.planned, one.state != "made"))


def traces(workspace: Workspace, query: Query) -> dict[str, Any]:
    """A page of traces, or of problems with all their samples."""
    table = workspace.table(query.get("source", ""))
    sort = query.get("sort") or ORDER
    found = table.query(query.get("search", ""), query.get("where", ""),
                        ORDER if query.get("group") else sort, query.get("desc") == "1",
                        reviews.latest(workspace.said()), workspace.places.need)
    offset, limit = _number(query, "offset", 0), _number(query, "limit", 50, MOST_ROWS)
    columns = [name for name in PAGE_COLUMNS if name in found.frame.columns]
    told = {"found": len(found.frame), "searched": found.searched, "total": found.total,
            "columns": [name for name in found.frame.columns if name != "key"],
            "indexed": table.words is not None, "progress": table.progress}
    if query.get("group"):
        return {**told, **_grouped(table, found, sort, query.get("desc") == "1", offset, limit)}
    page = found.frame.select(columns).slice(offset, limit)
    return {**told, "rows": [{**row, "problem": _head(table, row["problem_id"])}
                             for row in page.to_dicts()]}


def _head(table: TraceTable, name: str) -> str:
    return ((table.problems.get(name) or {}).get("problem") or "")[:300]


def _grouped(table: TraceTable, found: Found, sort: str, descending: bool, offset: int,
             limit: int) -> dict[str, Any]:
    """The problems of the rows found, each with its samples."""
    frame = found.frame
    shown = [name for name in ("row", "sample", "model", "verdict", "score", "kept", "tokens",
                               "review") if name in frame.columns]
    numbers = [name for name in ("tokens", "pass_rate", "score") if name in frame.columns]
    groups = frame.group_by("problem_id", maintain_order=True).agg(
        samples=pl.len(), first=pl.col(ORDER).min(), places=pl.col(ORDER),
        **{name: pl.col(name).mean() for name in numbers})
    by = sort if sort in groups.columns else "first"
    groups = groups.sort(by, "first", descending=[descending, False], nulls_last=True)
    page = groups.slice(offset, limit)
    wanted = frame.filter(pl.col("problem_id").is_in(page["problem_id"].implode())).select(
        "problem_id", *shown)
    samples = {name[0]: part.drop("problem_id").to_dicts()
               for name, part in wanted.group_by("problem_id", maintain_order=True)}
    return {"groups": len(groups), "problems": [
        {**row, "places": None, "problem": _head(table, row["problem_id"]),
         "list": samples.get(row["problem_id"], [])} for row in page.to_dicts()]}


def trace(workspace: Workspace, query: Query) -> dict[str, Any]:
    """One trace whole."""
    return workspace.trace(query.get("source", ""), _number(query, "row", 0))


def tokens(workspace: Workspace, query: Query) -> dict[str, Any]:
    """The token row of one trace."""
    return workspace.tokens(query.get("source", ""), _number(query, "row", 0))


def queue(workspace: Workspace, query: Query) -> dict[str, Any]:
    """The groups of rows of a review queue."""
    names = query.get("one"), query.get("other")
    models = (names[0], names[1]) if names[0] and names[1] else None
    groups = workspace.queue(query.get("source", ""), query.get("kind", "random"),
                             _number(query, "n", 20, MOST_ROWS), _number(query, "seed", 0), models)
    return {"groups": groups}


def agreement(workspace: Workspace, query: Query) -> dict[str, Any]:
    """How far people agree, with each other and with the judge; newest verdicts, models."""
    lines = workspace.said()
    newest = [{name: line.get(name) for name in ("id", "at", "reviewer", "verdict", "reasons",
               "note", "problem_id", "sample", "model", "key", "prefer", "pair")}
              for line in reversed(lines[-200:])]
    source = query.get("source", "")
    frame = workspace.table(source).frame if source else None
    models = [] if frame is None or "model" not in frame.columns else \
        frame["model"].drop_nulls().unique(maintain_order=True).head(50).to_list()
    return {**workspace.agreement(source), "lines": newest, "count": len(lines), "models": models}


def curves(workspace: Workspace, query: Query) -> dict[str, Any]:
    """The curves of the runs named, and the config in which they differ."""
    chosen = [workspace.artifact(name) for name in query.getall("run", [])][:8]
    known = workspace.known()
    return {"runs": [runs.curves(one) for one in chosen],
            "differences": runs.differences(chosen, known) if len(chosen) > 1 else []}


def completions(workspace: Workspace, query: Query) -> dict[str, Any]:
    """The completions kept at one step of refinement."""
    step = _number(query, "step", 0) if query.get("step") else None
    return runs.kept_completions(workspace.artifact(query.get("run", "")), step)


def scores(workspace: Workspace, query: Query) -> dict[str, Any]:
    """An evaluation by problem."""
    one = workspace.artifact(query.get("name", ""))
    return {"name": one.name, **evaluation(one.folder, workspace.table(one.name).problems,
                                           query.get("one", ""), query.get("other", ""))}


def spending(workspace: Workspace, query: Query) -> dict[str, Any]:
    """Costs and funnel of one run."""
    return costs(workspace.artifact(query.get("name", "")), workspace.known())


GET: Mapping[str, Callable[[Workspace, Query], dict[str, Any]]] = {
    "state": state, "traces": traces, "trace": trace, "tokens": tokens, "queue": queue,
    "agreement": agreement, "curves": curves, "completions": completions, "scores": scores,
    "costs": spending}
