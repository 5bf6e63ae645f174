"""
The rows of a relation as JSON Schema: as read, as created, as changed, and what names one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.catalog import Column, Relation
from service.describe.definitions import Definitions, Schema, reference
from service.describe.grammar import record
from service.describe.types import NULL, given, new, value

LONGEST = 1000
"""Characters: a longer limit is not spelled as a pattern."""


class Rows:
    """
    Args:
        defs: Take the schemas.
        relation: Whose rows.
        name: Of the relation in URIs.
    """

    def __init__(self, defs: Definitions, relation: Relation, name: str) -> None:
        self._defs = defs
        self._relation = relation
        self._name = name

    @property
    def read(self) -> Schema:
        """Return a reference to a row as it is read."""
        columns = [each for each in self._relation.columns.values() if each.selectable]
        return self._defs.refer(
            f"row.{self._name}",
            lambda: record(
                {each.name: self._read(each) for each in columns}, [each.name for each in columns]
            ),
        )

    @property
    def new(self) -> Schema:
        """Return a reference to a new row, whatever it lacks."""
        filled = self._relation.filled
        return self._defs.refer(
            f"new.{self._name}", lambda: self._given(self._insertable, nullable=filled)
        )

    @property
    def insert(self) -> Schema:
        """Return a reference to a new row with all that it needs."""
        needed = [
            each.name
            for each in self._insertable
            if not (each.nullable or each.has_default or self._relation.filled)
        ]
        needs: Schema = {"required": needed} if needed else {}
        return self._defs.refer(f"insert.{self._name}", lambda: {**self.new, **needs})

    @property
    def update(self) -> Schema:
        """Return a reference to changes of a row."""
        columns = [each for each in self._relation.columns.values() if each.updatable]
        if columns == self._insertable and not self._relation.filled:
            return self._defs.refer(f"update.{self._name}", lambda: self.new)
        return self._defs.refer(f"update.{self._name}", lambda: self._given(columns))

    @property
    def rows(self) -> Schema:
        """Return a reference to a list of rows as they are read."""
        return self._defs.refer(f"rows.{self._name}", lambda: {"type": "array", "items": self.read})

    @property
    def values(self) -> Schema:
        """Return a reference to a new row or a list of them."""
        return self._defs.refer(
            f"values.{self._name}",
            lambda: {"anyOf": [self.insert, {"type": "array", "items": self.insert}]},
        )

    @property
    def created(self) -> Schema:
        """Return a reference to what `create` and `upsert` answer; null: the row was left alone."""
        return self._defs.refer(
            f"created.{self._name}",
            lambda: {"anyOf": [self.read, self.rows, NULL, reference("result.create")]},
        )

    @property
    def changed(self) -> Schema:
        """Return a reference to what `update` and `delete` answer."""
        written = {**reference("written"), "properties": {"rows": self.rows}}
        return self._defs.refer(
            f"changed.{self._name}",
            lambda: {"anyOf": [self.read, written, reference("result.update")]},
        )

    @property
    def key(self) -> Schema | None:
        """Return a reference to what names a row; None if nothing does."""
        if not self._relation.primary_key:
            return None
        return self._defs.refer(f"key.{self._name}", self._key)

    @property
    def _insertable(self) -> list[Column]:
        return [each for each in self._relation.columns.values() if each.insertable]

    def _read(self, column: Column) -> Schema:
        schema = value(self._defs, self._defs.catalog.type(column.type), column.nullable)
        limit = column.max_length
        return schema if limit is None else {**schema, "maxLength": limit}

    def _given(self, columns: Iterable[Column], nullable: bool = False) -> Schema:
        return record({each.name: self._written(each, nullable) for each in columns})

    def _written(self, column: Column, nullable: bool) -> Schema:
        if column.generated_always:
            return reference("default")
        type = self._defs.catalog.type(column.type)
        schema = new(self._defs, type, column.nullable or nullable)
        limit = column.max_length
        if limit is None or limit > LONGEST:
            return schema
        # PostgreSQL cuts spaces off the end to make a value fit
        return {**schema, "pattern": rf"^[\s\S]{{0,{limit}}} *$"}

    def _key(self) -> Schema:
        relation = self._relation
        parts = [self._part(name) for name in relation.primary_key]
        values = {
            "type": "array",
            "prefixItems": parts,
            "minItems": len(parts),
            "maxItems": len(parts),
        }
        named = self._named([each.columns for each in relation.unique_keys])
        return {"anyOf": [*(parts if len(parts) == 1 else ()), values, named]}

    def _named(self, keys: Sequence[Sequence[str]]) -> Schema:
        columns = dict.fromkeys(name for key in keys for name in key)
        named = record({name: self._part(name) for name in columns})
        return {**named, "anyOf": [{"required": list(key)} for key in keys]}

    def _part(self, name: str) -> Schema:
        type = self._defs.catalog.type(self._relation.columns[name].type)
        return given(self._defs, type, nullable=False)
