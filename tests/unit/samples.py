"""
A small catalog for tests that need no database.
"""

from __future__ import annotations

from service.catalog import (
    Argument,
    Catalog,
    Column,
    ForeignKey,
    Function,
    Relation,
    Type,
    UniqueKey,
)

BASE = {
    16: ("bool", "boolean", "B"),
    20: ("int8", "bigint", "N"),
    21: ("int2", "smallint", "N"),
    23: ("int4", "integer", "N"),
    25: ("text", "text", "S"),
    114: ("json", "json", "U"),
    1043: ("varchar", "character varying", "S"),
    1700: ("numeric", "numeric", "N"),
    1184: ("timestamptz", "timestamp with time zone", "D"),
    3614: ("tsvector", "tsvector", "U"),
    3734: ("regconfig", "regconfig", "N"),
    3802: ("jsonb", "jsonb", "U"),
}
ARRAYS = {1000: 16, 1005: 21, 1016: 20, 1007: 23, 1009: 25, 1015: 1043, 3807: 3802}


def types() -> dict[int, Type]:
    """Return the types that the sample relations use, with their arrays, a range and an enum."""
    found = {
        oid: Type(oid, "pg_catalog", name, sql, "base", category, comparable=name != "json")
        for oid, (name, sql, category) in BASE.items()
    }
    for oid, element in ARRAYS.items():
        of = found[element]
        found[oid] = Type(
            oid, "pg_catalog", f"_{of.name}", f"{of.sql}[]", "array", "A", element=element
        )
    found[3904] = Type(3904, "pg_catalog", "int4range", "int4range", "range", "R", base=23)
    found[9000] = Type(9000, "public", "mood", "public.mood", "enum", "E", labels=("sad", "ok"))
    return found


def catalog() -> Catalog:
    """Return a catalog of actions (with a key), notes (without) and "odd %.name"."""
    actions = Relation(
        "public",
        "actions",
        "table",
        {
            "id": Column("id", 23, "integer", nullable=False, identity="d"),
            "action": Column("action", 1043, "character varying(8)", nullable=False, max_length=8),
            "status": Column("status", 16, "boolean", nullable=False, default="false"),
            "doc": Column("doc", 3802, "jsonb"),
            "raw": Column("raw", 114, "json"),
            "tags": Column("tags", 1009, "text[]"),
            "span": Column("span", 3904, "int4range"),
            "mood": Column("mood", 9000, "mood"),
            "owner": Column("owner", 23, "integer"),
            "made": Column("made", 1184, "timestamp with time zone", generated="s"),
        },
        ("id",),
        (UniqueKey("actions_pkey", ("id",)), UniqueKey("actions_ao", ("action", "owner"))),
        (ForeignKey("actions_owner_fkey", ("owner",), ("public", "actions"), ("id",)),),
    )
    notes = Relation("public", "notes", "view", {"note": Column("note", 25, "text")})
    odd = Relation(
        "app",
        'odd %."name',
        "table",
        {'a"%s': Column('a"%s', 23, "integer", nullable=False)},
        ('a"%s',),
        (UniqueKey("odd_pkey", ('a"%s',)),),
    )
    relations = {(each.schema, each.name): each for each in (actions, notes, odd)}
    return Catalog(1, ("public", "app"), relations, types())


def demo_catalog() -> Catalog:
    """Return a catalog of drivers and vehicles, as the project's own, and two functions."""
    drivers = Relation(
        "public",
        "drivers",
        "table",
        {
            "id": Column("id", 20, "bigint", nullable=False, identity="d"),
            "name": Column("name", 1043, "character varying(255)", nullable=False),
            "phone": Column("phone", 1043, "character varying(32)"),
        },
        ("id",),
        (UniqueKey("pk_drivers", ("id",)),),
    )
    vehicles = Relation(
        "public",
        "vehicles",
        "table",
        {
            "id": Column("id", 20, "bigint", nullable=False, identity="d"),
            "plate": Column("plate", 1043, "character varying(16)", nullable=False),
            "model": Column("model", 1043, "character varying(255)", nullable=False),
            "seats": Column("seats", 21, "smallint", nullable=False, default="4"),
            "driver_id": Column("driver_id", 20, "bigint"),
        },
        ("id",),
        (UniqueKey("pk_vehicles", ("id",)), UniqueKey("uq_vehicles_plate", ("plate",))),
        (
            ForeignKey(
                "fk_vehicles_driver_id_drivers", ("driver_id",), ("public", "drivers"), ("id",)
            ),
        ),
    )
    row = tuple((name, column.type) for name, column in vehicles.columns.items())
    of_vehicles = Type(9100, "public", "vehicles", "public.vehicles", "composite", "C", fields=row)
    functions = (
        Function("public", "add", (Argument("a", 23), Argument("b", 23, has_default=True)), 23,
                 volatility="immutable"),
        Function("public", "with_seats", (Argument("least", 21),), 9100, many=True,
                 volatility="stable"),
    )  # fmt: skip
    return Catalog(
        1,
        ("public",),
        {(each.schema, each.name): each for each in (drivers, vehicles)},
        {**types(), of_vehicles.oid: of_vehicles},
        {(each.schema, each.name): (each,) for each in functions},
    )
