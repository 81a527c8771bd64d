"""The page's server: on the loopback interface alone, for whoever has its address with the token.

Nothing of a trace is ever markup: pages are files, traces are JSON, and the content security
policy lets a browser load nothing but these.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
from aiohttp import web

from pipeline.errors import UserError
from pipeline.view import routes
from pipeline.view.workspace import Workspace

STATIC = Path(__file__).with_name("static")
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
          "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
          "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff",
           "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
           "Cross-Origin-Opener-Policy": "same-origin",
           "Cross-Origin-Resource-Policy": "same-origin"}
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css",
         ".woff2": "font/woff2", ".svg": "image/svg+xml"}
MOST_BODY = 64 << 20
TOKEN_HEADER = "X-Limbeck-Token"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(workspace: Workspace, port: int, opened: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; `opened` gets the address. Raises UserError if the port is taken."""
    with _listening(port) as listener:
        number = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        opened(f"http://127.0.0.1:{number}/?token={token}")
        try:
            web.run_app(application(workspace, token, number), sock=listener, print=None,
                        shutdown_timeout=1.0, access_log=None)
        finally:
            workspace.close()


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OverflowError:
        raise UserError(f"there is no port {port}; give one from 1 to 65535, or 0 for a free one") \
            from None
    except OSError as error:
        raise UserError(f"port {port} cannot be had ({error.strerror}); another program, perhaps "
                        "another `limbeck view`, has it: name another with --port, or 0 for a "
                        "free one") from None


def application(workspace: Workspace, token: str, port: int) -> web.Application:
    """The application, which answers only requests to this port with the token."""
    cookie = f"limbeck_view_{port}"
    hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.host not in hosts:
            return _plain(421, "this page answers only at 127.0.0.1 and localhost")
        given = request.query.get("token")
        if given is not None and request.path == "/" and _same(given, token):
            response: web.StreamResponse = web.Response(status=303, headers={"Location": "/"})
            response.set_cookie(cookie, token, httponly=True, samesite="Strict", path="/")
        elif not (_same(request.cookies.get(cookie, ""), token)
                  or _same(request.headers.get(TOKEN_HEADER, ""), token)):
            response = _plain(403, "open the address that `limbeck view` printed: it holds a "
                                   "token, and this request does not")
        elif request.method != "GET" and request.headers.get("X-Limbeck") != "1":
            response = _plain(403, "a verdict is taken from the page alone")
        else:
            response = await _answered(request, handler)
        response.headers.update(HEADERS)
        return response

    app = web.Application(middlewares=[guard], client_max_size=MOST_BODY)
    files = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*")
             if path.suffix in TYPES}
    app.router.add_get("/", _file(files["index.html"]))
    for name, path in files.items():
        app.router.add_get(f"/static/{name}", _file(path))
    for name, answer in routes.GET.items():
        app.router.add_get(f"/api/{name}", _json(workspace, answer))
    app.router.add_post("/api/review", _posted(workspace))
    return app


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


def _plain(status: int, sentence: str) -> web.Response:
    return web.Response(status=status, text=f"limbeck view: {sentence}\n", headers=HEADERS)


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What `handler` answers; a sentence if it cannot."""
    try:
        return await handler(request)
    except UserError as error:
        return web.json_response({"error": str(error)}, status=400)
    except (OSError, pl.exceptions.PolarsError) as error:
        said = str(error).splitlines()[0]
        return web.json_response({"error": f"a file could not be read ({said}); it was deleted or "
                                  "is damaged"}, status=400)
    except web.HTTPException as error:
        return _plain(error.status, error.reason)


def _file(path: Path) -> Handler:
    async def send(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path, headers={"Content-Type": TYPES[path.suffix]
                                               + ("; charset=utf-8" if path.suffix != ".woff2"
                                                  else "")})

    return send


def _json(workspace: Workspace, answer: Callable[[Workspace, Any], Any]) -> Handler:
    async def send(request: web.Request) -> web.StreamResponse:
        found = await asyncio.to_thread(answer, workspace, request.query)
        try:
            text = json.dumps(found, ensure_ascii=False, default=str, allow_nan=False)
        except ValueError:          # not a number, which JSON cannot say
            text = json.dumps(_finite(found), ensure_ascii=False, default=str)
        return web.Response(body=text.encode("utf-8", "replace"),
                            content_type="application/json", charset="utf-8")

    return send


def _finite(value: Any) -> Any:
    """`value` with null for every float that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _posted(workspace: Workspace) -> Handler:
    async def take(request: web.Request) -> web.StreamResponse:
        lines = None
        with suppress(ValueError):
            lines = await request.json()
        if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
            raise UserError("a verdict was sent that cannot be read; reload the page")
        # Shielded: a browser that goes away does not take its verdict with it.
        kept = await asyncio.shield(asyncio.to_thread(workspace.review, lines))
        return web.json_response({"kept": kept})

    return take


def announce(address: str) -> None:
    """Print where the page is."""
    print(f"view: open {address}\nview: this machine alone can; Ctrl-C ends it", file=sys.stderr,
          flush=True)
