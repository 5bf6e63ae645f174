"""
Rows of `pg_type` to the types of the catalog.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from service.catalog import Type, TypeKind
from service.db.sealed import seal_of

KINDS: Mapping[str, TypeKind] = {
    "b": "base",
    "c": "composite",
    "d": "domain",
    "e": "enum",
    "m": "multirange",
    "p": "pseudo",
    "r": "range",
}

LIMITED = (1042, 1043)
"""The oids of `character` and `character varying`, whose modifier is a length plus 4."""


class TypeRows:
    """
    All types of a database, as rows of `introspect_sql.TYPES`.

    Args:
        rows: With the names of that statement's columns as attributes.
        impure: The oids of types whose values may leave something behind in a session.
    """

    def __init__(self, rows: Iterable[Any], impure: frozenset[int]) -> None:
        self._rows = {row.oid: row for row in rows}
        self._impure = impure

    def served(self, schemas: Iterable[str], used: Iterable[int]) -> dict[int, Type]:
        """
        Give the types that may be met: PostgreSQL's, of served schemas, and used ones.

        Types that these are made of come with them, and the arrays of them all.
        """
        homes = {"pg_catalog", *schemas}
        found: set[int] = set()
        pending = [row.oid for row in self._rows.values() if self._at_home(row, homes)]
        pending.extend(used)
        while pending:
            oid = pending.pop()
            if oid not in found and oid in self._rows:
                found.add(oid)
                row = self._rows[oid]
                pending.extend([row.element, row.base, row.pattern, *row.field_types])
        found.update(row.oid for row in self._rows.values() if row.element in found)
        return {oid: self._type(oid) for oid in sorted(found)}

    def seals(self) -> dict[int, tuple[bool, ...]]:
        """Give the rows with hidden fields, wherever they are; see `db/sealed`."""
        return {
            seal_of(row.field_names): tuple(not hidden for hidden in row.field_hidden)
            for row in self._rows.values()
            if any(row.field_hidden)
        }

    def max_length(self, oid: int, modifier: int) -> int | None:
        """Give the limit in characters of a type with a modifier; domains may set it too."""
        row = self._rows.get(oid)
        if row is not None and row.kind == "d":
            return self.max_length(row.base, row.modifier)
        return modifier - 4 if oid in LIMITED and modifier > 4 else None

    def required(self, oid: int) -> bool:
        """Tell whether a type refuses NULL, as a domain can."""
        row = self._rows.get(oid)
        return row is not None and row.kind == "d" and (row.required or self.required(row.base))

    def default(self, oid: int) -> str | None:
        """Give the default of a domain, which a column has if it sets none."""
        row = self._rows.get(oid)
        if row is None or row.kind != "d":
            return None
        return row.expression or self.default(row.base)

    @staticmethod
    def _at_home(row: Any, homes: set[str]) -> bool:
        return row.schema in homes and not row.element and not row.hidden

    def _type(self, oid: int) -> Type:
        row = self._rows[oid]
        return Type(
            oid=oid,
            schema=row.schema,
            name=row.name,
            sql=row.sql,
            kind="array" if row.element else KINDS[row.kind],
            category=row.category,
            element=row.element,
            base=row.base or 0,
            labels=tuple(row.labels),
            fields=tuple(
                ("" if hidden else name, of)
                for name, hidden, of in zip(
                    row.field_names, row.field_hidden, row.field_types, strict=True
                )
            ),
            withheld=frozenset(
                name
                for name, allowed in zip(row.field_names, row.field_allowed, strict=True)
                if not allowed
            ),
            delimiter=row.delimiter,
            comparable=self._comparable(oid, frozenset()),
            pattern=row.pattern,
            row=row.row,
            pure=oid not in self._impure,
        )

    def _comparable(self, oid: int, above: frozenset[int]) -> bool:
        row = self._rows.get(oid)
        if row is None or oid in above:
            return row is not None
        above |= {oid}
        if row.element or row.kind == "d":
            return self._comparable(row.element or row.base, above)
        if row.kind == "c":
            return all(self._comparable(each, above) for each in row.field_types)
        return row.kind in "erm" or row.ordered


def shown(comment: str | None) -> str | None:
    """Give a comment less the lines that speak to the service."""
    lines = (comment or "").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("@")).strip() or None
