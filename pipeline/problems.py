"""Problem sets: embedded countdown, reasoning-gym, a JSONL or Parquet file, or a hub data set."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.errors import UserError

EMBEDDED, GYM = "countdown", "reasoning-gym/"


class Source(Config):
    """Where problems come from and which columns hold what."""

    problems: str = EMBEDDED
    """`countdown` (embedded), `reasoning-gym/TASK` (`limit` of them, 1,000 by default), a .jsonl or
    .parquet file, or a Hugging Face data set id."""
    options: dict[str, Any] = {}
    """Settings of a reasoning-gym task under its own names, e.g. {max_numbers: 4}."""
    subset: str | None = None
    """Configuration of a hub data set, e.g. `main`."""
    split: str = "train"
    """Split of a hub data set."""
    problem_column: str = "problem"
    """Column with the problem's text."""
    answer_column: str = "answer"
    """Column with the gold answer."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the gold answer, e.g. `#### (.+)` for GSM8K."""
    answer_optional: bool = False
    """Keep problems whose answer is missing or empty: they are taught by filter.majority alone,
    never held out and never refined on."""
    kind: str = "math"
    """The judge's kind for rows that name none: math, choice, exact, code or gym."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many problems after shuffling."""

    @field_validator("answer_pattern")
    @classmethod
    def _has_a_group(cls, pattern: str | None) -> str | None:
        try:
            if pattern is not None and not re.compile(pattern).groups:
                raise ValueError("put the answer in parentheses, as in '#### (.+)'")
        except re.error as error:
            raise ValueError(f"give a regular expression ({error})") from None
        return pattern


def has_gold(row: dict[str, Any]) -> bool:
    """Whether a records.Problem row can be judged: code and gym need no answer."""
    return bool(row["answer"].strip()) or row["kind"] not in ("math", "choice", "exact")


def is_file(name: str) -> bool:
    """Whether `name` is meant as a local file rather than a hub id."""
    return Path(name).suffix in {".jsonl", ".parquet", ".json"}


def short_names(sets: Sequence[str]) -> dict[str, str]:
    """{name: its file's stem}, or the whole name where two of `sets` have the same stem."""
    times = Counter(Path(name).stem for name in dict.fromkeys(sets))
    return {name: stem if times[stem := Path(name).stem] == 1 else name for name in sets}


def countdown_rows(seed: int) -> list[dict[str, str]]:
    """Every embedded problem as a records.Problem row without its split, shuffled by `seed`."""
    from pipeline.countdown import instances, tries

    rows = []
    for one in instances(seed):
        gold = next(t.expression for t in tries(one.numbers) if t.value == one.target)
        meta = {"task": "countdown", "numbers": list(one.numbers), "target": one.target}
        name = "-".join(map(str, one.numbers))
        rows.append({"problem_id": f"countdown-{name}-{one.target}", "problem": one.text,
                     "answer": gold, "kind": "gym", "source": EMBEDDED, "meta": json.dumps(meta)})
    return rows


def gym_rows(source: Source, seed: int) -> list[dict[str, str]]:
    """Problems of a reasoning-gym task, made from `seed`; the judge scores them by its scorer."""
    import reasoning_gym

    task = source.problems.removeprefix(GYM)
    try:
        made = list(reasoning_gym.create_dataset(task, size=source.limit or 1000, seed=seed,
                                                 **source.options))
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"reasoning-gym makes no {task!r} problems: {error}; mend "
                        "prepare.problems or prepare.options") from None
    known = [{name: entry["metadata"][name] for name in ("numbers", "target")}
             if task == "countdown" else {} for entry in made]
    return [{"problem_id": f"{task}-{seed}-{index}", "problem": entry["question"],
             "answer": entry["answer"] or "", "kind": "gym", "source": source.problems,
             "meta": json.dumps({"task": task, "entry": entry, **more}, default=str)}
            for index, (entry, more) in enumerate(zip(made, known, strict=True))]


def load_rows(source: Source, seed: int) -> list[dict[str, str]]:
    """Problem rows (without `split`), shuffled by `seed` and cut to `source.limit`."""
    from pipeline.verify.cli import read_rows

    if source.problems == EMBEDDED:
        rows = countdown_rows(seed)
    elif source.problems.startswith(GYM):
        rows = gym_rows(source, seed)
    else:
        raw = read_rows(source.problems) if is_file(source.problems) else _read_hub(source)
        rows = [_to_row(row, index, source) for index, row in enumerate(raw, start=1)]
        random.Random(seed).shuffle(rows)
    if not rows:
        raise UserError(f"{source.problems} holds no problems; check prepare.problems")
    return rows[:source.limit]


def _read_hub(source: Source) -> list[dict[str, Any]]:
    from datasets import load_dataset

    try:
        return list(load_dataset(source.problems, source.subset, split=source.split))
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data set {source.problems!r} cannot be loaded ({first}); "
                        "give a local .jsonl or .parquet file, or check the network") from None


def _to_row(row: dict[str, Any], index: int, source: Source) -> dict[str, str]:
    """Row `index`, from 1, as a records.Problem row without its split."""
    for column in (source.problem_column, source.answer_column):
        if row.get(column) is None and not (column == source.answer_column
                                            and source.answer_optional):
            raise UserError(f"row {index} of {source.problems} has no {column!r}; set "
                            "prepare.problem_column and prepare.answer_column, or for an "
                            "evaluation set {problems: FILE, problem_column: NAME} "
                            f"(its columns: {', '.join(row)})")
    text = str(row[source.problem_column])
    if not text.strip():
        raise UserError(f"row {index} of {source.problems} has nothing in "
                        f"{source.problem_column!r}; write the problem or take the row out")
    meta = row.get("meta") or {}
    return {"problem_id": str(row.get("id", f"{Path(source.problems).stem}-{index - 1}")),
            "problem": text,
            "answer": _gold(row.get(source.answer_column), index, source),
            "kind": str(row.get("kind", source.kind)),
            "source": str(row.get("source", source.problems)),
            "meta": meta if isinstance(meta, str) else json.dumps(meta, default=str)}


def _gold(given: Any, index: int, source: Source) -> str:
    text = "" if given is None else str(given)
    if source.answer_pattern is None or (source.answer_optional and not text.strip()):
        return text.strip()
    found = re.search(source.answer_pattern, text)
    if found is None or found[1] is None:
        raise UserError(f"row {index} of {source.problems}: prepare.answer_pattern "
                        f"{source.answer_pattern!r} finds no answer in {text[-60:]!r}")
    return found[1].strip()
