"""Reads rows of JSONL, JSON, CSV, TSV and Parquet files."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_rows(source: Path | str) -> list[dict[str, Any]]:
    """The rows of a JSONL, JSON (array), CSV, TSV or Parquet file, or of "-" (JSONL from stdin).

    Fields of CSV rows are strings.
    """
    if str(source) == "-":
        with open(0, encoding="utf-8-sig", closefd=False) as lines:
            return list(_read_lines(lines, "standard input"))
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a JSONL, JSON, CSV or Parquet file, or - "
                        "for standard input")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_table(path).to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is not a readable Parquet file: {error}") from None
    with path.open(encoding="utf-8-sig", newline="") as lines:
        if path.suffix in SEPARATORS:
            return list(_read_csv(lines, str(path), SEPARATORS[path.suffix]))
        json_lines = _array_lines(lines) if path.suffix == ".json" else lines
        return list(_read_lines(json_lines, str(path)))


def _array_lines(lines: Iterable[str]) -> Iterator[str]:
    """The rows of a JSON array as JSON lines; other text is split into its lines."""
    text = "".join(lines)
    yield from map(json.dumps, json.loads(text)) if text.lstrip().startswith("[") \
        else text.split("\n")


def _read_csv(lines: Iterable[str], name: str, separator: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)       # a long trace has more than the 128 KiB of its default
    rows = csv.DictReader(lines, strict=True, delimiter=separator)
    try:
        for row in rows:
            if None in row:
                raise ValueError("it has more fields than the first line has names")
            yield row
    except (csv.Error, ValueError) as error:
        raise UserError(f"{name}:{rows.line_num} is not CSV in UTF-8: {error}") from None


def _read_lines(lines: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        for line in lines:
            number += 1
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"it is {row!r:.60}")
                yield row
    except ValueError as error:
        raise UserError(f"{name}:{number} is not a JSON object in UTF-8: {error}") from None
