"""
Child processes that end with their parent, and directories in which their sockets fit.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from signal import Signals

import schema.with_parent

# `sun_path` has 104 bytes on the BSDs and 108 on Linux, including the terminating NUL.
LONGEST_SOCKET_PATH = 103


def bound_to_parent(command: list[str], signal: Signals, user: str = "") -> list[str]:
    """
    Return a command that runs another one, which gets a signal when this process ends, however it ends.

    The kernel sends the signal when the *thread* ends that started the command. So start it from the main
    thread: with a pool thread, the command would end as soon as the pool stops that thread.
    """
    program = [sys.executable, "-I", "-S", schema.with_parent.__file__]
    return [*program, str(os.getpid()), str(int(signal)), user, *command]


def socket_directory(wanted: Path, name: str) -> Path:
    """
    Return a directory in which a socket with this name fits: the wanted one, or one with a short path.

    The latter is below the system's temporary directory, is the same each time, and closed to other users.
    """
    if len(os.fsencode(wanted / name)) <= LONGEST_SOCKET_PATH:
        return wanted
    digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
    short = Path(tempfile.gettempdir()) / f"rowcast-{os.getuid()}-{digest}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.is_symlink() or os.getuid() not in (0, short.stat().st_uid):
        raise PermissionError(f"{short} belongs to another user")
    return short
