"""
What is done to the processes and the connections between them.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM

import psutil
from twisted.internet.defer import Deferred, gatherResults

from service.changes.leader import LEASE
from tests.deferreds import pause
from tests.faults.house import House, Part, send
from tests.faults.proxy import Proxy

Fault = Callable[[House, random.Random], Awaitable[None]]
FAULTS: dict[str, Fault] = {}
"""By name; each returns when it is over, a killed process aside: that is started again."""
STALL = 2.0
"""Seconds that something stands still."""
SEVERAL, VOLLEY = "several, one after another", "several, one upon another"
LONG = LEASE + 2.0
"""Seconds after which another service leads in place of one that stands still."""


def fault(name: str) -> Callable[[Fault], Fault]:
    """Name a fault."""

    def add(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return add


@fault("none")
async def nothing(house: House, chance: random.Random) -> None:
    """Do nothing."""


@fault("service: kill -9")
async def kill_service(house: House, chance: random.Random) -> None:
    """Kill one service."""
    chance.choice(house.services).signal(SIGKILL)


@fault("both services: kill -9")
async def kill_services(house: House, chance: random.Random) -> None:
    """Kill both."""
    for each in house.services:
        each.signal(SIGKILL)


@fault("service: SIGTERM")
async def stop_service(house: House, chance: random.Random) -> None:
    """Stop one service in order."""
    chance.choice(house.services).signal(SIGTERM)


@fault("service: SIGSTOP")
async def freeze_service(house: House, chance: random.Random) -> None:
    """Let one service stand still."""
    await freeze(chance.choice(house.services))


@fault("leader: kill -9")
async def kill_leader(house: House, chance: random.Random) -> None:
    """Kill the service that publishes."""
    house.leader().signal(SIGKILL)


@fault("leader: SIGSTOP for long")
async def freeze_leader(house: House, chance: random.Random) -> None:
    """Let the service that publishes stand still until it has long been replaced."""
    await freeze(house.leader(), LONG)


@fault("router: kill -9")
async def kill_router(house: House, chance: random.Random) -> None:
    """Kill the router."""
    house.crossbar.signal_all(SIGKILL)


@fault("router: SIGTERM")
async def stop_router(house: House, chance: random.Random) -> None:
    """Stop the router in order."""
    house.crossbar.signal(SIGTERM)


@fault("router: SIGSTOP")
async def freeze_router(house: House, chance: random.Random) -> None:
    """Let the router stand still."""
    await freeze(house.crossbar)


@fault("backend: kill -9")
async def kill_backend(house: House, chance: random.Random) -> None:
    """Kill one server process, upon which PostgreSQL ends all and recovers."""
    # Not asked of PostgreSQL, which may be down or stand still by another fault.
    found = [each for each in house.postgres.processes() if _is_backend(each)]
    if found:
        send([chance.choice(found)], SIGKILL)


def _is_backend(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any("postgres: postgres postgres" in each for each in process.cmdline())
    return False


@fault("postmaster: kill -9")
async def kill_postmaster(house: House, chance: random.Random) -> None:
    """Kill the postmaster."""
    house.postgres.signal(SIGKILL)


@fault("PostgreSQL: restart")
async def restart_postgres(house: House, chance: random.Random) -> None:
    """Stop PostgreSQL in mode fast."""
    house.postgres.signal(SIGINT)


@fault("PostgreSQL: SIGSTOP")
async def freeze_postgres(house: House, chance: random.Random) -> None:
    """Let PostgreSQL stand still, all of it."""
    await freeze(house.postgres)


async def freeze(part: Part, seconds: float = STALL) -> None:
    """Let a part stand still for a while."""
    stopped = part.processes()  # others may be there afterwards, by another fault
    send(stopped, SIGSTOP)
    await pause(seconds)
    send(stopped, SIGCONT)


def _cut(name: str, wire: Callable[[House], Proxy]) -> None:
    async def cut(house: House, chance: random.Random) -> None:
        for _ in range(3):
            wire(house).cut()
            await pause(chance.uniform(0.05, 0.3))

    async def stall(house: House, chance: random.Random) -> None:
        wire(house).stall()
        await pause(STALL)
        wire(house).flow()

    async def stall_then_cut(house: House, chance: random.Random) -> None:
        wire(house).stall()
        await pause(STALL)
        wire(house).cut()
        wire(house).flow()

    async def trickle(house: House, chance: random.Random) -> None:
        wire(house).trickle()
        await pause(STALL)
        wire(house).flow()

    fault(f"{name}: cut")(cut)
    fault(f"{name}: stalled")(stall)
    fault(f"{name}: stalled, cut")(stall_then_cut)
    fault(f"{name}: byte by byte")(trickle)


_cut("clients", lambda house: house.clients)
_cut("services", lambda house: house.links)
_cut("database", lambda house: house.wires)


@fault("database: cut in COMMIT")
async def cut_in_commit(house: House, chance: random.Random) -> None:
    """Cut each connection that commits, once PostgreSQL has got the COMMIT."""
    house.wires.trap = b"COMMIT"
    await pause(STALL)
    house.wires.trap = b""


@fault("disk full")
async def fill_disk(house: House, chance: random.Random) -> None:
    """Fill the disk of PostgreSQL: only where that is one of its own."""
    path = house.home / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
        await pause(STALL)
    with suppress(FileNotFoundError):
        path.unlink()


def _others() -> list[str]:
    return [name for name in FAULTS if name not in {"none", "disk full", SEVERAL, VOLLEY}]


@fault(SEVERAL)
async def several(house: House, chance: random.Random) -> None:
    """Do five of the others, whether what is broken by one is up again at the next or not."""
    for name in chance.sample(_others(), 5):
        await FAULTS[name](house, chance)
        await pause(chance.uniform(0, 3))


@fault(VOLLEY)
async def volley(house: House, chance: random.Random) -> None:
    """Begin some, of a kind or a few, each while those before it go on or what they broke comes back."""
    kinds = chance.sample(_others(), chance.randint(1, 3))
    begun = []
    for _ in range(chance.randint(2, 5)):
        begun.append(Deferred.fromCoroutine(FAULTS[chance.choice(kinds)](house, chance)))
        await pause(chance.uniform(0, chance.choice((0.3, 0.3, 3.0))))
    await gatherResults(begun)
