"""
Children of ours: how to start one so that it ends with us, and where its sockets fit.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from signal import Signals

import schema.with_parent

# `sun_path` holds 104 bytes on the BSDs and 108 on Linux, with its closing zero.
LONGEST_SOCKET_PATH = 103


def bound_to_parent(command: list[str], signal: Signals, user: str = "") -> list[str]:
    """
    Return a command that runs another, which gets a signal when this process ends, however it ends.

    The signal is sent when the calling *thread* ends: start the command from the main thread, for
    a thread of a pool that ends would end the command with it.
    """
    program = [sys.executable, "-I", "-S", schema.with_parent.__file__]
    return [*program, str(os.getpid()), str(int(signal)), user, *command]


def socket_directory(wanted: Path, name: str) -> Path:
    """
    Find a directory in which a socket of this name fits: the wanted one, or a short one.

    The short one lies below the system's temporary directory, is the same each time, and is
    closed to other users.
    """
    if len(os.fsencode(wanted / name)) <= LONGEST_SOCKET_PATH:
        return wanted
    digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
    short = Path(tempfile.gettempdir()) / f"rowcast-{os.getuid()}-{digest}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.is_symlink() or os.getuid() not in (0, short.stat().st_uid):
        raise PermissionError(f"{short} belongs to another user")
    return short
