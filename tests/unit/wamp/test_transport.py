"""Routers are found by their URLs."""

from __future__ import annotations

import pytest

from service.wamp.transport import Router


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
def test_from_url(url: str, found: tuple[str, str, int, str]) -> None:
    """Each scheme says where the router is."""
    router = Router.from_url(url)
    assert (router.scheme, router.host, router.port, router.path) == found
    assert router.url == url


@pytest.mark.parametrize("url", ["", "http://h", "ws:", "rs://", "unix:", "h:8080"])
def test_not_a_url(url: str) -> None:
    """What is no router's URL is refused with what is."""
    with pytest.raises(ValueError, match="unix:"):
        Router.from_url(url)
