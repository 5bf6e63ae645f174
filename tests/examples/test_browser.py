"""The page of the browser example: built and used as its README says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import pytest_twisted
from twisted.internet.utils import getProcessOutputAndValue

from tests.conftest import ROOT, Router, execute
from tests.node import INSTALL, NODE
from tests.wamp import test_clients
from tests.wamp.service import served

EXAMPLE = ROOT / "examples" / "browser"
SCRIPT = Path(__file__).with_name("page.cjs")

node = test_clients.node


class Quiet(SimpleHTTPRequestHandler):
    """A web server without a log."""

    def log_message(self, format: str, *args: object) -> None:
        """Do nothing."""


@pytest.fixture
def page(node: str, tmp_path: Path) -> Iterator[str]:
    """Build the page and serve it; return its URL."""
    home = tmp_path / "examples" / "browser"
    shutil.copytree(EXAMPLE, home, ignore=shutil.ignore_patterns("node_modules", "built"))
    shutil.copytree(ROOT / "clients" / "javascript", tmp_path / "clients" / "javascript")
    if (EXAMPLE / "node_modules").is_dir():
        (home / "node_modules").symlink_to(EXAMPLE / "node_modules")
    else:
        npm(home, *INSTALL[1:])
    npm(home, "run", "build")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(home)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    thread.join()
    server.server_close()


def npm(home: Path, *words: str) -> None:
    """Run npm in a directory."""
    done = subprocess.run(
        ["npm", *words], cwd=home, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest_twisted.ensureDeferred
async def test_page_lists_adds_and_completes(
    page: str, node: str, migrated: str, router: Router
) -> None:
    """In jsdom, whose WebSocket sends the page's Origin as a browser does."""
    execute(migrated, "INSERT INTO actions (action, path) VALUES ('run', '/1')")
    environ = {"NODE_PATH": str(NODE / "node_modules"), "PATH": os.environ["PATH"]}
    async with served(migrated, router, app=("app",)):
        url = f"{page}?url={router.websocket}"
        out, err, status = await getProcessOutputAndValue(node, [str(SCRIPT), url], env=environ)
    assert status == 0, err.decode()
    assert json.loads(out) == {
        "state": "connected",
        "first": ["run /1"],
        "error": "action cannot be blank",
        "added": [["run /1", "ship /there"], ""],
        "left": ["ship /there"],
    }
    rows = execute(migrated, "SELECT path, status FROM actions ORDER BY id")
    assert rows == [("/1", True), ("/there", False)]
