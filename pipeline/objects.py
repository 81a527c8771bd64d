"""Folders of object stores (s3://, gs://, hf://, ...), and a local copy of each.

The copy of s3://BUCKET/PREFIX is CACHE/s3/BUCKET/PREFIX: its path says what it is a copy of, so
whatever takes a folder takes it. Objects are written whole and never changed, but for heartbeats
and the last piece of a journal. Addresses and keys are those that fsspec's libraries find
(AWS_ENDPOINT_URL, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN, ~/.config/fsspec).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.errors import LackingError, UserError

URL = re.compile(r"([a-z][a-z0-9]*)://(.+)")
ATOMIC = {"s3", "s3a", "gs", "gcs", "memory"}
"""Stores where of two that create one object, only one succeeds."""
CONTAINER = {"s3": 1, "s3a": 1, "gs": 1, "gcs": 1, "hf": 3}
"""How many parts of an address name the bucket, or the repository."""
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "retries": {"max_attempts": 2}}}}
FAILURES = {"aiohttp": "ClientError", "botocore.exceptions": "BotoCoreError",
            "gcsfs.retry": "HttpError", "google.auth.exceptions": "GoogleAuthError",
            "huggingface_hub.errors": "HfHubHTTPError"}
"""What libraries raise beside OSError."""
AT_ONCE = 4
"""Files under way at once: of large ones, s3fs holds ten parts of 50 MB each in memory."""
TRIES = 5


def cache() -> Path:
    """The folder of all local copies."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "limbeck" / "objects"


def local_copy(place: Any) -> Any:
    """The folder that stands for `place` if it is an address, else `place` itself.

    Raises UserError if it is an address that names no folder.
    """
    if not isinstance(place, str):
        return place
    protocol, mark, path = place.partition("://")
    if not mark:
        return Path(place)
    if protocol in ("file", "local"):
        return Path(path)
    found = URL.fullmatch(place)
    parts = path.rstrip("/").split("/")
    if found is None or {"", ".", ".."} & set(parts) or re.search(r"[?#*\[\]:]", path):
        raise UserError(f"{place} is no address of a folder in an object store; write it as "
                        "s3://BUCKET/FOLDER, and give its options by environment variables")
    return cache().joinpath(protocol, *parts)


def address(folder: Path) -> str:
    """What `folder` is a copy of, or itself."""
    with suppress(ValueError):
        protocol, *parts = folder.relative_to(cache()).parts
        return f"{protocol}://{'/'.join(parts)}"
    return str(folder)


@lru_cache(maxsize=64)
def bucket_of(folder: Path) -> Bucket | None:
    """The folder of an object store that `folder` is a copy of, if it is one."""
    url = address(folder)
    return Bucket(url, folder) if "://" in url else None


def check_reached(folders: Iterable[Path]) -> None:
    """Raise UserError if a store that one of `folders` is a copy of cannot be reached."""
    for folder in folders:
        if bucket := bucket_of(folder):
            bucket.check()


@lru_cache(maxsize=8)
def _file_system(protocol: str) -> Any:
    import fsspec
    from fsspec.registry import known_implementations

    try:
        return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True,
                                 **OPTIONS.get(protocol, {}))
    except ImportError:
        package = known_implementations[protocol]["class"].partition(".")[0]
        raise LackingError(f"{protocol}:// needs the package {package}, which is not installed; "
                           f"run `pip install {package}`") from None
    except ValueError:
        raise UserError(f"{protocol}:// is of no object store that fsspec knows; use s3://, gs:// "
                        "or hf://") from None


