"""
Values as JSON that PostgreSQL writes and nobody reads on the way to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from psycopg2.sql import SQL

from service.catalog import Type
from service.sql.statement import Part, doubled


def json_value(value: Iterable[Part], type: Type) -> Iterator[Part]:
    """Build a value whose JSON, as PostgreSQL writes it, is what is answered."""
    if type.form == "binary":
        yield SQL("pg_catalog.translate(pg_catalog.encode(")
        yield from value
        yield SQL(", 'base64'), E'\\n', '')")
    elif type.schema == "pg_catalog" and type.name in ("timestamptz", "_timestamptz"):
        yield SQL("CAST(pg_catalog.replace(CAST(pg_catalog.to_json(")
        yield from value
        yield SQL(") AS text), '+00:00', 'Z') AS json)")
    else:
        yield from value


def json_text(value: Iterable[Part], type: Type) -> Iterator[Part]:
    """Build a value's JSON as text; never NULL, which is a value of JSON too."""
    yield SQL("coalesce(CAST(pg_catalog.to_json(")
    yield from json_value(value, type)
    yield SQL(") AS text), 'null')")


def literal(text: str) -> SQL:
    """Return a string constant; `standard_conforming_strings` is on in every session."""
    return SQL("'" + doubled(text.replace("'", "''")) + "'")
