"""
Node.js, and the npm packages of the tests.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

from twisted.internet import reactor

from service.waiting import in_thread
from tests.conftest import missing

NODE = Path(__file__).parent / "wamp" / "node"
INSTALL = ("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")


def program() -> str:
    """Return the path of Node's executable; without Node or npm, skip the test (in CI, fail it)."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        missing("the tests of JavaScript need Node.js and npm → apt-get install nodejs npm")
    return found


def modules() -> Path:
    """Install the npm packages if they are older than the lock file; return their directory."""
    program()
    folder, locked = NODE / "node_modules", NODE / "package-lock.json"
    done = folder / ".package-lock.json"
    with locked.open() as file:
        # Tests run in several processes, and concurrent installations corrupt each other.
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists() or done.stat().st_mtime < locked.stat().st_mtime:
            subprocess.run(INSTALL, cwd=NODE, check=True, capture_output=True, timeout=100)
    return folder


async def install() -> None:
    """Install the npm packages in a thread: the router drops callers whose reactor is blocked."""
    program()
    await in_thread(reactor, "npm", modules)
