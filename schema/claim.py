"""
A lock on something that only one process at a time may hold.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Claim:
    """
    A lock on a file (flock) with the holder's name; the kernel releases it when the holder dies.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self, holder: str) -> bool:
        """Lock the file if it is free; return whether this object holds the lock now."""
        if self._descriptor is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder} (pid {os.getpid()})".encode(), 0)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Unlock the file, if this object holds the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> str:
        """Return the name and process id of the last holder; "" if there never was one."""
        try:
            return self._path.read_text()
        except FileNotFoundError:
            return ""

    def held(self) -> str:
        """Return the name and process id of the present holder, if it is another; "" if there is none."""
        if self._descriptor is not None or not self._path.exists():
            return ""
        if self.take("a look"):
            self.release()
            return ""
        return self.holder()
