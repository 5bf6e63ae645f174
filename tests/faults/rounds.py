"""
A fault in the midst of traffic, and what came of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from signal import SIGTERM

from twisted.internet import reactor

from tests.deferreds import pause
from tests.faults import heard
from tests.faults.faults import FAULTS
from tests.faults.heard import Heard, listening
from tests.faults.house import PATIENCE, House
from tests.faults.traffic import Found, Tally, Traffic, check
from tests.faults.writes import SINGLE_CALLS


@dataclass(frozen=True)
class Round:
    """
    What came of one.

    Args:
        name: Of the fault.
        tally: What callers were answered.
        found: What the database has of it.
        heard: What listeners were told of it.
        left: What is left of calls that have ended, in PostgreSQL and in the services.
        failures: Tracebacks that the services have logged meanwhile.
    """

    name: str
    tally: Tally
    found: Found
    heard: Heard
    left: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def wrong(self) -> list[str]:
        """Return the promises that were broken."""
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
        return [words for words, is_so in broken.items() if is_so] + self.heard.wrong()

    def cells(self) -> list[str]:
        """Return the round's line of the table."""
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


async def strike(house: House, name: str, seed: int, before: float, after: float) -> Round:
    """Run traffic for so many seconds, then the fault, and as many after it."""
    chance, known = random.Random(f"{seed} {name}"), len(house.failures())
    listeners = await listening(house)
    traffic = Traffic(house, seed)
    await pause(before)
    await FAULTS[name](house, chance)
    traffic.over()
    end = reactor.seconds() + PATIENCE
    while not traffic.recovered:
        assert reactor.seconds() < end, f"no answers again: {traffic.tally.errors}\n{house.said()}"
        await pause(0.02)
    await pause(after)
    traffic.stop()
    tally = await traffic.end()
    told = await listeners.end()
    await house.whole()
    left = [*await house.left(), *house.grown()]
    return Round(name, tally, check(house, tally), told, left, house.failures()[known:])


async def restart_in_turn(house: House) -> None:
    """Restart both services, the second one once the first is there again."""
    for service in house.services:
        old = service.pid
        service.signal(SIGTERM)
        await pause(0.05)
        service.signal(SIGTERM)  # as Heroku does, more than once
        await house.until(lambda: service.running and service.pid != old)  # noqa: B023
        await house.whole()


async def rolling(house: House, seed: int, calls: int) -> Round:
    """Restart both services one after the other, as often as it takes for so many calls."""
    listeners = await listening(house)
    traffic = Traffic(house, seed, SINGLE_CALLS)
    while traffic.tally.calls < calls:
        await restart_in_turn(house)
    traffic.stop()
    tally = await traffic.end()
    return Round("rolling restart", tally, check(house, tally), await listeners.end())


def table(rounds: Sequence[Round]) -> str:
    """Return the rounds as two tables in Markdown: of calls, and of what is heard."""
    calls = [HEAD, ["---"] * len(HEAD), *(each.cells() for each in rounds)]
    events = [
        heard.HEAD,
        ["---"] * len(heard.HEAD),
        *(each.heard.cells(each.name) for each in rounds),
    ]
    return "\n\n".join(
        "\n".join(f"| {' | '.join(line)} |" for line in lines) for lines in (calls, events)
    )
