"""Which of several servers of one model takes the next request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import httpx2

SHUN_SECONDS = 30.0
"""A server that failed comes last for so long, or until it answers. A dead one fails at once, so it
would have the fewest requests in flight and draw them all."""


@dataclass
class Server:
    """One address, the samples asked of it now, and until when it comes last (0: it is well)."""

    url: httpx2.URL
    in_flight: int = 0
    shunned: float = 0.0

    def fails(self) -> None:
        self.shunned = time.monotonic() + SHUN_SECONDS


class LoadBalancer:
    """Sends to the server with the fewest samples in flight, so none idles while another queues."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self.servers = [Server(httpx2.URL(address.rstrip("/") + "/chat/completions"))
                        for address in addresses]

    @contextmanager
    def freest(self, samples: int) -> Iterator[Server]:
        """The server to ask, which has them in flight while the block lasts."""
        now = time.monotonic()
        server = min(self.servers, key=lambda one: (one.shunned > now, one.in_flight))
        server.in_flight += samples
        try:
            yield server
            server.shunned = 0.0
        except (httpx2.HTTPError, aiohttp.ClientError, OSError, asyncio.CancelledError):
            # An attempt that is out of time is cancelled.
            server.fails()
            raise
        finally:
            server.in_flight -= samples

    def none_left(self) -> bool:
        """Whether every server failed just now."""
        return all(server.shunned > time.monotonic() for server in self.servers)

    def notes(self) -> list[str]:
        """A sentence for each server that failed to the end while others did not."""
        lost = [server.url for server in self.servers if server.shunned]
        if len(lost) == len(self.servers):
            return []
        return [f"the server on port {url.port} of {url.host} answered no more; the others took "
                "its requests" for url in lost]
