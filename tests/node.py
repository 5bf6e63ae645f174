"""
Node, and what the tests take of npm.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

from tests.conftest import missing

NODE = Path(__file__).parent / "wamp" / "node"
INSTALL = ("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")


def program() -> str:
    """Find Node, which the tests need with npm; return its executable."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        missing("the tests of JavaScript need Node.js and npm → apt-get install nodejs npm")
    return found


def modules() -> Path:
    """Install the packages of the tests if they are not those of the lock file; return their folder."""
    program()
    folder, locked = NODE / "node_modules", NODE / "package-lock.json"
    done = folder / ".package-lock.json"
    with locked.open() as file:
        # Several processes run tests, and two installations at once spoil each other.
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists() or done.stat().st_mtime < locked.stat().st_mtime:
            subprocess.run(INSTALL, cwd=NODE, check=True, capture_output=True, timeout=100)
    return folder
