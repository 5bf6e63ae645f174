"""Conflicts and imports against keys and indexes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.catalog import CatalogSQL, Column, Relation, UniqueIndex, UniqueKey
from service.errors import InvalidArgument
from service.plan.plans import PlannedConflict
from service.plan.write_plan import plan_create, plan_import
from service.request.read_request import Limits
from service.request.requests import OnConflict
from service.request.write_request import parse_upsert
from tests.unit.samples import demo_catalog

DEMO = demo_catalog()
VEHICLES = DEMO.relation("public", "vehicles")
BUS = {"plate": "B", "model": "bus"}
OPEN = UniqueIndex(
    "ix_open",
    ("plate",),
    ("plate", "model"),
    CatalogSQL("(plate, lower(model)) WHERE seats > 4"),
    True,
)


def upserted(values: Any, relation: Relation = VEHICLES, **kwargs: Any) -> PlannedConflict:
    """Plan what an upsert does with existing rows."""
    request = parse_upsert([values], kwargs, Limits()).request
    conflict = plan_create(DEMO, relation, request).conflict
    assert conflict is not None
    return conflict


def updates(conflict: PlannedConflict) -> dict[str, int]:
    """Return the columns that are updated, each with the number of rows that keep their stored value."""
    return {each.column.name: len(each.kept) for each in conflict.updates}


def test_existing_row_is_updated_with_the_given_columns_except_its_key() -> None:
    """The key is the primary key, unless another one is named."""
    conflict = upserted({"id": 1, **BUS})
    assert conflict.key == ("id",)
    assert updates(conflict) == {"plate": 0, "model": 0}
    assert updates(upserted(BUS, on_conflict=["plate"])) == {"model": 0}
    assert updates(upserted({"id": 1, **BUS}, update=["model"])) == {"model": 0}
    assert updates(upserted({"id": 1, **BUS}, update=[])) == {}


def test_row_with_only_its_key_sets_the_key() -> None:
    """The key is set to itself, so that RETURNING has the row."""
    assert updates(upserted({"id": 1})) == {"id": 0}


def test_existing_row_keeps_the_columns_that_its_new_row_lacks() -> None:
    """Each of several rows updates its given columns; a row without a key is inserted."""
    rows = [{"id": 1, "model": "bus"}, {"id": 2, "seats": 4}, {"seats": 6}]
    assert updates(upserted(rows)) == {"model": 1, "seats": 1}


def test_index_on_expressions_is_used_as_in_the_catalog() -> None:
    """Its plain columns are the key; columns in its expressions are updated."""
    indexed = replace(VEHICLES, unique_indexes=(OPEN,))
    conflict = upserted(BUS, indexed, on_conflict="ix_open")
    assert conflict.target == OPEN.target
    assert conflict.key == ("plate", "model")
    assert updates(conflict) == {"model": 0}


@pytest.mark.parametrize(
    ("changes", "on_conflict", "message"),
    [
        ({"primary_key": (), "unique_keys": ()}, None, "has no primary key"),
        ({}, ["model"], "no unique key over model"),
        ({"unique_keys": (UniqueKey("pk", ("id",), arbiter=False),)}, ["id"], "deferrable"),
        ({"unique_indexes": (replace(OPEN, fault="is invalid"),)}, "ix_open", "it is invalid"),
        ({"unique_indexes": (replace(OPEN, only_ignores=True),)}, "ix_open", "left alone only"),
    ],
)
def test_upsert_by_an_unusable_on_conflict_is_refused(
    changes: Any, on_conflict: Any, message: str
) -> None:
    """The error says more than PostgreSQL's would."""
    with pytest.raises(InvalidArgument, match=message) as refused:
        upserted(BUS, replace(VEHICLES, **changes), on_conflict=on_conflict)
    assert refused.value.details["path"] == "on_conflict"


def test_upsert_under_an_exclusion_constraint_can_only_skip_rows() -> None:
    """ON CONFLICT can only DO NOTHING."""
    excluding = replace(VEHICLES, unique_indexes=(replace(OPEN, only_ignores=True),))
    assert upserted(BUS, excluding, on_conflict="ix_open", update=[]).updates == ()


@pytest.mark.parametrize(
    ("changes", "conflict", "staged"),
    [
        ({}, None, False),
        ({}, OnConflict(None, None), True),
        ({"row_security": True}, None, True),
        ({"kind": "view"}, None, True),
        ({"kind": "foreign table"}, None, False),
    ],
)
def test_import_that_copy_cannot_do_is_staged(changes: Any, conflict: Any, staged: bool) -> None:
    """COPY FROM supports no ON CONFLICT, no row-level security and no views."""
    names = [("id", "rows"), ("plate", "rows")]
    relation = replace(VEHICLES, **changes)
    assert plan_import(DEMO, relation, names, False, False, conflict).staged is staged


@pytest.mark.parametrize(
    ("names", "column", "message"),
    [
        (["id", "id"], Column("id", 20, "bigint"), "named twice"),
        (["id"], Column("id", 20, "bigint", identity="a"), "made by the database"),
        (["id"], Column("id", 20, "bigint", generated="s"), "made by the database"),
        (["nope"], Column("id", 20, "bigint"), "nope"),
    ],
)
def test_import_of_a_column_that_cannot_be_written_is_refused(
    names: list[str], column: Column, message: str
) -> None:
    """The error has the path."""
    relation = replace(VEHICLES, columns={**VEHICLES.columns, "id": column})
    placed = [(name, f"columns.{at}") for at, name in enumerate(names)]
    with pytest.raises(InvalidArgument, match=message) as refused:
        plan_import(DEMO, relation, placed, False, False, None)
    assert refused.value.details["path"] == f"columns.{len(names) - 1}"
