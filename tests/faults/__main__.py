"""
Every fault, for longer: `python -m tests.faults [--seed N] [--seconds 10] [--only NAME]…`.

Before them a rolling restart, and cancels at random moments (`--calls` of each); after them as many
rounds again of several faults at once as `--volleys` says. Prints a line for each, and at the end the
table; the status is 1 if a promise was broken.
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

from tests.faults.faults import FAULTS, VOLLEY
from tests.faults.house import House, house
from tests.faults.rounds import Round, rolling, strike, table
from tests.faults.storm import storm

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
    """Mount a disk of its own for PostgreSQL, where that is allowed."""
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
    """Run each fault."""
    print(f"seed {given.seed}", flush=True)
    rounds, broken = list[Round](), False
    async with house(disk) as running:
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


async def cancels(running: House, seed: int, calls: int) -> bool:
    """Cancel so many calls among as many others; return whether none of those had harm."""
    found = await storm(running, seed, calls)
    print(
        f"cancels · {found.cancels} sent, their calls {dict(found.ends)} · of {found.innocent}"
        f" others {len(found.failed)} failed · {len(found.wrong)} writes wrong",
        *found.failed[:3],
        flush=True,
    )
    return not (found.failed or found.wrong)


if __name__ == "__main__":
    main()
