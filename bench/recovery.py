"""
How long callers are without answers when the embedded router is killed: `python -m bench.recovery`.

Runs everything embedded, kills the router as `kill -9` does, and prints for each round the seconds
until a call is answered again, with the errors that callers got before it.
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
    """Kill and wait, a few times."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--rest", type=float, default=12.0, help="seconds between two rounds")
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
                psutil.wait_procs(ended)  # the worker answers for a moment longer
                errors = refusals(int(environ["PORT"]), "rowcast.actions.count")
                print(f"answer after {time.monotonic() - began:.1f} s, before it {dict(errors)}")


if __name__ == "__main__":
    main()
