"""
Where a router is, as its URL says it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

PORTS = {"rs": 8080, "rss": 8443, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """
    One address of a router.

    Args:
        url: As it was set, for the log.
        scheme: "rs", "rss", "ws", "wss" or "unix".
        host: Of the TCP schemes.
        port: Of the TCP schemes.
        path: The socket's, for "unix".
    """

    url: str
    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def from_url(cls, url: str) -> Self:
        """
        Read `ws://host:port/path`, `wss://`, `rs://host:port`, `rss://` or `unix:path`.

        Raises:
            ValueError: It is none of these.
        """
        scheme, _, rest = url.partition(":")
        path = rest.removeprefix("//")
        if scheme == "unix" and path:
            return cls(url, scheme, path=path)
        host, port = _place(url)
        if scheme not in PORTS or not host:
            raise ValueError("should be ws://, wss://, rs://, rss:// and a host, or unix:path")
        port = PORTS[scheme] if port is None else port
        if not 0 < port < 65536:
            raise ValueError("should have a port from 1 to 65535")
        return cls(url, scheme, host, port)


def _place(url: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "", None
    try:
        return host, parts.port
    except ValueError:  # not a number, or too large
        return host, 0
