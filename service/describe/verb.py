"""
What a verb is, what others beside verbs take and answer, too, and how one is described for some rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from service.catalog import Relation
from service.describe import error_schemas
from service.describe.json_schema import (
    NULL,
    Definitions,
    Schema,
    any_of,
    array,
    reference,
    schema,
    words,
)
from service.request.arguments import IDEMPOTENCY_KEY, RECEIPT
from service.request.read_request import FORMS

Right = Literal["select", "insert", "update", "delete"]


def _has_all(relation: Relation) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Verb:
    """
    A verb: all that is particular to it, in one place.

    Args:
        name: The last part of its URIs.
        handler: Takes a `Call` of it, and returns the one step that answers it, or an awaitable
            of the answer, or of the last step, where that takes several. None in the table where the handler keeps a state, as
            of uploads: it is served once that is registered with the dispatcher.
        arguments: JSON Schema of what it takes, by name, whatever the relation.
        result: Of what it answers; a mere reference to that of another verb is one.
        errors: What it may end with.
        positional: What may be given by position, in its order.
        takes: Arguments that are of the relation: its "key" or "keys", new "values", or "trees" of them
            with related rows, an "update", or what is "imported".
        answers: What it answers first: a "row", "rows", those "got" by keys, "null", or rows in a
            "page" or as "written".
        sends: What each progressive result is first.
        progress: Of each progressive result; None if it sends none.
        rights: What the caller's role must be allowed; the first one also says what kind of
            write it is to a view.
        fits: Whether a relation has what it needs besides.
        on_functions: Whether it is there for the rows of functions, too.
    """

    name: str
    handler: Callable[[Any], Any] | None
    arguments: Schema
    result: Schema
    errors: error_schemas.Kinds
    positional: tuple[str, ...] = ()
    takes: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    sends: tuple[str, ...] = ()
    progress: Schema | None = None
    rights: tuple[Right, ...] = ("select",)
    fits: Callable[[Relation], bool] = _has_all
    on_functions: bool = False

    @property
    def writes(self) -> bool:
        """Whether it changes rows, and so takes an idempotency key."""
        return self.rights[0] != "select"


COUNTED: Schema = {**schema(int), "minimum": 0}
ROWS: Schema = array(dict)
NAMES: Schema = array(str)
TIMEOUT = {"timeout": reference("seconds")}
WRITES = {each: reference(each) for each in (IDEMPOTENCY_KEY, RECEIPT)}
"""What everything that writes takes."""
FORM = {"form": words(*FORMS)}


def forms(*usual: Schema, more: Iterable[Schema] = ()) -> Schema:
    """Return the schema of an answer in its usual forms, as lists or as JSON text, or in others."""
    return any_of(*usual, reference("lists"), reference("text"), *more)


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
            "rows": lambda: array(self.part("row")),
            "got": lambda: array(any_of(self.part("row"), NULL)),
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
        # Beside the $ref stands what is of these rows alone, as 2020-12 has it: all else of a verb
        # is in the document once, since a large database's has to fit into one answer.
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
        return any_of(*usual, shared) if usual else shared
