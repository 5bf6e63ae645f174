"""
Names of embeds and their columns: any names that differ in the result.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.errors import InvalidArgument
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE boats (id int PRIMARY KEY, name text);
CREATE TABLE trips (id int PRIMARY KEY, boat int REFERENCES boats, cost numeric);
INSERT INTO boats VALUES (1, 'Argo');
INSERT INTO trips VALUES (1, 1, 2.50), (2, NULL, 1);
"""
LONG = "x" * 70
CALLED = {"boat": {"spread": True, "select": ["called:name"]}}


ANSWERS: list[tuple[dict[str, Any], list[Any]]] = [
    # a spread embed with the name of a column, which is selected, too
    ({"embed": CALLED}, [{"id": 1, "boat": 1, "cost": "2.50", "called": "Argo"}]),
    ({"select": ["boat"], "embed": CALLED}, [{"boat": 1, "called": "Argo"}]),
    ({"select": ["e0:id", "boat"], "embed": CALLED}, [{"e0": 1, "boat": 1, "called": "Argo"}]),
    ({"select": ["boat"], "embed": CALLED, "form": "lists"}, [[1, "Argo"]]),
    # two of them, each with the name of a column of the other
    (
        {
            "select": [],
            "embed": {
                "a": {"relation": "boats", "spread": True, "select": ["b:name"]},
                "b": {"relation": "boats", "spread": True, "select": ["a:id"]},
            },
        },
        [{"b": "Argo", "a": 1}],
    ),
    # the same within an embed
    (
        {"select": [], "embed": {"boats": {"select": ["name"], "embed": {"trips": {
            "select": ["boat", "cost"], "embed": CALLED}}}}},
        [{"boats": {"name": "Argo", "trips": [{"boat": 1, "cost": "2.50", "called": "Argo"}]}}],
    ),
    # names that PostgreSQL truncates
    (
        {"select": [f"{LONG}:cost"], "embed": {f"y{LONG}": {"relation": "boats", "select": [
            f"{LONG}:name"], "embed": {f"z{LONG}": {"relation": "trips", "select": [
                f"é{LONG}:cost"]}}}}},
        [{LONG: "2.50", f"y{LONG}": {LONG: "Argo", f"z{LONG}": [{f"é{LONG}": "2.50"}]}}],
    ),
    (
        {"select": [], "embed": {LONG: {"relation": "boats", "spread": True, "select": [
            f"{LONG}:name", "id"]}}},
        [{LONG: "Argo", "id": 1}],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kwargs", "expected"), ANSWERS)
@pytest_twisted.ensureDeferred
async def test_value_of_an_embed_has_its_own_name(
    db: DirectCaller, kwargs: dict[str, Any], expected: list[Any]
) -> None:
    found = await db.call("trips.find", where={"id": 1}, **kwargs)
    assert found["rows"] == expected
    if "form" not in kwargs:
        changed = {"where": {"id": 1}, "changes": {"cost": "2.50"}}
        assert (await db.call("trips.update", **changed, **kwargs))["rows"] == expected


@pytest.mark.parametrize(
    ("kwargs", "path"),
    [
        ({"select": ["called:id"], "embed": CALLED}, "embed"),
        ({"select": [], "embed": {f"{LONG}a": {"relation": "boats"},
                                  f"{LONG}b": {"relation": "boats"}}}, "embed"),
        ({"select": [], "embed": {"boats": {"select": [f"{LONG}a:id", f"{LONG}b:name"]}}},
         "embed.boats"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_names_that_clash_in_an_embed_are_refused(
    db: DirectCaller, kwargs: dict[str, Any], path: str
) -> None:
    refused = await failure_of(db.call("trips.find", **kwargs))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == path
