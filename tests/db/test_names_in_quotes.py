"""
Names of columns in double quotes, in writes as in filters.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.api.call import CallState
from service.errors import InvalidArgument, NotFound
from tests.conftest import execute
from tests.db.dispatchers import ANYONE, DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE odd ("a->b" int PRIMARY KEY, "c.d" text, plain int UNIQUE, doc jsonb, "q""x" int);
CREATE TABLE under (id int PRIMARY KEY, "o->d" int REFERENCES odd);
"""
BEFORE_EACH = "TRUNCATE odd, under; INSERT INTO odd VALUES (1, 'one', 10, '{}', 5)"


async def call(db: DirectCaller, name: str, **kwargs: Any) -> Any:
    """Call a procedure without the check against its description, which has one spelling of each name."""
    return await db.dispatcher.answer(name, (), kwargs, ANYONE, CallState())


KEY, TEXT, MARK = '"a->b"', '"c.d"', '"q""x"'


@pytest.mark.parametrize(
    ("name", "kwargs", "rows"),
    [
        ("create", {"values": {KEY: 2, TEXT: "two", '"plain"': 20}},
         [(1, "one", 10, {}, 5), (2, "two", 20, None, None)]),
        ("create", {"values": [{KEY: 2, MARK: 7}, {KEY: 3}]},
         [(1, "one", 10, {}, 5), (2, None, None, None, 7), (3, None, None, None, None)]),
        ("update", {"key": 1, "changes": {TEXT: "x", '"doc"->k': 1, MARK: {"$add": 1}}},
         [(1, "x", 10, {"k": 1}, 6)]),
        ("update", {"key": {KEY: 1}, "changes": {"c.d": "x"}, "expect": {MARK: 5}}, [(1, "x", 10, {}, 5)]),
        ("update", {"where": {TEXT: "one"}, "changes": {'"plain"': 11}}, [(1, "one", 11, {}, 5)]),
        ("update", {"rows": [{KEY: 1, TEXT: "y"}]}, [(1, "y", 10, {}, 5)]),
        ("update", {"rows": [{'"plain"': 10, TEXT: "y"}], "by": ['"plain"']}, [(1, "y", 10, {}, 5)]),
        ("upsert", {"values": {KEY: 1, TEXT: "z", MARK: 9}, "on_conflict": [KEY], "update": [TEXT]},
         [(1, "z", 10, {}, 5)]),
        ("upsert", {"values": {KEY: 1, "plain": 10}, "on_conflict": '"plain"', "update": {TEXT: "w"}},
         [(1, "w", 10, {}, 5)]),
        ("delete", {"key": {'"plain"': 10}}, []),
    ],
    ids=str,
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_quoted_name_in_a_write_is_that_column(
    db: DirectCaller, dsn: str, name: str, kwargs: dict[str, Any], rows: Any
) -> None:
    await call(db, f"odd.{name}", **kwargs)
    assert execute(dsn, "SELECT * FROM odd ORDER BY 1") == rows


@pytest_twisted.ensureDeferred
async def test_quoted_name_of_a_foreign_key_column_accepts_a_nested_row(
    db: DirectCaller, dsn: str
) -> None:
    """The name of a foreign key's column names the relationship."""
    await call(db, "under.create", values={"id": 1, '"o->d"': {KEY: 7, TEXT: "seven"}})
    await call(db, "under.create", values={"id": 2, '"o->d"': {"$link": {'"plain"': 10}}})
    assert execute(dsn, "SELECT * FROM under ORDER BY 1") == [(1, 7), (2, 1)]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("create", {"values": {KEY: 2, "plain": 1, '"plain"': 2}}),
        ("update", {"key": 1, "changes": {"plain": 1, '"plain"': 2}}),
        ("update", {"key": {"plain": 1, '"plain"': 2}, "changes": {"doc": 1}}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_column_given_with_and_without_quotes_is_refused(
    db: DirectCaller, name: str, kwargs: dict[str, Any]
) -> None:
    refused = await failure_of(call(db, f"odd.{name}", **kwargs))
    assert isinstance(refused, InvalidArgument), refused


@pytest_twisted.ensureDeferred
async def test_unknown_name_in_quotes_is_refused(db: DirectCaller) -> None:
    refused = await failure_of(call(db, "odd.update", key=1, changes={'"nope"': 2}))
    assert isinstance(refused, InvalidArgument), refused
    assert not isinstance(refused, NotFound)
