"""What a call costs, in echoes at the same router: `bench/calls.py` with a baseline."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_calls_beside_an_echo_cost_about_what_they_did() -> None:
    """By the CPU of service, router and PostgreSQL, in the quietest of some short turns."""
    # Where coverage is measured, it would count as the service's work, and not as the echo's.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-m", "bench.calls", "--check"]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
