"""Which requests go through a proxy that the environment names: none to this machine."""

from __future__ import annotations

import os
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def keep_loopback_direct(*addresses: str) -> None:
    """Extend NO_PROXY by this machine's names: a proxy elsewhere cannot reach a server here.

    Every client reads it, those of libraries and of processes started from here too.
    """
    if not getproxies():
        return
    hosts = {urlsplit(address).hostname or "" for address in addresses}
    local = (*LOOPBACK, *sorted(host for host in hosts if is_loopback(host)))
    for name in ("no_proxy", "NO_PROXY"):       # libraries differ in which they read first
        known = os.environ.get(name) or os.environ.get(name.swapcase(), "")
        if known.strip() != "*":
            listed = [host.strip() for host in known.split(",") if host.strip()]
            os.environ[name] = ",".join(dict.fromkeys([*listed, *local]))


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine."""
    return host in LOOPBACK or host.startswith("127.") or host.endswith(".localhost")


def proxy_of(address: str) -> str | None:
    """The proxy that a request to `address` goes through, without its password; None if none."""
    parts, known = urlsplit(address), getproxies()
    proxy = known.get(parts.scheme) or known.get("all")
    host = parts.hostname or ""
    if not proxy or is_loopback(host) or proxy_bypass(host):
        return None
    found = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return urlunsplit((found.scheme, found.netloc.rpartition("@")[2], "", "", ""))
