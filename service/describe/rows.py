"""
What verbs take and answer: one mechanism for the rows of relations and those of functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from service.describe.definitions import Definitions, Schema, reference
from service.describe.type_schemas import NULL
from service.describe.verb import Verb


class DescribedRows(ABC):
    """
    Rows of one kind, with their parts of the document: `row.<name>`, `rows.<name>`.

    Args:
        defs: Take the parts, each when something first refers to it.
        name: Of the relation in URIs, or of the function with its place among those of its name.
    """

    prefix: ClassVar[str] = ""
    """Stands before a verb in the names of what is the same for all such rows."""

    def __init__(self, defs: Definitions, name: str) -> None:
        self.defs = defs
        self.name = name
        self.makers: dict[str, Callable[[], Schema]] = {
            "row": self.row,
            "rows": lambda: {"type": "array", "items": self.part("row")},
            "got": lambda: {"type": "array", "items": {"anyOf": [self.part("row"), NULL]}},
        }

    @abstractmethod
    def row(self) -> Schema:
        """Build the schema of a row as it is read."""

    def part(self, kind: str) -> Schema:
        """Return a reference to a part, by the name that the table of verbs has for it."""
        if kind == "null":
            return NULL
        if kind in ("page", "written"):
            return {**reference(kind), "properties": {"rows": self.part("rows")}}
        return self.defs.refer(f"{kind}.{self.name}", self.makers[kind])

    def described(
        self, verb: Verb, takes: Mapping[str, Any], required: Iterable[str] = ()
    ) -> dict[str, Any]:
        """
        Describe a verb on these rows: what it takes and answers, and how it fails.

        Args:
            verb: The row of the table.
            takes: The schemas of those arguments that are not the same for all rows.
            required: Arguments that these rows need besides.
        """
        arguments: dict[str, Any] = dict(reference(f"arguments.{self.prefix}{verb.name}"))
        if takes:
            arguments["properties"] = dict(takes)
        if required:
            arguments["required"] = list(required)
        shared = verb.result if "$ref" in verb.result else reference(f"result.{verb.name}")
        found = {
            "arguments": arguments,
            "result": self._answer(verb.answers, shared),
            "errors": reference(f"errors.{self.prefix}{verb.name}"),
        }
        if verb.progress is not None:
            found["progress"] = self._answer(verb.sends, reference(f"progress.{verb.name}"))
        return found

    def _answer(self, parts: Iterable[str], shared: Schema) -> Schema:
        """Return an answer: first what a call gets that asks for no form and no columns."""
        usual = [self.part(each) for each in parts]
        return {"anyOf": [*usual, shared]} if usual else shared
