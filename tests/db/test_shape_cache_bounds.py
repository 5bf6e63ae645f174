"""
The caches by shape of calls are bounded, however many and however unusual the calls are.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from service.catalog import Relation
from service.errors import InvalidArgument
from tests.db.dispatchers import serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE people (id int PRIMARY KEY, boss int REFERENCES people);
CREATE FUNCTION everyone() RETURNS SETOF people STABLE LANGUAGE sql AS 'SELECT * FROM people';
CREATE FUNCTION numbers() RETURNS TABLE (n int) STABLE LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION below(people) RETURNS SETOF people STABLE
    LANGUAGE sql AS 'SELECT * FROM people WHERE boss = $1.id';
"""
N: dict[str, Any] = {"measures": {"n": {"count": "*"}}}


def relations() -> int:
    """Return the number of relation objects in memory."""
    gc.collect()
    return sum(isinstance(each, Relation) for each in gc.get_objects())


@pytest_twisted.ensureDeferred
async def test_refusal_of_unknown_names_caches_nothing(dsn: str) -> None:
    """A refused call caches nothing, whatever its names."""
    async with serving(dsn) as db:

        async def ask(at: int) -> None:
            odd = f"odd_{at}"
            calls: list[tuple[str, dict[str, Any]]] = [
                ("people.aggregate", {**N, "having": {odd: 1}}),
                ("people.aggregate", {**N, "having": {odd: None}}),
                ("people.aggregate", {**N, "order": [odd]}),
                ("people.find", {"embed": {"people": {**N, "order": [odd], "direction": "many"}}}),
                ("people.find", {"embed": {"below": {"where": {odd: 1}}}}),
                ("people.find", {"where": {f"below.{odd}": 1}}),
                ("fn.everyone.find", {"where": {odd: 1}}),
                ("fn.everyone.find", {"where": {odd: None}}),
                ("fn.numbers.find", {"select": [odd]}),
                ("fn.everyone.aggregate", {**N, "group": [odd]}),
            ]
            # At once, so that all wait for the same look at the catalog: each look is followed by a rest.
            refusals = [ensureDeferred(failure_of(db.call(name, **kw))) for name, kw in calls]
            for refused in await gatherResults(refusals):
                assert isinstance(refused, InvalidArgument)

        for at in range(3):
            await ask(at)
        before = relations()
        for at in range(50):
            await ask(at)
        assert relations() - before < 10