class Bucket:
    """A folder of an object store. Every method raises UserError if it cannot be reached."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.protocol = url.partition("://")[0]
        self.atomic = self.protocol in ATOMIC

    @cached_property
    def fs(self) -> Any:
        return _file_system(self.protocol)

    @cached_property
    def top(self) -> str:
        return str(self.fs._strip_protocol(self.url))

    @cached_property
    def failures(self) -> tuple[type[Exception], ...]:
        found: list[type[Exception]] = [OSError]
        for module, name in FAILURES.items():
            with suppress(ImportError):
                found.append(getattr(import_module(module), name))
        return tuple(found)

    def check(self) -> None:
        """Raise UserError if the bucket is not there or may not be read."""
        self.names()
        depth = CONTAINER.get(self.protocol, 0)
        if depth and not self.fs.exists("/".join(self.top.split("/")[:depth])):
            raise UserError(f"there is no bucket for {self.url}, or this key may not see it; make "
                            "it, or correct the address")

    def names(self, deep: bool = False) -> dict[str, dict[str, Any]]:
        """What lies in the folder by its name in it, with all that is known of it; of folders
        (type: directory) what is in them if `deep`."""
        with self._explained():
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(self.top, detail=True).values() if deep else \
                    self.fs.ls(self.top, detail=True)
            except FileNotFoundError:
                found = []
        return {str(one["name"]).rstrip("/").removeprefix(f"{self.top}/"): one for one in found}

    def read(self, names: Collection[str]) -> dict[str, bytes]:
        """The contents of those of `names` that are there."""
        if not names:
            return {}
        paths = {self._path(name): name for name in names}
        with self._explained():
            found = self.fs.cat(list(paths), on_error="return")
            for data in found.values():
                if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                    raise data
        return {paths[path]: data for path, data in found.items() if isinstance(data, bytes)}

    def create(self, name: str, text: str) -> bool:
        """Write an object that is not there; return False if another process was first."""
        data, failed = text.encode(), None
        for _ in range(TRIES):
            try:
                self.fs.pipe_file(self._path(name), data, mode="create")
            except self.failures as error:
                failed = error
            else:
                return True
            if (found := self.read([name]).get(name)) is not None:
                return found == data         # ours, and the reply was lost
        with self._explained():
            assert failed is not None
            raise failed

    def put(self, name: str, data: bytes) -> None:
        """Write an object."""
        with self._explained():
            self.fs.pipe_file(self._path(name), data)

    def send(self, files: Mapping[str, Path]) -> None:
        """Upload files under these names, in parts if they are large."""
        if files:
            with self._explained():
                self.fs.put([str(path) for path in files.values()],
                            [self._path(name) for name in files], batch_size=AT_ONCE)

    def fetch(self, names: Collection[str], folder: Path) -> None:
        """Download objects into `folder`; each appears there whole."""
        token = f".{os.getpid()}.{secrets.token_hex(4)}.download"
        halves = {folder / f"{name}{token}": folder / name for name in names}
        try:
            with self._explained():
                if names:
                    self.fs.get([self._path(name) for name in names], list(map(str, halves)),
                                batch_size=AT_ONCE)
                for half, whole in halves.items():
                    half.replace(whole)
        finally:
            for half in halves:
                half.unlink(missing_ok=True)

    def delete(self, names: Collection[str]) -> None:
        """Delete objects, whether they are there or not."""
        if names:
            with self._explained(), suppress(FileNotFoundError):
                self.fs.rm([self._path(name) for name in names])

    def _path(self, name: str) -> str:
        return f"{self.top}/{name}"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self.failures as error:
            raise self._sentence(error) from None

    def _sentence(self, error: Exception) -> UserError:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(f"no space is left for {self.folder}, the local copy of {self.url}; "
                             "free some, or set XDG_CACHE_HOME to a larger disk")
        if isinstance(error, FileNotFoundError):
            return UserError(f"there is no bucket for {self.url} ({said}); make it, or correct the "
                             "address")
        if isinstance(error, PermissionError) or "redentials" in said:
            return UserError(f"{self.url} refuses this key ({said}); give one that may read and "
                             "write there, as its library takes it (AWS_ACCESS_KEY_ID and "
                             "AWS_SECRET_ACCESS_KEY for s3)")
        return UserError(f"{self.url} cannot be reached ({said}); check the network and the "
                         "address. What was made is kept here, and the same command goes on")
