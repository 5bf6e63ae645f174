"""Child processes that end with their parent, and paths of sockets."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from schema.child import LONGEST_SOCKET_PATH, bound_to_parent, socket_directory

PARENT = """
import subprocess, sys, time
from signal import SIGTERM
from schema.child import bound_to_parent
child = subprocess.Popen(bound_to_parent([sys.executable, "-c", "input()"], SIGTERM), stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_child_of_a_killed_parent_ends() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        descriptor = os.pidfd_open(child)
        parent.kill()
        ends(descriptor)


def ends(descriptor: int) -> None:
    """Wait until a process has ended."""
    ended, _, _ = select.select([descriptor], [], [], 10)
    os.close(descriptor)
    assert ended


def test_child_of_a_terminal_has_its_own_session() -> None:
    """Ctrl-C does not reach it; its output is passed on."""
    command = [sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"]
    told = subprocess.run(bound_to_parent(command, signal.SIGTERM), capture_output=True, check=True)
    assert told.stdout == b"True\n"


def test_child_of_a_dead_parent_does_not_begin() -> None:
    """The parent has ended before the child could ask for its signal."""
    command = bound_to_parent(["/bin/true"], signal.SIGTERM)
    command[4] = "1"
    assert subprocess.run(command, check=False).returncode == 3


def test_socket_directory_of_a_short_path_is_that_path() -> None:
    wanted = Path("/run/rowcast")
    assert socket_directory(wanted, "s") == wanted


def test_long_paths_get_a_short_one(tmp_path: Path) -> None:
    """It is the same each time, and accessible by its owner only."""
    wanted = tmp_path / ("x" * 120)
    short = socket_directory(wanted, "service.sock")
    try:
        assert len(str(short / "service.sock")) <= LONGEST_SOCKET_PATH
        assert socket_directory(wanted, "service.sock") == short
        assert short.stat().st_mode & 0o777 == 0o700
    finally:
        short.rmdir()


def test_link_in_place_of_the_short_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp(dir="/tmp"))
    wanted = tmp_path / ("x" * 120)
    short = socket_directory(wanted, "s")
    short.rmdir()
    short.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        socket_directory(wanted, "s")
    shutil.rmtree(tempfile.gettempdir())
