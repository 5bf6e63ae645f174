"""
Writes of every kind, each with a token of its own that the database counts.

With an idempotency key, a client that does not know what became of one makes the same call again.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.faults.house import ACCOUNTS
from tests.wamp.callers import Caller

Options = Mapping[str, Any]
"""The idempotency key, if the client uses them."""


@dataclass(frozen=True)
class Write:
    """
    One write.

    Args:
        kind: In messages.
        call: Makes it, in a session.
        right: Whether an answer is that of the first call that was kept.
    """

    kind: str
    call: Callable[[Caller, Options], Awaitable[Any]]
    right: Callable[[Any], bool] = lambda answer: True


Kind = Callable[[str, int, random.Random], Write]
"""Makes a write of a token, a client's number and chance."""


def move(token: str, number: int, chance: random.Random) -> Write:
    """Move money by a function."""
    source, target = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
    args = {"token": token, "source": source, "target": target, "amount": chance.randint(1, 9)}
    return Write("function", lambda session, key: session.call("rowcast.fn.move", args=args, **key))


def transfer(token: str, number: int, chance: random.Random) -> Write:
    """Move money by a batch."""
    source, target = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
    amount = chance.randint(1, 9)
    row = {"token": token, "source": source, "target": target, "amount": amount}
    operations = [
        {"call": "fn.pay", "kwargs": {"args": {"account": source, "amount": -amount}}},
        {"call": "fn.pay", "kwargs": {"args": {"account": target, "amount": amount}}},
        {"call": "moves.create", "args": [row]},
    ]
    return Write(
        "batch",
        lambda session, key: session.call("rowcast.transaction", operations, **key),
        lambda answer: answer[2]["token"] == token,
    )


def note(token: str, number: int, chance: random.Random) -> Write:
    """Write one row."""
    return Write(
        "create",
        lambda session, key: session.call("rowcast.notes.create", {"token": token}, **key),
        lambda row: row["token"] == token,
    )


def update(token: str, number: int, chance: random.Random) -> Write:
    """Change the row of a client."""
    change = {"token": token}
    return Write(
        "update",
        lambda session, key: session.call("rowcast.slots.update", number, change, **key),
        lambda row: row == {"id": number, "token": token},
    )


def upsert(token: str, number: int, chance: random.Random) -> Write:
    """Write the row of a client, whether it is there or not."""
    row = {"id": number, "token": token}
    return Write(
        "upsert",
        lambda session, key: session.call("rowcast.slots.upsert", row, **key),
        lambda answer: answer == row,
    )


def delete(token: str, number: int, chance: random.Random) -> Write:
    """Delete a row, which was made for it."""

    async def make_and_delete(session: Caller, key: Options) -> Any:
        await session.call("rowcast.pledges.create", {"token": token}, idempotency_key=f"{token} 0")
        return await session.call("rowcast.pledges.delete", where={"token": token}, **key)

    # A second delete by itself would find nothing.
    return Write("delete", make_and_delete, lambda answer: answer["rows"] == [{"token": token}])


def load(token: str, number: int, chance: random.Random) -> Write:
    """Import a row."""
    return Write(
        "import",
        lambda session, key: session.call("rowcast.notes.import", rows=[{"token": token}], **key),
        lambda answer: answer == {"rows": 1},
    )


def hold(token: str, number: int, chance: random.Random) -> Write:
    """Write a row in a transaction that is held open, and commit ahead of the answer."""

    async def begin_and_commit(session: Caller, key: Options) -> None:
        tx = (await session.call("rowcast.transaction.begin"))["tx"]
        session.call(tx, "notes.create", [{"token": token}]).addErrback(lambda _: None)
        await session.call(f"{tx}.commit", **key)

    return Write("commit", begin_and_commit)


WITHOUT_KEY: tuple[Kind, ...] = (move, transfer, note)
WITH_KEY: tuple[Kind, ...] = (*WITHOUT_KEY, update, upsert, delete, load, hold)
SINGLE_CALLS: tuple[Kind, ...] = (*WITHOUT_KEY, update, upsert, delete, load)
"""Those that nothing is left of between two calls, so that a service may stop in order."""
