"""
JSON Schemas spelled as the types of a language.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.answer.stubs.named import Named, Schema


@dataclass(frozen=True)
class Spelling:
    """
    How a language spells types.

    Args:
        names: Of JSON's kinds of values, of "binary" and of "any".
        array: A list of what stands for {}.
        literal: Spells a value as the type that holds it alone.
    """

    names: Mapping[str, str]
    array: str
    literal: Callable[[Any], str]

    def of(self, named: Named, schema: Schema) -> str:
        """Spell a schema as a union of types; a row that it refers to by its class."""
        row = named.row_class(schema)
        if row is not None:
            return row
        schema = named.resolved(schema)
        if "enum" in schema:
            return _union(self.literal(value) for value in schema["enum"])
        if "anyOf" in schema:
            return _union(self.of(named, one) for one in schema["anyOf"])
        kinds = schema.get("type", "any")
        return _union(
            self._kind(named, kind, schema)
            for kind in ([kinds] if isinstance(kinds, str) else kinds)
        )

    def _kind(self, named: Named, kind: str, schema: Schema) -> str:
        if kind == "array" and "items" in schema:
            return self.array.format(self.of(named, schema["items"]))
        if kind == "string" and schema.get("format") == "binary":
            return self.names["binary"]
        return self.names[kind]


def _union(types: Any) -> str:
    return " | ".join(dict.fromkeys(types))
