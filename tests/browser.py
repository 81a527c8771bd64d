"""A tiny driver of headless Chromium over the DevTools protocol, for tests of the page."""

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import aiohttp

from tests.conftest import PATIENCE

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome")
                 if (path := shutil.which(name))), None)


class Page:
    """One tab. `console` holds errors, `requests` the addresses asked for."""

    def __init__(self, socket):
        self.socket, self.number, self.waiting = socket, 0, {}
        self.console, self.requests = [], []

    async def listen(self):
        async for message in self.socket:
            told = json.loads(message.data)
            if "id" in told:
                self.waiting.pop(told["id"]).set_result(told)
            else:
                self._note(told["method"], told["params"])

    def _note(self, method, said):
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.console.append(json.dumps(said["exceptionDetails"])[:600])
        elif method == "Runtime.consoleAPICalled" and said["type"] == "error":
            self.console.append(str(said["args"])[:600])
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.console.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif method == "Page.javascriptDialogOpening":
            self.console.append(f"a dialog: {said['message']}")

    async def send(self, method, **values):
        self.number += 1
        answer = self.waiting[self.number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": self.number, "method": method, "params": values})
        told = await asyncio.wait_for(answer, 60)
        assert "error" not in told, told
        return told["result"]

    async def run(self, script):
        """The value of a JavaScript expression, which may be a promise."""
        told = await self.send("Runtime.evaluate", expression=script, awaitPromise=True,
                               returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, script, seconds=PATIENCE):
        """Wait until an expression is true."""
        for _ in range(int(seconds / 0.05)):
            if await self.run(script):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"never true: {script}; the page: "
                             + str(await self.run("document.body.innerText"))[:1500])

    async def open(self, address):
        await self.send("Page.navigate", url=address)
        await self.until("document.readyState === 'complete' && "
                         "!document.querySelector('[aria-busy]') && "
                         "!!document.querySelector('#main > div, #main > .trouble, pre')")

    async def go(self, place):
        await self.run(f"location.hash = {json.dumps(place)}")
        await asyncio.sleep(0.15)
        await self.until("!document.querySelector('[aria-busy]')")

    async def press(self, key):
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=key,
                        text=key if len(key) == 1 else "")
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def look(self, width, height, dark=False):
        await self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                        deviceScaleFactor=1, mobile=width < 600)
        await self.send("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    async def picture(self, path, whole=False):
        told = await self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(told["data"]))


@contextlib.asynccontextmanager
async def chromium():
    """Yield a Page of a fresh headless Chromium."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--remote-debugging-port=0", f"--user-data-dir={folder}", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "about:blank"],
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            async with aiohttp.ClientSession() as session:
                address = await _tab(Path(folder) / "DevToolsActivePort")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    page = Page(socket)
                    listening = asyncio.create_task(page.listen())
                    for domain in ("Page", "Runtime", "Network", "Log"):
                        await page.send(f"{domain}.enable")
                    yield page
                    listening.cancel()
        finally:
            process.kill()
            process.wait()


async def _tab(file):
    for _ in range(600):
        if file.is_file() and (lines := file.read_text().split("\n")) and lines[0]:
            with contextlib.suppress(OSError), urllib.request.urlopen(
                    f"http://127.0.0.1:{lines[0]}/json/list", timeout=5) as answer:
                tabs = [one for one in json.load(answer) if one["type"] == "page"]
                if tabs:
                    return tabs[0]["webSocketDebuggerUrl"]
        await asyncio.sleep(0.05)
    raise AssertionError("Chromium did not start in 30 s")
