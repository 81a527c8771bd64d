"""Finds the rows in JSON as people have it: lines, an array, pretty, wrapped, in columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from pipeline.errors import UserError

Row = dict[str, Any]
WRAPPERS = ("data", "rows", "train", "test", "validation", "examples", "items", "problems",
            "questions", "instances", "records", "results", "samples", "dataset")


def json_rows(lines: Iterable[str], name: str) -> list[Row]:
    """The rows of JSON lines, or of one JSON document. Raises UserError, with the line if known."""
    values: list[Any] = []
    lines = iter(lines)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except ValueError as error:
            if values:
                raise _refusal(name, number, error) from None
            values = _documents("".join(chain(["\n" * (number - 1), line], lines)), name)
            break
    if len(values) == 1 and isinstance(values[0], dict):
        return _unwrapped(values[0])
    rows = [row for value in values for row in (value if isinstance(value, list) else [value])]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise _refusal(name, number, ValueError(f"it is {row!r:.60}"))
    return rows


def _documents(text: str, name: str) -> list[Any]:
    """The JSON values of a text, one after another, each over any number of lines."""
    decoder, at, values = json.JSONDecoder(), 0, []
    while rest := text[at:].lstrip():
        at = len(text) - len(rest)
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _refusal(name, error.lineno, error) from None
        values.append(value)
    return values


def _refusal(name: str, number: int, error: ValueError) -> UserError:
    return UserError(f"{name}:{number} is not a JSON object in UTF-8: {error}")


def _unwrapped(value: Row) -> list[Row]:
    """The rows that a single object holds in a field, by column, or by key; else itself."""
    rows = next((value[name] for name in WRAPPERS if _is_rows(value.get(name))), None)
    if rows is not None:                # {"row": {...}} as the hub's viewer wraps each again
        return [row["row"] if isinstance(row.get("row"), dict) else row for row in rows]
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return [dict(zip(value["columns"], row, strict=False)) for row in value["data"]]
    fields = list(value.values())
    if len(value) > 1 and all(isinstance(field, list) and len(field) == len(fields[0])
                              and not any(isinstance(item, dict) for item in field)
                              for field in fields):
        return [dict(zip(value, row, strict=True)) for row in zip(*fields, strict=True)]
    if fields and all(isinstance(field, Mapping) and field for field in fields):
        return _by_key(value)
    return [value]


def _is_rows(value: Any) -> bool:
    # A list of messages is one row's conversation.
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and all(
        isinstance(row, dict) and not {"role", "from"} & row.keys() for row in value)


def _by_key(value: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Rows of {column: {number: value}}, as pandas writes them, or of {id: row}."""
    inner = next(iter(value.values()))
    if all(key.isdecimal() for field in value.values() for key in field):
        return [{name: field.get(number) for name, field in value.items()} for number in inner]
    if all(field.keys() == inner.keys() for field in value.values()):
        return [{"id": key, **row} for key, row in value.items()]
    return [dict(value)]
