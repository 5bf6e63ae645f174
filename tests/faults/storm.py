"""
Calls that are cancelled at random moments, among others that are not.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults

from tests.conftest import execute
from tests.deferreds import pause
from tests.faults.house import House
from tests.wamp.callers import Caller, join

SESSIONS = 6
"""Each makes calls that are cancelled, one after another, and beside them calls that are not."""
CANCELED = "wamp.error.canceled"


@dataclass
class Storm:
    """
    What came of one.

    Args:
        cancels: How many CANCELs were sent, before their calls had an answer.
        ends: How the calls ended for which one was sent or meant.
        innocent: How many of the others were answered.
        failed: How others ended, and answers that were not theirs.
        wrong: Notes that were refused and are there, or answered and are not, or are twice.
    """

    cancels: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    innocent: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


async def storm(house: House, seed: int, count: int) -> Storm:
    """Cancel so many calls while as many others run."""
    found, notes = Storm(), dict[str, str]()
    sessions = [await join(house.router, "rawsocket cbor") for _ in range(SESSIONS)]
    ends = [
        ensureDeferred(
            work(each, random.Random(f"{seed} {work.__name__} {n}"), found, notes, count)
        )
        for n, each in enumerate(sessions)
        for work in (cancel, leave_alone)
    ]
    await gatherResults(ends, consumeErrors=True)
    for each in sessions:
        await each.close()
    # A write of a call that was answered at once, as killnowait is, may still end.
    sql = "SELECT 1 FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()"
    await house.until(lambda: not execute(house.dsn, f"{sql} AND backend_type = 'client backend'"))
    there = Counter(str(t) for (t,) in execute(house.dsn, "SELECT token FROM notes"))
    found.wrong = [t for t, end in notes.items() if there[t] != (end == "answered")]
    return found


async def cancel(
    session: Caller, chance: random.Random, found: Storm, notes: dict[str, str], count: int
) -> None:
    """Call, and cancel at a moment that is left to chance."""
    took = 0.01
    while found.cancels < count:
        token = f"storm-{chance.getrandbits(64):x}"
        calls = [
            ("rowcast.fn.nap", {"seconds": chance.uniform(0, 0.02)}),
            ("rowcast.notes.create", {"values": {"token": token}}),
            ("rowcast.moves.find", {"limit": chance.randint(1, 200)}),
        ]
        uri, kwargs = chance.choice(calls)
        began = reactor.seconds()
        call = session.call(uri, **kwargs)
        request = next(reversed(session._call_reqs))
        ending = ensureDeferred(end_of(call))
        await pause(chance.uniform(0, 1.2) * took)
        mode = chance.choice(("kill", "killnowait"))
        if ending.called:
            took = (took + reactor.seconds() - began) / 2
        else:
            session._transport.send(message.Cancel(request, mode=mode))
            found.cancels += 1
        end, _ = await ending
        found.ends[end] += 1
        took *= 0.8 if end == "answered" else 1.2
        if end not in {"answered", CANCELED}:
            found.failed.append(end)
        if uri.endswith("create") and (mode == "kill" or end == "answered"):
            notes[token] = end


async def leave_alone(
    session: Caller, chance: random.Random, found: Storm, notes: dict[str, str], count: int
) -> None:
    """Call, and look at the answers."""
    while found.cancels < count or found.innocent < count:
        token = f"storm-{chance.getrandbits(64):x}"
        if chance.random() < 0.5:
            end, answer = await end_of(session.call("rowcast.fn.same", args={"value": token}))
            right = answer == token
        else:
            end, answer = await end_of(session.call("rowcast.notes.create", {"token": token}))
            notes[token] = end
            right = end == "answered" and answer["token"] == token
        found.innocent += 1
        if not right:
            found.failed.append(f"{end}: {answer}")


async def end_of(call: Any) -> tuple[str, Any]:
    """Return how a call ends, and its answer or its error's words."""
    try:
        return "answered", await call
    except ApplicationError as error:
        return str(error.error), error.args
