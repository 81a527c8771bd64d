"""A bucket for tests: a folder behind fsspec that creates objects only once, or moto's S3 server.

The folder needs no package. LIMBECK_TEST_S3=1 takes s3fs and moto instead, in an environment that
has them (botocore wants an older python-dateutil than constraints.txt has).
"""

import errno
import os
import secrets
import shutil
import threading
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from urllib.request import Request, urlopen

import fsspec

from pipeline import objects

REGISTRY = import_module("fsspec.registry")._registry
BUCKET, PLACE = "group", "LIMBECK_TEST_BUCKET"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_EC2_METADATA_DISABLED": "true"}


class Calls:
    """What the store was asked, as (method, path); `refuse` says which calls fail."""

    def __init__(self):
        self.calls, self.refuse = [], lambda method, path: False

    def fails(self, method, path):
        self.calls.append((method, path))
        return self.refuse(method, path)


class FolderStore(fsspec.AbstractFileSystem):
    """s3:// as the folder that PLACE names."""

    protocol, cachable, told = "s3", False, Calls()

    def __init__(self, **_):
        super().__init__()
        self.root = Path(os.environ[PLACE])

    def _at(self, path, method):
        if self.told.fails(method, f"/{path}"):
            raise OSError(errno.EIO, "refused")
        return self.root / self._strip_protocol(path)

    def ls(self, path, detail=True, **_):
        found = [self.info(f"{path}/{one.name}") for one in sorted(self._at(path, "LIST").iterdir())
                 if not one.name.startswith(".new-")]
        return found if detail else [one["name"] for one in found]

    def info(self, path, **_):
        path = self._strip_protocol(path)
        stat = (self.root / path).stat()
        kind = "directory" if (self.root / path).is_dir() else "file"
        return {"name": path, "size": stat.st_size, "type": kind, "time": stat.st_mtime_ns}

    def cat_file(self, path, start=None, end=None, **_):
        return self._at(path, "GET").read_bytes()[start:end]

    def get_file(self, rpath, lpath, **_):
        Path(lpath).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._at(rpath, "GET"), lpath)

    def pipe_file(self, path, value, mode="overwrite", **_):
        self._appear(path, mode, lambda half: half.write_bytes(value))

    def put_file(self, lpath, rpath, mode="overwrite", **_):
        self._appear(rpath, mode, lambda half: shutil.copyfile(lpath, half))

    def rm_file(self, path):
        self._at(path, "DELETE").unlink()

    def _appear(self, path, mode, write):
        whole = self._at(path, "PUT")
        if not (self.root / path.split("/")[0]).is_dir():
            raise FileNotFoundError("no such bucket")
        whole.parent.mkdir(parents=True, exist_ok=True)
        half = whole.with_name(f".new-{secrets.token_hex(8)}")
        write(half)
        try:
            (os.link if mode == "create" else os.replace)(half, whole)
        finally:
            half.unlink(missing_ok=True)


class S3Server(Calls):
    """moto's S3, as a WSGI application."""

    def __init__(self):
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        super().__init__()
        self._app, self._once = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def __call__(self, environ, start_response):
        if self.fails(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        if "HTTP_IF_NONE_MATCH" not in environ:
            return self._app(environ, start_response)
        with self._once:                 # moto looks first and writes then
            return list(self._app(environ, start_response))

    @contextmanager
    def running(self):
        """Yield the address of the server."""
        from werkzeug.serving import make_server

        server = make_server("127.0.0.1", 0, self, threaded=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def join():
    """Take the bucket of the process that started this one."""
    if PLACE in os.environ:
        fsspec.register_implementation("s3", FolderStore, clobber=True)


@contextmanager
def bucket_server(patch, folder):
    """Yield the Calls of a bucket that this process and those it starts take for S3."""
    patch.setenv("XDG_CACHE_HOME", str(folder / "first"))
    patch.setitem(REGISTRY, "s3", FolderStore)
    objects._file_system.cache_clear()
    objects.bucket_of.cache_clear()
    try:
        if os.environ.get("LIMBECK_TEST_S3") == "1":
            yield from _s3(patch)
        else:
            patch.setattr(FolderStore, "told", Calls())
            patch.setenv(PLACE, str(folder / "bucket"))
            (folder / "bucket" / BUCKET).mkdir(parents=True)
            yield FolderStore.told
    finally:
        objects._file_system.cache_clear()
        objects.bucket_of.cache_clear()


def _s3(patch):
    patch.delitem(REGISTRY, "s3")
    server = S3Server()
    with server.running() as url:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        urlopen(Request(f"{url}/moto-api/reset", method="POST")).close()     # one for a process
        objects._file_system("s3").mkdir(BUCKET)
        yield server
