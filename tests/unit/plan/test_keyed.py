"""Which rows of a live query can be read again by their key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.catalog import Column, Type
from service.plan.read_plan import plan_aggregate, plan_find
from service.plan.watch_plan import keyed_read
from service.request.read_request import Limits, parse_aggregate, parse_find
from tests.unit.samples import catalog

ARRAYS = {
    oid: Type(oid, "pg_catalog", f"_{element}", "", "array", "A", element=element)
    for oid, element in ((1185, 1184), (1231, 1700), (9001, 9000))
}
CATALOG = replace(catalog(), types={**catalog().types, **ARRAYS})
ACTIONS = CATALOG.relation("public", "actions")
TEXT = Column("id", 25, "text", nullable=False)


@pytest.mark.parametrize(
    ("column", "groups"),
    [
        (TEXT, True),
        (replace(TEXT, loose=True), False),
        (replace(TEXT, type=9000, declared="mood"), True),
        (replace(TEXT, type=1700, declared="numeric"), False),
        (replace(TEXT, type=1700, declared="numeric(8,2)"), True),
        (replace(TEXT, type=1184, declared="timestamp with time zone"), True),
    ],
)
def test_equal_values_of_different_text_identify_rows_but_no_groups(
    column: Column, groups: bool
) -> None:
    relation = replace(ACTIONS, columns={"id": column}, primary_key=("id",))
    found: Any = parse_find((), {}, Limits(), "actions").request
    grouped = parse_aggregate([{"n": {"count": "*"}}], {"group": ["id"]}, Limits()).request
    assert keyed_read(CATALOG, plan_find(CATALOG, relation, found)) is not None
    plan = plan_aggregate(CATALOG, relation, grouped)
    assert (keyed_read(CATALOG, plan) is not None) is groups
