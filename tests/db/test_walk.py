"""A call with warm caches runs through few functions in few modules, so that a reader can follow it."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import ROOT

MOST_CALLS, MOST_FILES = 64, 16


def test_warm_get_is_few_calls_in_few_modules() -> None:
    """From the bytes of the call to those of its result, in all threads (`bench/walk.py`)."""
    command = [sys.executable, "-m", "bench.walk", "get"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    found = re.match(r"get +(\d+) calls .* in (\d+) files", done.stdout)
    assert found, done.stdout
    calls, files = map(int, found.groups())
    assert calls <= MOST_CALLS, done.stdout
    assert files <= MOST_FILES, done.stdout
