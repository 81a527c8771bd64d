"""LiveCodeBench's tests: JSON, or JSON in a pickled string, compressed, in base64."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError

LARGEST = 1 << 29
"""Bytes that tests may unpack to."""


class _TextOnly(pickle.Unpickler):
    """Unpickles a string; anything that would import, and so run, code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def unpacked(text: str) -> list[dict[str, Any]]:
    """The tests that `text` holds. Raises UserError if it is neither form."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    try:
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(base64.b64decode(text), LARGEST)
        if unpacking.unconsumed_tail:
            raise pickle.UnpicklingError("it is larger than 512 MB")
        return json.loads(_TextOnly(io.BytesIO(data)).load())
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, TypeError,
            ValueError) as error:
        raise UserError(f"private tests of LiveCodeBench cannot be unpacked ({error}); download "
                        "the file again") from None


def tests_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A problem's tests as meta of a code problem holds them: inputs, outputs, fn_name."""
    cases = [case for column in ("public_test_cases", "private_test_cases")
             for case in unpacked(row.get(column) or "[]")]
    known = row.get("metadata") or {}
    name = (json.loads(known) if isinstance(known, str) else known).get("func_name")
    return {"inputs": [case["input"] for case in cases],
            "outputs": [case["output"] for case in cases], "numbers": True,
            **({"fn_name": name} if name else {})}
