"""
Web pages of other origins cannot reach the database through a user's browser.
"""

from __future__ import annotations

import json
import stat
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.embedded.crossbar import FILE, bridge
from tests.conftest import ROOT, Router

ELSEWHERE = "https://elsewhere.example"
BODY = json.dumps({"procedure": "rowcast.health"})


def asked(router: Router, method: str, path: str, **headers: str) -> tuple[int, dict[str, str]]:
    """Send a request as a page of another origin does; return the status and the headers."""
    with closing(HTTPConnection("127.0.0.1", router.port, timeout=10)) as connection:
        connection.request(method, path, BODY, {"Origin": ELSEWHERE} | headers)
        with connection.getresponse() as answer:
            answer.read()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}


@pytest.mark.parametrize("path", ["/", "/call", "/call-", "/ws", "/../call-for-test"])
@pytest.mark.parametrize("method", ["OPTIONS", "POST", "PUT"])
def test_call_of_a_web_page_finds_no_bridge(router: Router, method: str, path: str) -> None:
    """No path that a page could know answers calls or reveals the bridge."""
    status, headers = asked(router, method, path, **{"Content-Type": "application/json"})
    assert status >= 400
    assert "access-control-allow-origin" not in headers


def test_websocket_of_a_foreign_page_is_refused(router: Router) -> None:
    """The WebSocket accepts only pages from this machine."""
    shake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol": "wamp.2.json",
    }
    assert asked(router, "GET", "/ws", **shake)[0] >= 400
    assert asked(router, "GET", "/ws", **shake | {"Origin": "http://localhost:3000"})[0] == 101


def test_call_by_the_secret_path_is_answered(router: Router) -> None:
    """The bridge answers on its secret path."""
    assert asked(router, "POST", urlsplit(router.http).path)[0] == 200


def test_path_of_the_bridge_is_random_private_and_kept(tmp_path: Path) -> None:
    """The path is random, its file is readable by its owner only, and it stays the same."""
    path = bridge(tmp_path / "a")
    assert len(path) >= len("call-") + 32
    assert bridge(tmp_path / "a") == path != bridge(tmp_path / "b")
    file = tmp_path / "a" / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == path


def test_world_readable_path_file_is_written_again(tmp_path: Path) -> None:
    """A file that others may read, or an empty one, is written again."""
    path = bridge(tmp_path)
    (tmp_path / FILE).chmod(0o644)
    other = bridge(tmp_path)
    (tmp_path / FILE).write_text("")
    assert len({path, other, bridge(tmp_path)}) == 3
    assert [each.name for each in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("name", ["development", "production"])
def test_pages_in_router_have_no_bridge(name: str) -> None:
    """The example configurations do not accept all origins."""
    config = json.loads((ROOT / "router" / f"{name}.json").read_text("utf-8"))
    transports = config["workers"][0]["transports"]
    assert not any("web" in transport for transport in transports)
    sockets = [each["websocket"]["ws"]["options"] for each in transports if "websocket" in each]
    assert all("*" not in each["allowed_origins"] for each in sockets)
    assert not any(each["allow_null_origin"] for each in sockets)
