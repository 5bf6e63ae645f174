"""
Claiming the next rows of a queue with `skip_locked`.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import Any, ClassVar

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from service.api.roles import Roles
from service.errors import InvalidArgument, InvalidRow, NotAuthorized, TooManyRows
from service.models.model import Model
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE queues (id int PRIMARY KEY, name text);
CREATE TABLE jobs (id int PRIMARY KEY, queue int REFERENCES queues, rank int, state text DEFAULT 'new',
    tries int DEFAULT 0);
CREATE TABLE results (job int REFERENCES jobs);
CREATE TABLE loose (n int, state text);
CREATE TABLE pairs (a int, b text, state text, PRIMARY KEY (a, b));
"""
BEFORE_EACH = (
    "TRUNCATE queues, jobs, results, loose, pairs; INSERT INTO queues VALUES (1, 'b'), (2, 'a');"
    " INSERT INTO jobs (id, queue, rank) SELECT i, 1 + i % 2, -i FROM generate_series(1, 6) i;"
    " INSERT INTO pairs SELECT i, 'x' || i FROM generate_series(1, 3) i"
)
NEW = {"state": "new"}
TAKE = {"state": "taken", "tries": {"$add": 1}}


class Job(Model):
    """A model that numbers jobs when they are taken, and refuses those of rank -5."""

    TABLENAME = "jobs"
    SEEN: ClassVar[list[int]] = []

    def beforeUpdate(self) -> bool:
        """Set the number."""
        self.SEEN.append(self.id)
        if self.state == "taken":
            self.state = f"taken {self.id}"
        return bool(self.rank != -5)


async def claim(db: DirectCaller, /, **kwargs: Any) -> list[int]:
    """Take new jobs; return their ids."""
    answer = await db.call(
        "jobs.update",
        **{"where": NEW, "changes": TAKE, "skip_locked": True, "select": ["id"], **kwargs},
    )
    assert answer["affected"] == len(answer["rows"])
    return [row["id"] for row in answer["rows"]]


@pytest_twisted.ensureDeferred
async def test_concurrent_claims_take_each_row_once(dsn: str) -> None:
    """Eight callers, a thousand rows, on as many connections."""
    execute(
        dsn,
        f"{BEFORE_EACH}; TRUNCATE jobs CASCADE;"
        " INSERT INTO jobs (id, rank) SELECT i, i FROM generate_series(1, 1000) i",
    )
    async with serving(dsn, most=8) as db:

        async def work() -> list[int]:
            taken: list[int] = []
            while found := await claim(db, order=["rank"], limit=7):
                assert found == sorted(found)
                taken += found
            return taken

        done = await gatherResults([ensureDeferred(work()) for _ in range(8)])
    counted = Counter(each for taken in done for each in taken)
    assert counted == Counter(range(1, 1001))
    assert execute(dsn, "SELECT DISTINCT state, tries FROM jobs") == [("taken", 1)]


@pytest.mark.parametrize("written", [(), (Job,)])
@pytest_twisted.ensureDeferred
async def test_claim_skips_locked_rows(dsn: str, written: tuple[type[Model], ...]) -> None:
    """The claim takes the next rows, although another session has locked the first."""
    execute(dsn, BEFORE_EACH)
    async with serving(dsn, written=written, lock_timeout=0.5) as db:
        with closing(psycopg2.connect(dsn)) as holder:
            holder.cursor().execute("SELECT FROM jobs WHERE id IN (6, 4) FOR UPDATE")
            assert await claim(db, order=["rank"], limit=1, where={"id": {"neq": 5}}) == [3]
            holder.rollback()
            assert await claim(db, order=["rank"], limit=2, where={"id": {"gt": 3, "neq": 5}}) == [
                6,
                4,
            ]


@pytest.mark.parametrize("kwargs", [{}, {"returning": "old"}], ids=str)
@pytest.mark.parametrize("written", [(), (Job,)], ids=["plain", "ruled"])
@pytest_twisted.ensureDeferred
async def test_claim_of_no_row_needs_the_same_rights(
    dsn: str, written: tuple[type[Model], ...], kwargs: dict[str, Any]
) -> None:
    """UPDATE on one column does not include another one, whether there is a row or not."""
    execute(dsn, BEFORE_EACH)
    execute(dsn, CLERKS)
    caller = Caller(1, "ann", "clerk", "realm1")
    async with serving(dsn, written=written, roles=Roles({"clerk": "rc_claims"})) as db:
        for where in ({"id": 1}, {"id": 99}):
            claim = {"where": where, "skip_locked": True, "limit": 1, **kwargs}
            call = db.call_as(caller, "jobs.update", changes={"state": "s"}, **claim)
            refused = await failure_of(call)
            assert isinstance(refused, NotAuthorized), refused
            found = await db.call_as(caller, "jobs.update", changes={"tries": 1}, **claim)
            assert found["affected"] == (where["id"] == 1)


