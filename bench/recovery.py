"""
The outage that callers see when the embedded router is killed: `python -m bench.recovery`.

Runs all parts embedded, kills the router with SIGKILL, and prints for each round the seconds until a
call is answered again, and the errors that callers received until then.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.conftest import ROOT, free_port
from tests.wamp.programs import program
from tests.wamp.raw import refusals


def main() -> None:
    """Kill the router and wait for recovery, several times."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--rest", type=float, default=12.0, help="seconds between rounds")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="rowcast-recovery-") as home:
        environ = {
            "HOME": home,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "ROWCAST_STATE": str(Path(home) / "state"),
            "ROWCAST_CROSSBAR": str(ROOT / ".venv-router/bin/crossbar"),
            "PORT": str(free_port()),
        }
        with program(environ, sys.executable, "-m", "service", "run") as service:
            service.says("ready")
            for _ in range(chosen.rounds):
                time.sleep(chosen.rest)
                began, ended = time.monotonic(), []
                for child in psutil.Process(service.pid).children():
                    if "crossbar" in " ".join(child.cmdline()):
                        ended = [child, *child.children()]
                        child.kill()
                # The worker outlives the node and still answers calls for a short time.
                psutil.wait_procs(ended)
                errors = refusals(int(environ["PORT"]), "rowcast.actions.count")
                print(f"answer after {time.monotonic() - began:.1f} s, before it {dict(errors)}")


if __name__ == "__main__":
    main()
