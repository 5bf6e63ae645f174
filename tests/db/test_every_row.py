"""
Filters that hold for every row by their form alone, in PostgreSQL.
"""

from __future__ import annotations

from typing import Any

import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import InvalidArgument
from service.request.arguments import Values
from service.request.filters import FilterParser, holds_always
from tests.amounts import amount
from tests.db import test_filtering
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = (
    test_filtering.SCHEMA
    + """
CREATE TYPE seen_from AS (x int, y text);
ALTER TABLE hotels ADD seen seen_from;
UPDATE hotels SET seen = (CASE id WHEN 1 THEN '(1,a)' WHEN 2 THEN '(1,)' WHEN 3 THEN '(,)' END)::seen_from;
"""
)


ATOMS = st.one_of(
    *(
        st.sampled_from(conditions).map(lambda condition, column=column: {column: condition})
        for column, conditions in {
            "id": [
                1, {"gt": 1}, {"lte": 1}, {"not": None}, [], {"not": [None]}, {"lt": {"all": []}},
                {"eq": {"$column": "id"}}, {"lt": {"$column": "id"}}, {"gte": {"$column": "maker"}},
            ],
            "maker": [
                None, {"gte": {"$column": "maker"}}, {"isdistinct": {"$column": "maker"}},
                {"eq": {"$column": "id"}}, {"neq": {"$column": "id"}}, {"isdistinct": {"$column": "id"}},
            ],
            "maker::text": [None, {"eq": {"$column": "maker::text"}}, {"eq": {"$column": "id::text"}}],
            "name": [
                None, "Ann", {"neq": "Ann"}, {"isdistinct": "Ann"}, {"not": {"isdistinct": "Ann"}},
                {"is": "not null"}, ["Ann", None], {"not": ["Ann"]}, {"eq": {"all": []}},
                {"like": {"any": []}}, {"gte": {"any": ["B"]}}, {"lt": {"all": ["B"]}},
            ],
            "open": [True, False, None, {"is": True}, {"is": False}, {"is": "unknown"}],
            "seen": [None, {"is": "not null"}, {"not": None}, {"eq": {"x": 1, "y": "a"}}],
            "rooms": [None, {}, {"is": "not null"}, {"stars": 3}, {"stars": []}, {"not": {}}],
            "rooms.stars": [3, [], {"not": []}],
        }.items()
    )
)  # fmt: skip
TREES = st.recursive(
    ATOMS | st.just({}),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda each: {"and": each}),
        st.lists(inner, max_size=3).map(lambda each: {"or": each}),
        inner.map(lambda each: {"not": each}),
    ),
    max_leaves=6,
)


def always(where: Any) -> bool:
    """Return whether a filter always holds by its form."""
    values = Values()
    return holds_always(FilterParser(values, 40).parse(where), values.freeze())


@pytest_twisted.ensureDeferred
async def test_composite_with_a_null_field_is_not_null(db: DirectCaller) -> None:
    """A composite value with a null field is not null, although IS NOT NULL is false for it."""
    assert [
        row["id"]
        for each in ({"is": "not null"}, None, {"not": None})
        for row in (await db.call("hotels.find", where={"seen": each}, order=["id"]))["rows"]
    ] == [1, 2, 3, 4, 1, 2]


@pytest_twisted.ensureDeferred
@settings(
    max_examples=amount(40, 400),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(where=TREES)
async def test_filter_that_always_holds_has_every_row(db: DirectCaller, where: Any) -> None:
    """Its negation matches no row."""
    if always(where):
        assert await db.call("hotels.count", where=where) == 4
        assert await db.call("hotels.count", where={"not": where}) == 0
        refused = await failure_of(db.call("hotels.delete", where=where))
        assert isinstance(refused, InvalidArgument)
        assert refused.details["path"] == "where"