CLERKS = """
DO $$BEGIN CREATE ROLE rc_claims; EXCEPTION WHEN duplicate_object THEN NULL; END$$;
GRANT SELECT, UPDATE (tries) ON jobs TO rc_claims;
"""


@pytest_twisted.ensureDeferred
async def test_row_locked_by_a_new_reference_to_it_is_claimed(db: DirectCaller, dsn: str) -> None:
    """A new referencing row locks it with KEY SHARE only."""
    with closing(psycopg2.connect(dsn)) as holder:
        holder.cursor().execute("INSERT INTO results VALUES (6)")
        assert await claim(db, order=["rank"], limit=1) == [6]


@pytest_twisted.ensureDeferred
async def test_rows_are_claimed_in_order(db: DirectCaller) -> None:
    """By any sort key; without an order, as PostgreSQL finds them."""
    assert await claim(db, order=["queue.name", "-id"], limit=2) == [5, 3]
    assert await claim(db, order=["id"], limit=0) == []
    assert await claim(db, order=["id"], limit=9, max_affected=4) == [1, 2, 4, 6]
    assert await claim(db) == []


@pytest_twisted.ensureDeferred
async def test_limit_without_skip_locked_updates_the_first_rows(db: DirectCaller) -> None:
    """It waits for locks, as an update does; rows are returned in any form."""
    answer = await db.call(
        "jobs.update",
        where=NEW,
        changes=TAKE,
        order=["id"],
        limit=2,
        select=["id", "tries"],
        embed={"queue": {"select": ["name"], "relation": "queues"}},
    )
    assert answer["rows"] == [
        {"id": 1, "tries": 1, "queue": {"name": "a"}},
        {"id": 2, "tries": 1, "queue": {"name": "b"}},
    ]
    last = {"order": ["-id"], "limit": 3, "returning": False}
    assert await db.call("jobs.update", where=NEW, changes=TAKE, **last) == {"affected": 3}
    assert await db.call("jobs.count", where={"id": [6, 5, 4], "state": "taken"}) == 3
    answer = await db.call(
        "pairs.update", where={"a": {"gt": 1}}, changes={"state": "x"}, limit=1, order=["-b"]
    )
    assert answer == {"rows": [{"a": 3, "b": "x3", "state": "x"}], "affected": 1}
    refused = await failure_of(
        db.call("pairs.update", all=True, changes={"state": "y"}, limit=3, max_affected=2)
    )
    assert isinstance(refused, TooManyRows)


@pytest_twisted.ensureDeferred
async def test_rules_run_on_the_claimed_rows_only(dsn: str) -> None:
    """Each row is written by its key; an invalid one rolls back all."""
    execute(dsn, BEFORE_EACH)
    async with serving(dsn, written=(Job,)) as db:
        Job.SEEN.clear()
        assert await claim(db, order=["id"], limit=2, select=["id", "state"]) == [1, 2]
        assert Job.SEEN == [1, 2]
        assert (await db.call("jobs.get", 2))["state"] == "taken 2"
        assert await claim(db, where={"id": 99}, limit=2) == []
        assert await claim(db, order=["id"], limit=1) == [3]
        refused = await failure_of(claim(db, order=["id"], limit=2))
        assert isinstance(refused, InvalidRow)
        assert await db.call("jobs.count", where=NEW) == 3


@pytest.mark.parametrize(
    ("relation", "kwargs", "path"),
    [
        ("jobs", {"key": 1, "limit": 1}, "limit"),
        ("jobs", {"key": 1, "skip_locked": True}, "skip_locked"),
        ("jobs", {"where": NEW, "limit": -1}, "limit"),
        ("jobs", {"where": NEW, "limit": "1"}, "limit"),
        ("jobs", {"where": NEW, "skip_locked": 1}, "skip_locked"),
        ("jobs", {"limit": 1}, "where"),
        ("jobs", {"where": {}, "skip_locked": True}, "where"),
        ("loose", {"all": True, "limit": 1}, "limit"),
        ("loose", {"all": True, "skip_locked": True}, "skip_locked"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_claim_with_a_key_or_without_a_primary_key_is_refused(
    db: DirectCaller, relation: str, kwargs: dict[str, Any], path: str
) -> None:
    """With a key there is no choice, and without a primary key rows cannot be read again."""
    with pytest.raises(InvalidArgument) as refused:
        await db.call(f"{relation}.update", **kwargs, changes={"state": "x"})
    assert refused.value.details["path"] == path
