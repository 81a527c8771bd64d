"""`limbeck show`: a stage's manifest and first rows, or whole those that an expression picks."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.pretty import Pretty

from pipeline.config.experiment import Experiment
from pipeline.curate.features import FEATURES
from pipeline.curate.reviews import (
    REVIEW_COLUMNS,
    Line,
    read_reviews,
    review_columns,
    reviews_path,
)
from pipeline.curate.select import difficulty
from pipeline.errors import UserError
from pipeline.expression import check_expression, compile_expression, names_in
from pipeline.stage import Plan
from stages.make import plan_of

FIRST = ("problem", "gold", "thinking", "answer")
"""What is read first of a row; the other columns follow in their order."""


def show_stage(experiment: Experiment, name: str, rows: int, where: str | None = None,
               as_json: bool = False) -> None:
    """Print manifest, counts and the first rows of each table of a made stage, long texts cut.

    With `where` instead the first rows for which it holds, whole; as JSON all texts are whole.
    """
    if as_json and where is not None:
        raise UserError("--json prints the first rows and --where picks others; give one of them")
    plan = plan_of(experiment, name)
    manifest = plan.manifest
    if manifest is None:
        step, _, stage = name.partition("@")[0].rpartition(".")
        raise UserError(f"{name} is not made yet for this config; run `limbeck {stage}"
                        f"{' --step ' + step if step else ''}`")
    plan.fetched()
    console = Console()
    try:
        if as_json:
            tables = {path.name: pl.read_parquet(path, n_rows=rows).to_dicts()
                      for path in sorted(plan.folder.glob("*.parquet"))}
            print(json.dumps({"stage": name, "folder": str(plan.folder.resolve()),
                              "manifest": manifest, "rows": tables}, indent=1, default=str))
            return
        if where is not None:
            _show_matching(console, plan, rows, where)
            return
        console.rule(f"{name} {plan.key}")
        console.print(Pretty({k: v for k, v in manifest.items() if k != "config"}, max_depth=4))
        _show_first(console, plan.folder, rows)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"a table in {plan.folder} cannot be read ({str(error).splitlines()[0]}); "
                        "delete that folder to remake it") from None


def _show_first(console: Console, folder: Path, rows: int) -> None:
    for path in sorted(folder.glob("*.parquet")):
        console.rule(path.name)
        for row in pl.read_parquet(path, n_rows=rows).iter_rows(named=True):
            _print(console, {column: _short(value) for column, value in row.items()})


def _show_matching(console: Console, plan: Plan, rows: int, where: str) -> None:
    """Show matches in every table with the columns of `where`. Raises UserError if none has."""
    prepared, config = (plan.inputs.get("prepare") or plan).fetched(), plan.experiment.filter
    languages = [config.language, *config.languages]
    tables = {path.name: widened(path, prepared, names_in(where), *languages)
              for path in sorted(plan.folder.glob("*.parquet"))}
    if not tables:
        raise UserError(f"{plan.stage.name} made no table; --where is for stages that did, as "
                        "generate and filter")
    if names_in(where) & set(REVIEW_COLUMNS):
        lines = read_reviews(reviews_path(plan.experiment.runtime.traces))
        need = config.reviews.need
        tables = {name: _reviewed(table, lines, need) for name, table in tables.items()}
    having = [name for name, table in tables.items()
              if names_in(where) <= set(table.collect_schema())]
    for name in having or list(tables)[:1]:
        found = matching(tables[name], where, rows)
        console.rule(f"{name}, {len(found)} shown")
        for row in found.iter_rows(named=True):
            first = [column for column in FIRST if column in row]
            _print(console, {column: row[column] for column in dict.fromkeys((*first, *row))})
            console.rule()


def widened(path: Path, prepared: Path, names: set[str], *languages: str) -> pl.LazyFrame:
    """The table `path` with its problems, and those of filter.keep's columns that `names` has."""
    rows = pl.scan_parquet(path)
    known = rows.collect_schema()
    if known.get("problem_id") == pl.String and "problem" not in known and prepared.is_dir():
        problems = pl.scan_parquet([prepared / "problems.parquet", prepared / "heldout.parquet"])
        rows = rows.drop("source", strict=False).join(
            problems.select("problem_id", "problem", "kind", "source", gold="answer"),
                         on="problem_id", how="left", maintain_order="left")
    more: dict[str, pl.Expr] = {}
    if {"completion_tokens", "thinking", "answer"} <= set(known):
        more = {"tokens": pl.col("completion_tokens")}
        more |= {name: FEATURES[name].expression(*languages) for name in names & set(FEATURES)}
    if "pass_rate" in known:
        more["difficulty"] = difficulty()
    return rows.with_columns(**{name: more[name] for name in sorted(names & set(more))})


def _reviewed(table: pl.LazyFrame, lines: list[Line], need: int) -> pl.LazyFrame:
    """`table` with what people said of its traces, if it is of traces whose problems are known."""
    schema = table.collect_schema()
    if not {"problem_id", "problem", "thinking", "answer"} <= set(schema):
        return table

    def add(rows: pl.DataFrame) -> pl.DataFrame:
        texts = dict(rows.select("problem_id", "problem").rows())
        return review_columns(rows, texts, lines, need)

    return table.map_batches(add, streamable=True, schema={**schema, **REVIEW_COLUMNS})


def matching(table: pl.LazyFrame, where: str, rows: int) -> pl.DataFrame:
    """The first `rows` of `table` for which `where` holds, read in little memory."""
    schema = table.collect_schema()
    check_expression(where, schema)
    return table.filter(compile_expression(where, schema)).head(rows).collect(engine="streaming")


def harmless(text: str) -> str:
    """`text` with characters that a terminal would obey, or not show, spelt out: "\\x1b"."""
    return "".join(one if one in "\n\t" or unicodedata.category(one)[0] != "C"
                   else one.encode("unicode_escape").decode() for one in text)


def _print(console: Console, row: dict[str, Any]) -> None:
    """A column a line; of several lines a text of its own below its name."""
    for column, value in row.items():
        text = harmless(str(value))
        console.print(f"[bold]{column}[/bold]", end="\n" if "\n" in text else " ")
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print()


def _short(value: Any) -> str:
    """A cell as text; of a long text head and tail, of a long list its head and its length."""
    if isinstance(value, list) and len(value) > 24:
        return f"{', '.join(map(str, value[:20]))}, … ({len(value):,})"
    text = str(value)
    return text if len(text) <= 600 else f"{text[:400]} … {text[-150:]}"
