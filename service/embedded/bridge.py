"""
The path of the embedded router's HTTP bridge, which nobody can guess.

Crossbar's bridge answers pages of every origin, with credentials, and cannot be told otherwise.
So any page could use the database of whoever reads it, if it knew where to send its calls.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

FILE = "bridge"


def bridge(state: Path) -> str:
    """Give the path, without the slash before it; the same at each start."""
    file = state / FILE
    with suppress(FileNotFoundError):
        # One that others could have read, or that was not written to its end, is drawn anew.
        known = file.read_text().strip()
        if known and not file.stat().st_mode & 0o077:
            return known
    state.mkdir(parents=True, exist_ok=True)
    path = f"call-{secrets.token_urlsafe(24)}"
    new = file.with_name(f"{FILE}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        written.write(path)
    new.rename(file)
    return path
