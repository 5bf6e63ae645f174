"""
Rounds: traffic with a fault in its midst, and the checks of its results.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from signal import SIGTERM

from twisted.internet import reactor

from tests.deferreds import pause
from tests.faults import listeners as listener_table
from tests.faults.deployment import PATIENCE, Deployment
from tests.faults.faults import FAULTS
from tests.faults.listeners import ListenerReport, start_listeners
from tests.faults.traffic import Found, Tally, Traffic, check
from tests.faults.writes import SINGLE_CALLS


@dataclass(frozen=True)
class Round:
    """
    The result of a round.

    Args:
        name: The name of the fault.
        tally: The callers' results.
        found: The comparison of these with the database.
        listeners: The listeners' results.
        left: What ended calls have left in PostgreSQL and in the services.
        failures: Tracebacks that the services logged during the round.
    """

    name: str
    tally: Tally
    found: Found
    listeners: ListenerReport
    left: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def wrong(self) -> list[str]:
        """Return the violated guarantees."""
        found, tally = self.found, self.tally
        broken = {
            f"lost: {found.lost}": found.lost,
            f"doubled: {found.doubled}": found.doubled,
            f"kept though refused: {found.kept}": found.kept,
            "accounts have not what was moved": not found.balanced,
            f"not to be explained: {tally.odd[:3]}": tally.odd,
            f"hangs: {tally.hangs}": tally.hangs,
            f"left: {self.left}": self.left,
            "\n".join(["in a log:", *self.failures]): self.failures,
        }
        return [words for words, is_so in broken.items() if is_so] + self.listeners.wrong()

    def cells(self) -> list[str]:
        """Return the round's row of the table of calls."""
        tally, found, back = self.tally, self.found, sorted(self.tally.back.values())
        errors = ", ".join(
            f"{uri.rpartition('.')[2]} {count}" for uri, count in tally.errors.most_common()
        )
        return [
            self.name,
            str(tally.calls),
            errors or "-",
            str(len(tally.again)),
            str(len(found.lost)),
            str(len(found.doubled)),
            str(len(tally.hangs)),
            f"{back[0]:.1f}–{back[-1]:.1f} s" if back else "-",
        ]


HEAD = [
    "fault",
    "calls",
    "errors",
    "again by key",
    "lost",
    "doubled",
    "hangs",
    "answers again after",
]


async def strike(
    deployment: Deployment, name: str, seed: int, before: float, after: float
) -> Round:
    """Run traffic for `before` seconds, then the fault, and traffic for `after` more seconds."""
    chance, known = random.Random(f"{seed} {name}"), len(deployment.failures())
    listeners = await start_listeners(deployment)
    traffic = Traffic(deployment, seed)
    await pause(before)
    await FAULTS[name](deployment, chance)
    traffic.over()
    end = reactor.seconds() + PATIENCE
    while not traffic.recovered:
        assert reactor.seconds() < end, (
            f"no answers again: {traffic.tally.errors}\n{deployment.log_tails()}"
        )
        await pause(0.02)
    await pause(after)
    traffic.stop()
    tally = await traffic.end()
    told = await listeners.end()
    await deployment.wait_until_ready()
    left = [*await deployment.leftovers(), *deployment.leaks()]
    return Round(name, tally, check(deployment, tally), told, left, deployment.failures()[known:])


async def restart_in_turn(deployment: Deployment) -> None:
    """Restart both services, the second one after the first is ready again."""
    for service in deployment.services:
        old = service.pid
        service.signal(SIGTERM)
        await pause(0.05)
        service.signal(SIGTERM)  # as Heroku does, more than once
        await deployment.until(lambda: service.running and service.pid != old)  # noqa: B023
        await deployment.wait_until_ready()


async def rolling(deployment: Deployment, seed: int, calls: int) -> Round:
    """Restart the services one after the other until the traffic has made that many calls."""
    listeners = await start_listeners(deployment)
    traffic = Traffic(deployment, seed, SINGLE_CALLS)
    while traffic.tally.calls < calls:
        await restart_in_turn(deployment)
    traffic.stop()
    tally = await traffic.end()
    return Round("rolling restart", tally, check(deployment, tally), await listeners.end())


def table(rounds: Sequence[Round]) -> str:
    """Return the rounds as two tables in Markdown: of calls, and of events and live queries."""
    calls = [HEAD, ["---"] * len(HEAD), *(each.cells() for each in rounds)]
    events = [
        listener_table.HEAD,
        ["---"] * len(listener_table.HEAD),
        *(each.listeners.cells(each.name) for each in rounds),
    ]
    return "\n\n".join(
        "\n".join(f"| {' | '.join(line)} |" for line in lines) for lines in (calls, events)
    )
