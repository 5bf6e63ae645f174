"""The cost of calls in echoes through the same router: `bench/calls.py` with a baseline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

from tests.conftest import ROOT


def test_cost_of_calls_in_echoes_is_about_that_of_the_baseline() -> None:
    """The cost is the CPU time of service, router and PostgreSQL, in the best of some short runs."""
    # Where coverage is measured, it would count as the service's work, and not as the echo's.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-m", "bench.calls", "--check"]
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as bench:  # fmt: skip
        try:
            said, _ = bench.communicate(timeout=240)
        finally:
            with suppress(ProcessLookupError):  # its child processes, if it has timed out
                os.killpg(bench.pid, signal.SIGKILL)
    assert bench.returncode == 0, said
