"""
A long run of every fault: `python -m tests.faults [--seed N] [--seconds 10] [--only NAME]…`.

It begins with a rolling restart and with cancels at random times (`--calls` of each), and ends with
`--volleys` rounds of several faults at once. It prints a line for each round and a table at the end.
The exit status is 1 if a guarantee was violated.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from tests.faults.cancelled_calls import cancel_calls
from tests.faults.deployment import Deployment, deployment
from tests.faults.faults import FAULTS, VOLLEY
from tests.faults.rounds import Round, rolling, strike, table

DISK, ROLLING, CANCELS = "disk full", "rolling restart", "cancels"


def main() -> None:
    """Read the options, and run."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seed", type=int, default=random.randrange(10**6))
    options.add_argument("--seconds", type=float, default=10.0, help="of traffic for each fault")
    options.add_argument("--calls", type=int, default=10_000)
    options.add_argument("--volleys", type=int, default=20)
    options.add_argument("--only", action="append", choices=[ROLLING, CANCELS, *FAULTS])
    given = options.parse_args()
    with small_disk() as disk:
        react(lambda _: Deferred.fromCoroutine(run(given, disk)))


@contextmanager
def small_disk() -> Iterator[Path | None]:
    """Mount a small tmpfs for PostgreSQL; yield None if this user may not mount."""
    place = Path(tempfile.mkdtemp(prefix="rowcast-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=False)
        place.rmdir()


async def run(given: Any, disk: Path | None) -> None:
    """Run the chosen rounds; exit with status 1 if one of them found something wrong."""
    print(f"seed {given.seed}", flush=True)
    rounds, broken = list[Round](), False
    async with deployment(disk) as running:
        for name in given.only or [ROLLING, CANCELS, *FAULTS, *[VOLLEY] * given.volleys]:
            if name == DISK and disk is None:
                print("disk full: left out, no disk can be mounted here")
                continue
            seed, half = given.seed + len(rounds), given.seconds / 2
            if name == CANCELS:
                broken |= not await cancels(running, seed, given.calls)
                continue
            if name == ROLLING:
                rounds.append(await rolling(running, seed, given.calls))
            else:
                rounds.append(await strike(running, name, seed, half, half))
            print(" · ".join(rounds[-1].cells()), *rounds[-1].wrong(), flush=True)
        for line in running.failures():
            print(f"in a log: {line}")
            broken = True
    print(table(rounds))
    if broken or any(each.wrong() for each in rounds):
        sys.exit(1)


async def cancels(running: Deployment, seed: int, calls: int) -> bool:
    """Cancel that many calls beside as many others; return whether all others were answered correctly."""
    found = await cancel_calls(running, seed, calls)
    print(
        f"cancels · {found.cancels} sent, their calls {dict(found.ends)} · of {found.uncancelled}"
        f" others {len(found.failed)} failed · {len(found.wrong)} writes wrong",
        *found.failed[:3],
        flush=True,
    )
    return not (found.failed or found.wrong)


if __name__ == "__main__":
    main()
