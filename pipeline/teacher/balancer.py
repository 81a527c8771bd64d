"""Which of several servers of one model takes the next request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import httpx2

# A dead server fails at once, so without a cooldown it would have the fewest requests in flight
# and draw them all.
COOLDOWN_SECONDS = 30.0


@dataclass
class Server:
    """One address, its samples in flight, and until when it comes last (0: it is healthy)."""

    url: httpx2.URL
    in_flight: int = 0
    cooldown_until: float = 0.0

    def cool_down(self) -> None:
        self.cooldown_until = time.monotonic() + COOLDOWN_SECONDS


class LoadBalancer:
    """Sends to the server with the fewest samples in flight, so none idles while another queues."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self.servers = [Server(httpx2.URL(address.rstrip("/") + "/chat/completions"))
                        for address in addresses]

    @contextmanager
    def least_busy(self, samples: int) -> Iterator[Server]:
        """Yield the server to ask; `samples` count as in flight there until the block ends."""
        now = time.monotonic()
        server = min(self.servers, key=lambda known: (known.cooldown_until > now, known.in_flight))
        server.in_flight += samples
        try:
            yield server
            server.cooldown_until = 0.0
        except (httpx2.HTTPError, aiohttp.ClientError, OSError, asyncio.CancelledError):
            # An attempt that is out of time is cancelled.
            server.cool_down()
            raise
        finally:
            server.in_flight -= samples

    def all_failed(self) -> bool:
        """Whether every server failed just now."""
        return all(server.cooldown_until > time.monotonic() for server in self.servers)

    def notes(self) -> list[str]:
        """One sentence for each server that stopped responding while others did not."""
        failed = [server.url for server in self.servers if server.cooldown_until]
        if len(failed) == len(self.servers):
            return []
        return [f"server {url.host}:{url.port} stopped responding; its requests went to the others"
                for url in failed]
