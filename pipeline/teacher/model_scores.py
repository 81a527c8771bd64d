"""The scores of `judges` as columns of the judged table: filter.keep names them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import polars as pl

from pipeline.config.filter import FilterConfig
from pipeline.curate.select import depends_on_judges
from pipeline.judge.models.opinion import Item
from pipeline.judge.models.scoring import part_read
from pipeline.judge.table import as_completion


def scored(batch: pl.DataFrame, config: FilterConfig, models: Mapping[str, Any],
           texts: Mapping[str, str], sources: Mapping[str, str]) -> pl.DataFrame:
    """`batch` of judged traces with a column for each judge, and all of them in `model_scores`.

    A judge is asked of a trace only if filter.keep depends on it. `models` is what
    teacher.llm_judge.scorers gives, `texts` and `sources` are by problem id. Verdicts of an earlier
    filter keep the scores that they have.
    """
    if not models:
        return batch
    earlier = [json.loads(said or "{}") for said in batch["model_scores"]] \
        if "model_scores" in batch.columns else [{} for _ in range(len(batch))]
    places = depends_on_judges(batch, config, sources).arg_true().to_list()
    traces = {place: batch.row(place, named=True) for place in places}
    for name, (score, _) in models.items():
        asked = {place: part_read(config.judges[name], as_completion(trace))
                 for place, trace in traces.items() if name not in earlier[place]}
        asked = {place: text for place, text in asked.items() if text}
        said = score([Item(traces[place]["problem_id"], texts[traces[place]["problem_id"]], text)
                      for place, text in asked.items()]) if asked else []
        for place, value in zip(asked, said, strict=True):
            earlier[place][name] = value
        if without := sum(value is None for value in said):
            print(f"filter: judges.{name} gave {without:,} of {len(said):,} traces no score that "
                  "can be read; filter.keep takes an unknown one for false", file=sys.stderr)
    columns = {name: pl.Series([row.get(name) for row in earlier], dtype=pl.Float64)
               for name in models}
    return batch.with_columns(**columns, model_scores=pl.Series(
        [json.dumps(row) if row else None for row in earlier], dtype=pl.String))
