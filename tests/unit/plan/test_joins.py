"""Which relationship an embed means: foreign keys in both directions, junctions, functions of a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.catalog import Argument, Catalog, Column, ForeignKey, Function, Relation, UniqueKey
from service.errors import InvalidArgument, UnknownName
from service.plan.joins import (
    Join,
    computed_columns,
    is_related,
    keyless,
    label_of,
    related,
    relationships,
)
from service.request.requests import Embed
from tests.unit.samples import demo_catalog

DEMO = demo_catalog()
DRIVERS, VEHICLES = DEMO.relation("public", "drivers"), DEMO.relation("public", "vehicles")
ID = Column("id", 20, "bigint", nullable=False)


def column(name: str) -> Column:
    """Return a column of a foreign key."""
    return Column(name, 20, "bigint")


def table(name: str, *keys: ForeignKey, unique: tuple[str, ...] = ()) -> Relation:
    """Return a table with an id and foreign keys, and a unique key if one is given."""
    columns = {"id": ID, **{each: column(each) for key in keys for each in key.columns}}
    known = [UniqueKey(f"pk_{name}", ("id",))]
    known += [UniqueKey(f"uq_{name}", unique)] if unique else []
    return Relation("public", name, "table", columns, ("id",), tuple(known), keys)


def key(name: str, target: str) -> ForeignKey:
    """Return a foreign key of a column of its name."""
    return ForeignKey(f"fk_{name}", (name,), ("public", target), ("id",))


def schema(*relations: Relation, **rest: Any) -> Catalog:
    """Return a catalog of tables."""
    served = {(each.schema, each.name): each for each in relations}
    return replace(DEMO, relations=served, **rest)


def embed(name: str, **options: Any) -> Any:
    """Return an embed without options."""
    return replace(Embed(name, f"embed.{name}"), **options)


PEOPLE, CLUBS = table("people"), table("clubs")
MEMBERS = table("members", key("person", "people"), key("club", "clubs"), unique=("person", "club"))
LETTERS = table("letters", key("sender", "people"), key("receiver", "people"))
SCHEMA = schema(PEOPLE, CLUBS, MEMBERS, LETTERS)


@pytest.mark.parametrize(
    ("relation", "name", "target", "many"),
    [
        (VEHICLES, "drivers", "drivers", False),
        (VEHICLES, "driver_id", "drivers", False),
        (VEHICLES, "fk_vehicles_driver_id_drivers", "drivers", False),
        (VEHICLES, "public.drivers", "drivers", False),
        (VEHICLES, "drivers!driver_id", "drivers", False),
        (DRIVERS, "vehicles", "vehicles", True),
        (DRIVERS, 'vehicles!"driver_id"', "vehicles", True),
    ],
)
def test_foreign_key_relates_either_way(
    relation: Relation, name: str, target: str, many: bool
) -> None:
    """It is named by the other table, by the key, or by its column on this side."""
    found = related(DEMO, relation, embed(name))
    assert (found.target.name, found.many) == (target, many)


def test_junction_relates_many_to_many() -> None:
    """A table with a unique key of two foreign keys relates the tables that these reference."""
    found = related(SCHEMA, PEOPLE, embed("clubs"))
    assert found.many
    assert found.junction is not None
    assert found.junction.relation is MEMBERS
    assert found.junction.outer_pairs == (("id", "person"),)
    assert found.junction.related_pairs == (("club", "id"),)
    loose = schema(PEOPLE, CLUBS, replace(MEMBERS, unique_keys=MEMBERS.unique_keys[:1]))
    assert not is_related(loose, PEOPLE, embed("clubs"))


def test_unique_foreign_key_relates_one_row() -> None:
    """A unique foreign key has at most one referencing row."""
    one = schema(PEOPLE, table("passports", key("person", "people"), unique=("person",)))
    assert related(one, PEOPLE, embed("passports")).many is False


def test_several_foreign_keys_are_ambiguous_until_one_is_named() -> None:
    """The error lists candidates, each of which means one of them."""
    with pytest.raises(InvalidArgument, match="several ways") as refused:
        related(SCHEMA, PEOPLE, embed("letters"))
    candidates = refused.value.details["candidates"]
    assert candidates == ["fk_receiver", "fk_sender"]
    pairs = {related(SCHEMA, PEOPLE, embed(f"letters!{each}")).pairs for each in candidates}
    assert pairs == {(("id", "receiver"),), (("id", "sender"),)}
    assert related(SCHEMA, PEOPLE, embed("letters", via="sender")).pairs == (("id", "sender"),)


def test_self_reference_needs_a_direction() -> None:
    """Both directions have the same name."""
    tree = schema(table("nodes", key("parent", "nodes")))
    nodes = tree.relation("public", "nodes")
    with pytest.raises(InvalidArgument, match="several ways"):
        related(tree, nodes, embed("nodes"))
    assert related(tree, nodes, embed("nodes", direction="one")).pairs == (("parent", "id"),)
    assert related(tree, nodes, embed("nodes", direction="many")).pairs == (("id", "parent"),)
    assert related(tree, nodes, embed("parent")).many is False


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("driverz", 'did you mean "drivers"?'),
        ("seats", '"seats" is a column; a value in JSON is "seats->key"'),
    ],
)
def test_unknown_relationship_is_refused_with_a_hint(name: str, hint: str) -> None:
    """The hint says that the name is a column's, or gives a similar name."""
    with pytest.raises(UnknownName) as refused:
        related(DEMO, VEHICLES, embed(name))
    assert refused.value.details["hint"] == hint
    assert refused.value.details["path"] == f"embed.{name}"


def test_labels_mean_one_relationship_each() -> None:
    """In any schema, the label of a relationship means this one only."""
    for relation in (PEOPLE, CLUBS, MEMBERS, LETTERS):
        known = relationships(SCHEMA, relation)
        for each in known:
            alike: list[Join] = [way for way in known if way.target is each.target]
            via = label_of(each, alike).strip('"')
            assert related(SCHEMA, relation, embed(each.target.name, via=via)) == each


def served_functions(*functions: Function) -> Catalog:
    """Return the demo's catalog with functions."""
    return replace(DEMO, functions={(each.schema, each.name): (each,) for each in functions})


def test_function_of_a_row_is_a_computed_column() -> None:
    """A function of a row that returns a scalar is a column; void, sets and rows are not."""
    row = (Argument("", 9100),)
    known = served_functions(
        Function("public", "label", row, 25, volatility="stable"),
        Function("public", "done", row, 2278),
        Function("public", "others", row, 9100, many=True, volatility="stable"),
        Function("public", "plate", row, 25),
        Function("public", "nameless", (*row, Argument("", 23)), 25),
        Function("public", "two", (*row, Argument("n", 23)), 25),
        Function("public", "many", (*row, Argument("n", 1007, "variadic")), 25),
    )
    assert set(computed_columns(known, VEHICLES)) == {"label", "two"}
    assert related(known, VEHICLES, embed("others")).many
    unreadable = replace(VEHICLES, readable=False)
    assert computed_columns(replace(known, version=2), unreadable) == {}


def test_rows_of_a_function_have_no_key() -> None:
    """A function may return a row twice."""
    bare = keyless(DEMO, VEHICLES)
    assert (bare.primary_key, bare.unique_keys) == ((), ())
    assert bare.columns is VEHICLES.columns
