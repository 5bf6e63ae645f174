"""
Writes of every kind, each with a unique token that the database records.

A client with an idempotency key repeats the same call if it does not know the outcome.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.faults.deployment import ACCOUNTS
from tests.wamp.callers import Caller

Options = Mapping[str, Any]
"""The keyword argument `idempotency_key`, if the client uses keys."""


@dataclass(frozen=True)
class Write:
    """
    One write.

    Args:
        kind: The name in messages.
        call: Makes the call in a session.
        right: Returns whether a result is that of the committed call.
    """

    kind: str
    call: Callable[[Caller, Options], Awaitable[Any]]
    right: Callable[[Any], bool] = lambda answer: True


Kind = Callable[[str, int, random.Random], Write]
"""A function that makes a write from a token, a client's number and a random generator."""


def move(token: str, number: int, chance: random.Random) -> Write:
    """Move money with a database function."""
    source, target = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
    args = {"token": token, "source": source, "target": target, "amount": chance.randint(1, 9)}
    return Write("function", lambda session, key: session.call("rowcast.fn.move", args=args, **key))


def transfer(token: str, number: int, chance: random.Random) -> Write:
    """Move money with a batch."""
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
    """Create a row."""
    return Write(
        "create",
        lambda session, key: session.call("rowcast.notes.create", {"token": token}, **key),
        lambda row: row["token"] == token,
    )


def update(token: str, number: int, chance: random.Random) -> Write:
    """Update the client's row."""
    change = {"token": token}
    return Write(
        "update",
        lambda session, key: session.call("rowcast.slots.update", number, change, **key),
        lambda row: row == {"id": number, "token": token},
    )


def upsert(token: str, number: int, chance: random.Random) -> Write:
    """Upsert the client's row."""
    row = {"id": number, "token": token}
    return Write(
        "upsert",
        lambda session, key: session.call("rowcast.slots.upsert", row, **key),
        lambda answer: answer == row,
    )


def delete(token: str, number: int, chance: random.Random) -> Write:
    """Delete a row that was created for this purpose."""

    async def make_and_delete(session: Caller, key: Options) -> Any:
        await session.call("rowcast.pledges.create", {"token": token}, idempotency_key=f"{token} 0")
        return await session.call("rowcast.pledges.delete", where={"token": token}, **key)

    # Without the key, a repeated delete would find no row and return none.
    return Write("delete", make_and_delete, lambda answer: answer["rows"] == [{"token": token}])


def load(token: str, number: int, chance: random.Random) -> Write:
    """Import a row."""
    return Write(
        "import",
        lambda session, key: session.call("rowcast.notes.import", rows=[{"token": token}], **key),
        lambda answer: answer == {"rows": 1},
    )


def hold(token: str, number: int, chance: random.Random) -> Write:
    """Create a row in an interactive transaction, and send the commit before the create is answered."""

    async def begin_and_commit(session: Caller, key: Options) -> None:
        tx = (await session.call("rowcast.transaction.begin"))["tx"]
        session.call(tx, "notes.create", [{"token": token}]).addErrback(lambda _: None)
        await session.call(f"{tx}.commit", **key)

    return Write("commit", begin_and_commit)


WITHOUT_KEY: tuple[Kind, ...] = (move, transfer, note)
WITH_KEY: tuple[Kind, ...] = (*WITHOUT_KEY, update, upsert, delete, load, hold)
SINGLE_CALLS: tuple[Kind, ...] = (*WITHOUT_KEY, update, upsert, delete, load)
"""Kinds that hold no state between calls, so a service can stop gracefully at any time."""
