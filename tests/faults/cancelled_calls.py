"""
Calls that are cancelled at random times, beside calls that are not.
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
from tests.faults.deployment import Deployment
from tests.wamp.callers import Caller, join

SESSIONS = 6
"""Number of sessions. Each makes cancelled calls one after another, and other calls beside them."""
CANCELED = "wamp.error.canceled"


@dataclass
class CancelReport:
    """
    The result of `cancel_calls`.

    Args:
        cancels: Number of CANCEL messages sent, each before its call was answered.
        ends: Number of calls that were to be cancelled, by how they ended.
        uncancelled: Number of the other calls.
        failed: Errors and wrong results of the other calls, and unexpected errors of cancelled ones.
        wrong: Tokens of notes that exist though refused, are missing though answered, or exist twice.
    """

    cancels: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    uncancelled: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


async def cancel_calls(deployment: Deployment, seed: int, count: int) -> CancelReport:
    """Cancel that many calls while as many others run."""
    found, notes = CancelReport(), dict[str, str]()
    sessions = [await join(deployment.router, "rawsocket cbor") for _ in range(SESSIONS)]
    ends = [
        ensureDeferred(
            work(each, random.Random(f"{seed} {work.__name__} {n}"), found, notes, count)
        )
        for n, each in enumerate(sessions)
        for work in (cancel, call_uncancelled)
    ]
    await gatherResults(ends, consumeErrors=True)
    for each in sessions:
        await each.close()
    # A call cancelled with killnowait is answered at once; its write may still be running.
    sql = "SELECT 1 FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()"
    await deployment.until(
        lambda: not execute(deployment.dsn, f"{sql} AND backend_type = 'client backend'")
    )
    there = Counter(str(t) for (t,) in execute(deployment.dsn, "SELECT token FROM notes"))
    found.wrong = [t for t, end in notes.items() if there[t] != (end == "answered")]
    return found


async def cancel(
    session: Caller, chance: random.Random, found: CancelReport, notes: dict[str, str], count: int
) -> None:
    """Make calls, and cancel each after a random time."""
    took = 0.01
    while found.cancels < count:
        token = f"cancel-{chance.getrandbits(64):x}"
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


async def call_uncancelled(
    session: Caller, chance: random.Random, found: CancelReport, notes: dict[str, str], count: int
) -> None:
    """Make calls, and check the results."""
    while found.cancels < count or found.uncancelled < count:
        token = f"cancel-{chance.getrandbits(64):x}"
        if chance.random() < 0.5:
            end, answer = await end_of(session.call("rowcast.fn.same", args={"value": token}))
            right = answer == token
        else:
            end, answer = await end_of(session.call("rowcast.notes.create", {"token": token}))
            notes[token] = end
            right = end == "answered" and answer["token"] == token
        found.uncancelled += 1
        if not right:
            found.failed.append(f"{end}: {answer}")


async def end_of(call: Any) -> tuple[str, Any]:
    """Return how a call ends ("answered" or an error URI), and its result or the error's arguments."""
    try:
        return "answered", await call
    except ApplicationError as error:
        return str(error.error), error.args
