"""The page over a made run or a file, served in this process for the tests."""

import asyncio
import contextlib
import socket
import threading

from aiohttp import web

from pipeline.view.server import application
from pipeline.view.workspace import Places, Workspace

TOKEN = "token-of-the-tests"


def workspace(tmp_path, roots=(), files=(), planned=None):
    return Workspace(Places(list(roots), list(files), tmp_path / "traces", tmp_path / "cache",
                            planned or {}))


@contextlib.contextmanager
def serving(space):
    """Yield (address, port) of a server in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def start():
        runner = web.AppRunner(application(space, TOKEN, port), access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        ready.set()
        return runner

    def run():
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{port}", port
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        space.close()
