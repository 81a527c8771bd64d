"""A loopback endpoint that does what a script says, bytes and all, and counts what it was asked.

It speaks HTTP by hand: a library would not send half an answer.
"""

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Answer:
    """One response: whole, late, cut after `cut` bytes of its body, or dripping."""

    body: bytes = b""
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    reset: bool = False
    """Break the connection (RST) instead of closing it."""
    length: bool = True
    """Send Content-Length; without it the end of the connection ends the body."""
    linger: float = 0.0
    """Seconds between the body and the end of the connection."""


@dataclass
class Call:
    number: int
    body: dict
    headers: dict
    time: float
    path: str = ""

    @property
    def question(self):
        return self.body["messages"][-1]["content"]


def completion(*texts, finish="stop", usage=(10, 20), **message):
    """A chat completion body with one choice for each text."""
    choices = [{"index": i, "finish_reason": finish,
                "message": {"role": "assistant", "content": text, **message}}
               for i, text in enumerate(texts)]
    bill = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return json.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": choices,
                       "usage": bill}).encode()


def stream(thinking, answer, finish="stop", field_name="reasoning_content", pieces=4, done=True):
    """A stream of one choice as bytes; `finish` None leaves its end out."""
    def event(delta, reason=None):
        return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    def split(text):
        step = max(1, len(text) // pieces)
        return [text[i:i + step] for i in range(0, len(text), step)]

    events = [event({"role": "assistant", "content": ""})]
    events += [event({field_name: piece}) for piece in split(thinking or "")]
    events += [event({"content": piece}) for piece in split(answer)]
    events += [event({}, finish)] if finish else []
    events += [{"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 20}}]
    lines = [f"data: {json.dumps(e)}\n\n" for e in events] + (["data: [DONE]\n\n"] if done else [])
    return "".join(lines).encode()


class FaultServer:
    """Answers with `script(call) -> Answer` on `host`; `calls` holds what came."""

    def __init__(self, script, port=0, host="127.0.0.1"):
        self.script, self.calls, self.port, self.host = script, [], port, host
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()

    async def _serve(self, reader, writer):
        try:
            while line := await reader.readline():
                headers = await self._headers(reader)
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                path = line.split()[1].decode()
                if not await self._answer(writer, self._note(path, raw, headers)):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _headers(self, reader):
        headers = {}
        while (line := (await reader.readline()).strip()):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return headers

    def _note(self, path, raw, headers):
        body = json.loads(raw) if raw.startswith(b"{") else {"raw": raw}
        with self._lock:
            call = Call(len(self.calls), body, headers, time.monotonic(), path)
            self.calls.append(call)
        return call

    async def _answer(self, writer, call):
        """Send the scripted answer; False where the connection ends with it."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self.script(call)
            if answer.delay:
                await asyncio.sleep(answer.delay)
            head = {"Content-Type": "application/json", **answer.headers}
            if answer.length:
                head["Content-Length"] = len(answer.body)
            else:
                head["Connection"] = "close"
            lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
            writer.write(f"HTTP/1.1 {answer.status} X\r\n{lines}\r\n".encode())
            writer.write(answer.body[:answer.cut])
            await writer.drain()
            await asyncio.sleep(answer.linger)
            if answer.reset:
                writer.transport.abort()
            return answer.cut is None and answer.length and not answer.reset
        finally:
            self.in_flight -= 1

    async def _main(self):
        server = await asyncio.start_server(self._serve, self.host, self.port, backlog=4096,
                                            limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        self.loop = asyncio.get_running_loop()
        self.stop = asyncio.Event()
        self.ready.set()
        await self.stop.wait()
        server.close()

    @contextmanager
    def running(self):
        """The base_url of the server, which runs in a thread of its own meanwhile."""
        self.ready = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        thread.start()
        assert self.ready.wait(60)
        try:
            yield f"http://{self.host}:{self.port}/v1"
        finally:
            self.loop.call_soon_threadsafe(self.stop.set)
            thread.join(60)
