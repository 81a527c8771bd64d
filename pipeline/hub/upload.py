"""Uploads a repository whole, in one commit; what the hub has already is not sent again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

ATTEMPTS, WAIT = 2, 2.0
"""Tries of one commit, each with the hub library's own retries of 25 s, and seconds between."""
Files = Mapping[str, Path | bytes]
"""What lies at each path of a repository: a file, or its bytes."""
WEIGHTS = (".safetensors", ".bin", ".parquet", ".gguf")
SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def upload(repo: str, kind: str, files: Files, *, private: bool, message: str) -> str:
    """Commit `files` to the `kind` (model, dataset) repository `repo`; returns its address.

    Raises UserError if the hub refuses, cannot be reached, or has it public though `private`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api: Any = HfApi()
    try:
        name = _patiently(lambda: api.create_repo(repo, private=private, repo_type=kind,
                                                  exist_ok=True)).repo_id
        info = _patiently(lambda: api.repo_info(name, repo_type=kind))
        if private and info.private is False:
            raise UserError(f"{name} is there already and public; give --public to push to it, or "
                            "another name")

        def commit() -> Any:
            # Made anew: an operation remembers what was sent before the connection broke.
            adds = [CommitOperationAdd(path, given if isinstance(given, bytes) else str(given))
                    for path, given in files.items()]
            return api.create_commit(name, adds, commit_message=message, repo_type=kind)

        _patiently(commit)
    except HfHubHTTPError as error:
        raise UserError(f"the hub refuses {repo}: {str(error).splitlines()[0]}; check the name "
                        "and the token (hf auth login, or HF_TOKEN)") from None
    prefix = {"model": "", "dataset": "datasets/"}[kind]
    return f"{api.endpoint}/{prefix}{name}"


def _patiently(act: Any) -> Any:
    """Call `act`, again if the connection breaks. Raises UserError after ATTEMPTS."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    why: BaseException
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return act()
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            why = error
        except (httpx.TransportError, ConnectionError) as error:
            why = error
        except RuntimeError as error:       # the library's own word for a file that did not arrive
            if not isinstance(error.__cause__, httpx.HTTPError | ConnectionError):
                raise
            why = error.__cause__
        if attempt < ATTEMPTS:
            print(f"push: the connection broke ({type(why).__name__}); trying again",
                  file=sys.stderr)
            time.sleep(WAIT)
    raise UserError(f"the hub cannot be reached ({type(why).__name__}: {why}); run the same "
                    "command again: what arrived is not sent again")


def secrets(keys: Iterable[str]) -> list[bytes]:
    """`keys`, those of the environment, and the hub's token: what no file may hold."""
    from huggingface_hub import get_token

    found = [value for name, value in os.environ.items()
             if any(part in name.upper() for part in SECRET_NAMES)]
    return [value.encode() for value in dict.fromkeys([*found, *keys, get_token() or ""])
            if len(value) >= 8]


def refuse_secrets(files: Files, hidden: Iterable[bytes]) -> None:
    """Raise UserError if a file holds one of the `hidden` values; weights are not read."""
    hidden = list(hidden)
    for path, given in files.items():
        if path.endswith(WEIGHTS):
            continue
        data = given if isinstance(given, bytes) else given.read_bytes()
        if any(value in data for value in hidden):
            raise UserError(f"{path} holds an API key or token that is set in this environment; "
                            "nothing is pushed. Find where it came from and remake that stage")
