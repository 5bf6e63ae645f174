"""
The faults: signals to processes, and disturbed connections between them.
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
from tests.faults.deployment import Deployment, Part, send
from tests.faults.proxy import Proxy

Fault = Callable[[Deployment, random.Random], Awaitable[None]]
FAULTS: dict[str, Fault] = {}
"""
The faults by name. Each returns when its fault is over, except that a killed process may still be down:
the deployment starts it again.
"""
STALL = 2.0
"""Seconds for which a process is stopped or a connection stalled."""
SEVERAL, VOLLEY = "several, one after another", "several, one upon another"
LONG = LEASE + 2.0
"""Seconds for which the leader is stopped, so that its lease expires and another service leads."""


def fault(name: str) -> Callable[[Fault], Fault]:
    """Return a decorator that registers a fault under a name."""

    def add(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return add


@fault("none")
async def nothing(deployment: Deployment, chance: random.Random) -> None:
    """Do nothing."""


@fault("service: kill -9")
async def kill_service(deployment: Deployment, chance: random.Random) -> None:
    """Kill one service."""
    chance.choice(deployment.services).signal(SIGKILL)


@fault("both services: kill -9")
async def kill_services(deployment: Deployment, chance: random.Random) -> None:
    """Kill both services."""
    for each in deployment.services:
        each.signal(SIGKILL)


@fault("service: SIGTERM")
async def stop_service(deployment: Deployment, chance: random.Random) -> None:
    """Shut down one service gracefully."""
    chance.choice(deployment.services).signal(SIGTERM)


@fault("service: SIGSTOP")
async def freeze_service(deployment: Deployment, chance: random.Random) -> None:
    """Suspend one service."""
    await freeze(chance.choice(deployment.services))


@fault("leader: kill -9")
async def kill_leader(deployment: Deployment, chance: random.Random) -> None:
    """Kill the leader, which publishes changes."""
    deployment.leader().signal(SIGKILL)


@fault("leader: SIGSTOP for long")
async def freeze_leader(deployment: Deployment, chance: random.Random) -> None:
    """Suspend the leader until after another service has taken the lead."""
    await freeze(deployment.leader(), LONG)


@fault("router: kill -9")
async def kill_router(deployment: Deployment, chance: random.Random) -> None:
    """Kill the router."""
    deployment.crossbar.signal_all(SIGKILL)


@fault("router: SIGTERM")
async def stop_router(deployment: Deployment, chance: random.Random) -> None:
    """Shut down the router gracefully."""
    deployment.crossbar.signal(SIGTERM)


@fault("router: SIGSTOP")
async def freeze_router(deployment: Deployment, chance: random.Random) -> None:
    """Suspend the router."""
    await freeze(deployment.crossbar)


@fault("backend: kill -9")
async def kill_backend(deployment: Deployment, chance: random.Random) -> None:
    """Kill one server process, so that PostgreSQL ends all others and recovers."""
    # Found by psutil, not by a query: another fault may have stopped PostgreSQL.
    found = [each for each in deployment.postgres.processes() if _is_backend(each)]
    if found:
        send([chance.choice(found)], SIGKILL)


def _is_backend(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any("postgres: postgres postgres" in each for each in process.cmdline())
    return False


@fault("postmaster: kill -9")
async def kill_postmaster(deployment: Deployment, chance: random.Random) -> None:
    """Kill the postmaster."""
    deployment.postgres.signal(SIGKILL)


@fault("PostgreSQL: restart")
async def restart_postgres(deployment: Deployment, chance: random.Random) -> None:
    """Shut down PostgreSQL in fast mode."""
    deployment.postgres.signal(SIGINT)


@fault("PostgreSQL: SIGSTOP")
async def freeze_postgres(deployment: Deployment, chance: random.Random) -> None:
    """Suspend all processes of PostgreSQL."""
    await freeze(deployment.postgres)


async def freeze(part: Part, seconds: float = STALL) -> None:
    """Suspend a part for some seconds."""
    # Kept, because another fault may replace the processes meanwhile: resume the suspended ones.
    stopped = part.processes()
    send(stopped, SIGSTOP)
    await pause(seconds)
    send(stopped, SIGCONT)


def _cut(name: str, wire: Callable[[Deployment], Proxy]) -> None:
    async def cut(deployment: Deployment, chance: random.Random) -> None:
        for _ in range(3):
            wire(deployment).cut()
            await pause(chance.uniform(0.05, 0.3))

    async def stall(deployment: Deployment, chance: random.Random) -> None:
        wire(deployment).stall()
        await pause(STALL)
        wire(deployment).flow()

    async def stall_then_cut(deployment: Deployment, chance: random.Random) -> None:
        wire(deployment).stall()
        await pause(STALL)
        wire(deployment).cut()
        wire(deployment).flow()

    async def trickle(deployment: Deployment, chance: random.Random) -> None:
        wire(deployment).trickle()
        await pause(STALL)
        wire(deployment).flow()

    fault(f"{name}: cut")(cut)
    fault(f"{name}: stalled")(stall)
    fault(f"{name}: stalled, cut")(stall_then_cut)
    fault(f"{name}: byte by byte")(trickle)


_cut("clients", lambda deployment: deployment.client_proxy)
_cut("services", lambda deployment: deployment.service_proxy)
_cut("database", lambda deployment: deployment.database_proxy)


@fault("database: cut in COMMIT")
async def cut_in_commit(deployment: Deployment, chance: random.Random) -> None:
    """Cut each connection that sends COMMIT, after PostgreSQL has received it."""
    deployment.database_proxy.trap = b"COMMIT"
    await pause(STALL)
    deployment.database_proxy.trap = b""


@fault("disk full")
async def fill_disk(deployment: Deployment, chance: random.Random) -> None:
    """Fill the disk of PostgreSQL; only for a deployment on a small disk of its own."""
    path = deployment.home / "filler"
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
async def several(deployment: Deployment, chance: random.Random) -> None:
    """Run five of the other faults one after another, without waiting for recovery in between."""
    for name in chance.sample(_others(), 5):
        await FAULTS[name](deployment, chance)
        await pause(chance.uniform(0, 3))


@fault(VOLLEY)
async def volley(deployment: Deployment, chance: random.Random) -> None:
    """Start 2 to 5 faults of up to three kinds, each while the earlier ones last or are recovered from."""
    kinds = chance.sample(_others(), chance.randint(1, 3))
    begun = []
    for _ in range(chance.randint(2, 5)):
        begun.append(Deferred.fromCoroutine(FAULTS[chance.choice(kinds)](deployment, chance)))
        await pause(chance.uniform(0, chance.choice((0.3, 0.3, 3.0))))
    await gatherResults(begun)
