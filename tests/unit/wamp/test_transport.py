"""Endpoints of router URLs."""

from __future__ import annotations

import pytest

from service.wamp.client import RouterAddress


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("ws://h/ws", ("ws", "h", 80, "")),
        ("wss://h:9/ws", ("wss", "h", 9, "")),
        ("rs://127.0.0.1:8080", ("rs", "127.0.0.1", 8080, "")),
        ("rss://[::1]:1", ("rss", "::1", 1, "")),
        ("unix:/run/router.sock", ("unix", "", 0, "/run/router.sock")),
        ("unix:///run/router.sock", ("unix", "", 0, "/run/router.sock")),
    ],
)
def test_url_of_a_router_gives_its_address(url: str, found: tuple[str, str, int, str]) -> None:
    router = RouterAddress.from_url(url)
    assert (router.scheme, router.host, router.port, router.path) == found
    assert router.url == url


@pytest.mark.parametrize(
    "url", ["", "http://h", "ws:", "rs://", "unix:", "unix://", "h:8080", "WS://h", "ws://[::1"]
)
def test_url_of_no_router_is_refused(url: str) -> None:
    """The error lists the valid schemes."""
    with pytest.raises(ValueError, match="unix:"):
        RouterAddress.from_url(url)


@pytest.mark.parametrize("port", ["0", "99999", "http", "-1"])
def test_port_out_of_range_is_refused(port: str) -> None:
    with pytest.raises(ValueError, match="port from 1 to 65535"):
        RouterAddress.from_url(f"ws://h:{port}/ws")
