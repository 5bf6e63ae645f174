"""The live lists of the examples: in a browser and in Python, while other clients write."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.utils import getProcessOutputAndValue

from service.app import Serving
from service.waiting import in_thread
from tests.conftest import ROOT, Router, execute, missing, wait_until
from tests.deferreds import pause
from tests.examples import test_browser
from tests.wamp import test_clients
from tests.wamp.programs import Program, program, tool
from tests.wamp.service import served

node, page = test_clients.node, test_browser.page
LIVE = ROOT / "examples" / "live"
KITS = ROOT / "clients" / "python"


@pytest_twisted.async_yield_fixture
async def service(migrated: str, router: Router) -> AsyncIterator[Serving]:
    execute(migrated, "TRUNCATE actions RESTART IDENTITY")
    execute(migrated, "INSERT INTO actions (action, path) VALUES ('run', '/1')")
    async with served(migrated, router, app=("app",)) as serving:
        yield serving


async def psql(dsn: str) -> None:
    """Run a statement with psql, as the README says."""
    words = [dsn, "-v", "ON_ERROR_STOP=1", "-f", str(LIVE / "write.sql")]
    _, err, status = await getProcessOutputAndValue(tool("psql"), words, env=dict(os.environ))
    assert status == 0, err.decode()


def printed(output: str) -> list[str]:
    return [line for line in output.splitlines() if " to do: " in line]


@pytest_twisted.ensureDeferred
async def test_python_list_is_printed_again_for_each_commit(
    migrated: str, service: Serving, router: Router, tmp_path: Path
) -> None:
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(KITS)}
    with program(environ, sys.executable, str(LIVE / "watch.py"), router.websocket) as watching:

        async def says(line: str) -> None:
            for _ in range(300):
                if line in printed(watching.output):
                    return
                await pause(0.05)
            raise AssertionError(watching.output)

        await says("1 to do: run /1")
        await psql(migrated)
        await says("3 to do: run /1, restart /srv/app, verify /srv/app")


def test_examples_are_as_short_as_documented() -> None:
    def lines(path: Path) -> int:
        return sum(bool(line.strip()) for line in path.read_text("utf-8").splitlines())

    assert lines(ROOT / "examples" / "browser" / "live.js") <= 30
    assert lines(LIVE / "watch.py") <= 20


class DevTools(WebSocketClientProtocol):
    """A connection to Chromium's DevTools for one page: evaluates expressions in the page."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: Deferred[DevTools] = Deferred()
        self._asked: dict[int, Deferred[Any]] = {}
        self._number = 0

    def onOpen(self) -> None:
        """Report that it is open."""
        self.opened.callback(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Receive a result."""
        found = json.loads(payload)
        if found.get("id") in self._asked:
            self._asked.pop(found["id"]).callback(found["result"]["result"].get("value"))

    def evaluate(self, expression: str) -> Deferred[Any]:
        """Return the value of an expression in the page."""
        self._number += 1
        number = self._number
        self._asked[number] = Deferred()
        params = {"expression": expression, "returnByValue": True}
        message = {"id": number, "method": "Runtime.evaluate", "params": params}
        self.sendMessage(json.dumps(message).encode())
        return self._asked[number]

    async def shows(self, expression: str, value: Any) -> None:
        """Wait until an expression comes to a value."""
        found = None
        for _ in range(300):
            found = await self.evaluate(expression)
            if found == value:
                return
            await pause(0.05)
        page = await self.evaluate("document.body.innerText")
        raise AssertionError(f"{expression}: {found}, in a page of {page}")


LISTED = "[...document.getElementById('actions').children].map((e) => e.firstChild.data.trim())"
ADD = """
document.getElementById('action').value = 'ship'; document.getElementById('path').value = '/there';
document.querySelector('#new button').click()
"""


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Path]:
    """Run a headless browser; return its profile directory."""
    found = shutil.which("chromium")
    if found is None:
        missing("the tests of the live page need Chromium → apt-get install chromium")
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    words += ["--remote-debugging-port=0", f"--user-data-dir={tmp_path / 'profile'}"]
    with program(environ, str(found), *words, "about:blank") as started:
        wait_for_port(started, tmp_path / "profile")
        yield tmp_path / "profile"


def wait_for_port(started: Program, profile: Path) -> None:
    there = profile / "DevToolsActivePort"
    wait_until(lambda: there.exists() and there.read_text().strip(), 90, lambda: started.output)


async def opened(profile: Path, url: str) -> DevTools:
    """Open a page in the browser."""
    port = int((profile / "DevToolsActivePort").read_text().split()[0])
    target = await in_thread(reactor, "http", _opened, port, url)
    factory = WebSocketClientFactory(target["webSocketDebuggerUrl"])
    factory.protocol = DevTools
    tools: DevTools = await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)
    return await tools.opened


def _opened(port: int, url: str) -> Any:
    asked = Request(f"http://127.0.0.1:{port}/json/new?{quote(url, safe='')}", method="PUT")
    with urlopen(asked, timeout=60) as answer:
        return json.load(answer)


@pytest_twisted.ensureDeferred
async def test_page_shows_rows_written_by_any_client(
    page: str, chromium: Path, migrated: str, service: Serving, router: Router
) -> None:
    """In Chromium: rows written by psql and by the page itself, and an error."""
    url = f"{page.replace('index.html', 'live.html')}?url={router.websocket}"
    tools = await opened(chromium, url)
    await tools.shows(LISTED, ["run /1"])
    await tools.shows("document.getElementById('state').textContent", "open")
    await psql(migrated)
    after = ["run /1", "restart /srv/app", "verify /srv/app"]
    await tools.shows(LISTED, after)
    await tools.evaluate(ADD)
    await tools.shows(LISTED, [*after, "ship /there"])
    await tools.evaluate("document.querySelector('#actions button').click()")
    await tools.shows(LISTED, [*after[1:], "ship /there"])
    await tools.evaluate(ADD.replace("'ship'", "' '"))
    refused = "document.getElementById('error').textContent"
    await tools.shows(f"{refused}.startsWith('rowcast.error.invalid_row')", True)
    await tools.shows(LISTED, [*after[1:], "ship /there"])
    rows = execute(migrated, "SELECT path FROM actions WHERE NOT status ORDER BY id")
    assert rows == [("/srv/app",), ("/srv/app",), ("/there",)]
    with suppress(Exception):
        tools.sendClose()
