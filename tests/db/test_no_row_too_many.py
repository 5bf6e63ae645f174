"""
No caller ever receives a value that its role may not select: not by topics, not by catch-up.

Rights, policies, hidden columns and the columns themselves change at random between random writes.
Each value contains the table and the column into which it was written, and the test asks PostgreSQL
whether the role can select that column now.
"""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import succeed

from schema.changes import install
from service.api.roles import Roles
from service.changes.catchup import CatchUpProcedures
from service.changes.topics import Topics
from service.payload import Publication
from service.request.arguments import Caller
from tests.amounts import amount
from tests.db.dispatchers import DirectCaller
from tests.db.ticks import Ticks

AUTHROLES = {"staff": "reader", "desk": "clerk", "guests": "nobody"}
ROLES = Roles(AUTHROLES)

SCHEMA = f"""
CREATE ROLE reader; CREATE ROLE clerk; CREATE ROLE nobody;
{install()}
"""

STEPS = amount(40, 200)
VALUE = re.compile(r"<(\d+)\.(\d+)\.\d+>")
"""The oid of a table, the number of a column, and a number that makes it a value of its own."""


class World:
    """Two tables that change in every way."""

    def __init__(self, dsn: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.connection = psycopg2.connect(dsn)
        self.connection.autocommit = True
        self.written = 0
        for name in ("one", "two"):
            self.run(f"DROP TABLE IF EXISTS {name}; {self._create(name)}")

    def run(self, sql: str) -> list[Any]:
        """Run SQL, and ignore statements that PostgreSQL refuses."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    @staticmethod
    def _create(name: str) -> str:
        return (
            f"CREATE TABLE {name} (id text PRIMARY KEY, a text, b text, c text);"
            f" COMMENT ON COLUMN {name}.c IS '@hidden'; SELECT rowcast.track('{name}');"
            f" GRANT SELECT ON {name} TO reader; GRANT SELECT (id, a) ON {name} TO clerk"
        )

    def columns(self, name: str) -> list[tuple[str, int]]:
        """Return the columns of a table, with their numbers."""
        return self.run(
            "SELECT attname, attnum FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped"
            f" AND attrelid = '{name}'::regclass ORDER BY attnum"
        )

    def value(self, name: str, number: int) -> str:
        """Return a new value for a column."""
        ((oid,),) = self.run(f"SELECT '{name}'::regclass::oid::int")
        self.written += 1
        return f"<{oid}.{number}.{self.written}>"

    def step(self) -> None:
        """Change something, in one transaction."""
        name = self.random.choice(["one", "two"])
        acts = [self.random.choice(ACTS) for _ in range(self.random.choice([1, 1, 1, 2, 3]))]
        self.run("BEGIN")
        try:
            for act in acts:
                for sql in act(self, name):
                    self.run(sql)
            self.run(self.random.choice(["COMMIT"] * 9 + ["ROLLBACK"]))
        except psycopg2.Error:
            self.run("ROLLBACK")

    def judge(self, role: str, shown: Any) -> int:
        """Return the number of values that a role received; fail if it may not select one."""
        found = VALUE.findall(repr(shown))
        for oid, number in set(found):
            assert self._selectable(role, int(oid), int(number)), (role, shown)
        return len(found)

    def _selectable(self, role: str, oid: int, number: int) -> bool:
        names = self.run(
            "SELECT c.oid::regclass::text, quote_ident(a.attname), c.relrowsecurity,"
            " coalesce(col_description(c.oid, a.attnum) = '@hidden', false)"
            " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            f" WHERE c.oid = {oid} AND a.attnum = {number} AND NOT a.attisdropped"
        )
        if not names or names[0][2] or names[0][3]:
            return False
        table, column, *_ = names[0]
        try:
            self.run(f"SET ROLE {role}")
            self.run(f"SELECT {column} FROM {table} LIMIT 0")
        except psycopg2.Error:
            return False
        finally:
            self.run("RESET ROLE")
        return True


def _insert(world: World, name: str) -> list[str]:
    columns = world.columns(name)
    values = ", ".join(f"'{world.value(name, number)}'" for _, number in columns)
    return [f"INSERT INTO {name} VALUES ({values})"]


def _update(world: World, name: str) -> list[str]:
    column, number = world.random.choice(world.columns(name))
    some = f"(SELECT id FROM {name} ORDER BY random() LIMIT 1)"
    return [f"UPDATE {name} SET {column} = '{world.value(name, number)}' WHERE id = {some}"]


def _delete(world: World, name: str) -> list[str]:
    return [f"DELETE FROM {name} WHERE id IN (SELECT id FROM {name} ORDER BY random() LIMIT 2)"]


def _truncate(world: World, name: str) -> list[str]:
    return [f"TRUNCATE {name}"]


def _grant(world: World, name: str) -> list[str]:
    role = world.random.choice(list(AUTHROLES.values()))
    column = world.random.choice([""] + [f"({column})" for column, _ in world.columns(name)])
    words = world.random.choice(["GRANT SELECT {} ON {} TO {}", "REVOKE SELECT {} ON {} FROM {}"])
    return [words.format(column, name, role)]


def _policy(world: World, name: str) -> list[str]:
    return [f"ALTER TABLE {name} {world.random.choice(['ENABLE', 'DISABLE'])} ROW LEVEL SECURITY"]


def _hide(world: World, name: str) -> list[str]:
    column, _ = world.random.choice(world.columns(name)[1:])
    return [
        f"COMMENT ON COLUMN {name}.{column} IS {world.random.choice(['NULL', chr(39) + '@hidden' + chr(39)])}"
    ]


def _swap(world: World, name: str) -> list[str]:
    (one, _), (other, _) = world.random.sample(world.columns(name)[1:], 2)
    rename = f"ALTER TABLE {name} RENAME"
    return [f"{rename} {one} TO x", f"{rename} {other} TO {one}", f"{rename} x TO {other}"]


def _replace(world: World, name: str) -> list[str]:
    column, _ = world.random.choice(world.columns(name)[1:])
    return [f"ALTER TABLE {name} DROP {column}", f"ALTER TABLE {name} ADD {column} text"]


def _remake(world: World, name: str) -> list[str]:
    return [f"DROP TABLE {name}", *world._create(name).split(";")]


ACTS = [
    *[_insert] * 8,
    *[_update] * 8,
    *[_delete] * 4,
    _truncate,
    *[_grant] * 4,
    *[_policy] * 2,
    *[_hide] * 2,
    _swap,
    _replace,
    _remake,
]


@pytest_twisted.async_yield_fixture
async def ticks(dsn: str) -> AsyncIterator[Ticks]:
    made = Ticks(dsn)
    yield made
    made.close()


@pytest.mark.serving("public", roles=ROLES)
@pytest.mark.parametrize("seed", [1, 2])
@pytest_twisted.ensureDeferred
async def test_role_never_receives_a_value_that_it_may_not_select(
    db: DirectCaller, dsn: str, ticks: Ticks, seed: int
) -> None:
    world, sent = World(dsn, seed), []

    async def send(publications: Sequence[Publication]) -> None:
        sent.extend(publications)

    async def every(heads: Collection[str]) -> Collection[str]:
        return heads

    topics = Topics(db.database, db.dispatcher, ROLES, "rowcast", 8 << 20, send, every)
    catchup = CatchUpProcedures(db.database, db.dispatcher, 1000, 8 << 20, 10_000)
    db.dispatcher.add(catchup.procedures(), once=False)
    callers = {name: Caller(1, name, name, "realm1") for name in AUTHROLES}
    begun = await db.call_as(callers["staff"], "position")
    by_topic = by_call = resets = 0
    for number in range(STEPS):
        world.step()
        changes = ticks.next()
        if world.random.random() < 0.3:
            # The router was slow, or the service away for a moment.
            world.step()
            changes += ticks.next()
        sent.clear()
        await topics.publish(changes, succeed(None), {})
        resets += sum(each.event.get("op") == "reset" for each in sent)
        for authrole, role in AUTHROLES.items():
            by_topic += world.judge(role, [each for each in sent if _gets(authrole, each)])
            if number % 5 == 0:
                by_call += world.judge(role, await db.call_as(callers[authrole], "changes", begun))
        if number % 50 == 0:
            begun = await db.call_as(callers["staff"], "position")
    world.connection.close()
    assert by_topic > STEPS / 5, "the test shows something"
    assert by_call > STEPS / 5
    assert resets


def _gets(authrole: str, publication: Publication) -> bool:
    audience = publication.audience
    if audience.eligible:
        return authrole in audience.eligible
    return authrole not in audience.excluded
