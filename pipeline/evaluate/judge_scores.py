"""What `judges` say of the completions of every model, beside their scores by the gold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from pipeline.completion import Completion
from pipeline.config.judges import Judges
from pipeline.judge.models.opinion import Item, Score
from pipeline.judge.models.scoring import part_read

Rows = list[dict[str, Any]]


def add_judge_scores(judges: Judges, models: Mapping[str, Score],
                     tables: Mapping[str, Sequence[Rows]]) -> None:
    """Add a column for each judge to the rows in `tables`: of each model, each benchmark's rows.

    Comparisons set a sample of the first model against the same sample of every other; the first
    model's are half wins by definition, and so left out.
    """
    rows = [row for name in tables for part in tables[name] for row in part]
    for name, score in models.items():
        config = judges[name]
        if config.type == "pairwise":
            _compared(name, score, config, tables)
            continue
        items = [Item(row["problem_id"], row["problem"], part_read(config, _completion(row)))
                 for row in rows]
        _put(name, score, rows, items)


def _compared(name: str, score: Score, config: Any,
              tables: Mapping[str, Sequence[Rows]]) -> None:
    """Share of the comparisons won against the first model's sample of the same number."""
    first, *others = tables.values()
    known: dict[tuple[int, str, int], dict[str, Any]] = {}
    for place, part in enumerate(first):
        for row in part:        # of several training seeds the first
            known.setdefault((place, row["problem_id"], row["sample"]), row)
    pairs = [(row, known[key]) for parts in others for place, part in enumerate(parts)
             for row in part if (key := (place, row["problem_id"], row["sample"])) in known]
    items, rows = [], []
    for number, (row, base) in enumerate(pairs):
        items += [Item(str(number), one["problem"], part_read(config, _completion(one)))
                  for one in (row, base)]
        rows += [row, {}]       # the rival's score is the other half
    _put(name, score, rows, items)


def _put(name: str, score: Score, rows: Rows, items: list[Item]) -> None:
    places = [place for place, item in enumerate(items) if item.text]
    for row in rows:
        row[name] = None
    said = score([items[place] for place in places]) if places else []
    for place, value in zip(places, said, strict=True):
        rows[place][name] = value


def _completion(row: Mapping[str, Any]) -> Completion:
    return Completion(row["thinking"], row["answer"] or "")


def judge_summary(rows: Rows, names: Sequence[str]) -> dict[str, dict[str, float | int]]:
    """Each judge's mean over problems with a 95 % normal interval, and how many had no score."""
    out: dict[str, dict[str, float | int]] = {}
    for name in names:
        groups: dict[str, list[float]] = {}
        for row in rows:
            if row.get(name) is not None:
                groups.setdefault(row["problem_id"], []).append(row[name])
        means = [sum(group) / len(group) for group in groups.values()]
        if not means:
            continue
        mean = sum(means) / len(means)
        half = 1.96 * sqrt(sum((one - mean) ** 2 for one in means) /
                           max(len(means) - 1, 1) / len(means))
        out[name] = {"mean": mean, "low": mean - half, "high": mean + half,
                     "problems": len(means), "unjudged": sum(row.get(name) is None for row in rows)}
    return out


def judge_tables(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{benchmark: {model: {judge: its summary}}} of what scores.json holds of judges."""
    names = dict.fromkeys(name for by in models.values() for name in by)
    found = {name: {model: by[name]["judges"] for model, by in models.items()
                    if by.get(name, {}).get("judges") is not None} for name in names}
    return {name: by for name, by in found.items() if any(by.values())}
