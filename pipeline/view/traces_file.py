"""Reads any file of traces for the page: a table of ours as it is, another one turned into one.

The columns are found by the names that published data sets use.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.config.teacher import FileTeacher
from pipeline.errors import UserError
from pipeline.judge import Judgement, JudgePool, Problem, has_gold
from pipeline.judge.table import as_completion
from pipeline.problems.columns import NoColumnError, column, is_conversation
from pipeline.problems.files import read_rows
from pipeline.teacher.from_file import traces_of_row

COMPLETIONS = ("completion", "completions", "response", "responses", "generation", "generations",
               "output", "outputs", "prediction", "messages", "conversations", "meta.response",
               "meta.completion", "text")
THINKING = ("thinking", "reasoning", "reasoning_content", "meta.thinking", "meta.reasoning")
QUESTIONS = ("problem", "question", "prompt", "instruction", "input", "query")
GOLDS = ("gold", "gold_answer", "expected_answer", "solution_answer", "answer")
MODELS = ("model", "teacher", "meta.teacher", "meta.model", "generator")
MOST_JUDGED = 5_000
"""Rows that are judged when a file is opened; of more only the one that is looked at."""


def as_table(path: Path, cache: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """(Parquet file, problems by id) of a file of traces.

    Raises UserError if the file cannot be read or no column holds completions.
    """
    if _is_ours(path):
        return path, problems_in(path)
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path} has no rows; give a file of traces")
    stat = path.stat()
    name = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    out = cache / f"{name.hexdigest()[:16]}.parquet"
    if not out.is_file():
        traces = [trace for number, row in enumerate(rows) for trace in _traces(row, number, path)]
        if not traces:
            raise UserError(f"no row of {path} has any text; look at what its columns hold")
        out.parent.mkdir(parents=True, exist_ok=True)
        tables.write_whole(_judged(traces), out, row_group_size=1024)
    return out, problems_in(out)


def _is_ours(path: Path) -> bool:
    """Whether a file is a table of traces as the stages write them."""
    if path.suffix != ".parquet" or not path.is_file():
        return False
    try:
        names = set(pl.read_parquet_schema(path))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]})") \
            from None
    return {"problem_id", "thinking", "answer"} <= names


def problems_in(path: Path) -> dict[str, dict[str, Any]]:
    """The problems that a table itself holds, by id; {} if it holds none."""
    try:
        names = pl.read_parquet_schema(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); delete its folder "
                        "and run the stage that made it again") from None
    if "problem" not in names:
        return {}
    wanted = [name for name in ("problem", "gold", "kind", "meta", "source") if name in names]
    table = pl.scan_parquet(path).select("problem_id", *wanted).unique(
        "problem_id", keep="first").collect()
    return {row["problem_id"]: {"meta": "{}", "kind": "math", "source": "", **row,
                                "answer": row.get("gold") or ""}
            for row in table.iter_rows(named=True)}


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    """The first of `names` that the row has a value for, and the value; ("", None) if none."""
    for name in names:
        try:
            if (value := column(row, name)) not in (None, "", []):
                return name, value
        except NoColumnError:
            continue
    return "", None


def _traces(row: Mapping[str, Any], number: int, path: Path) -> Iterator[dict[str, Any]]:
    """The traces of one row, each with its problem, as a table of judged traces has them."""
    text_column, value = _first(row, COMPLETIONS)
    thinking_column, _ = _first(row, THINKING)
    if not text_column and thinking_column and row.get("answer"):
        text_column = "answer"
    if not text_column:
        raise UserError(f"row {number + 1} of {path} holds no completion; columns are found by "
                        f"name ({', '.join(COMPLETIONS)}), and it has {', '.join(row)}")
    question_column, question = _first(row, QUESTIONS)
    if is_conversation(value) and is_conversation(question):
        question = ""
    teacher = FileTeacher(traces=str(path), problem_column=question_column or text_column,
                          completion_column=text_column, thinking_column=thinking_column or None)
    text = question if isinstance(question, str) else ""
    gold_column, gold = _first(row, tuple(name for name in GOLDS if name != text_column))
    _, model = _first(row, MODELS)
    for sample, trace in enumerate(traces_of_row(row, text, teacher, Counter())):
        yield {**trace, "problem_id": str(row.get("problem_id") or row.get("id") or number),
               "sample": int(row.get("sample") or 0) + sample, "problem": text,
               "gold": _plain(gold) if gold_column else "", "source": str(row.get("source") or ""),
               "kind": str(row.get("kind") or "math"), "meta": "{}",
               "model": str(model or trace["model"])}


def _plain(gold: Any) -> str:
    return ", ".join(map(str, gold)) if isinstance(gold, list) else str(gold)


def _judged(traces: list[dict[str, Any]]) -> pl.DataFrame:
    """The traces with the judge's verdicts, where they have a gold and are not too many."""
    judgements: list[Judgement | None] = [None] * len(traces)
    rows = [place for place, trace in enumerate(traces)
            if has_gold({**trace, "answer": trace["gold"]})] if len(traces) <= MOST_JUDGED else []
    if rows:
        problems = [Problem.from_row({**traces[place], "answer": traces[place]["gold"]})
                    for place in rows]
        texts = [as_completion(traces[place]) for place in rows]
        with JudgePool() as pool:
            for place, judgement in zip(rows, pool.judge_many(texts, problems), strict=True):
                judgements[place] = judgement
    schema = {"score": pl.Float64, "verdict": pl.String, "extracted": pl.String,
              "grader": pl.String}
    beside = pl.DataFrame([{name: getattr(one, name, None) for name in schema}
                           for one in judgements], schema=schema)
    return pl.DataFrame(traces, infer_schema_length=None).hstack(beside)
