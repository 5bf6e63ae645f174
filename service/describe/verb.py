"""
The class of the verb table's rows, schemas shared by verbs and other procedures, and the description of a
verb for certain rows.
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
    A verb: one row of the verb table, with all that is particular to it.

    Args:
        name: The last component of its URIs.
        handler: Takes a `Call`; returns its only `Step`, or an awaitable of the result or of the last
            step if there are several. None in the table if the handler has state, as for uploads: the
            verb is served once its handler is registered with the dispatcher.
        arguments: JSON Schema of its arguments, the same for all relations.
        result: JSON Schema of its result; may be just a reference to that of another verb.
        errors: Errors that it may raise.
        positional: Names of the arguments that may be positional, in order.
        takes: Arguments whose schema depends on the relation: its "key" or "keys", new "values", or
            "trees" of them with related rows, an "update", or rows that are "imported".
        answers: The default form of its result: a "row", "rows", rows "got" by keys, "null", a "page"
            of rows, or rows "written".
        sends: The default form of each progressive result.
        progress: JSON Schema of each progressive result; None if it sends none.
        rights: Privileges that the caller's role needs; the first one also determines which views
            have the verb.
        fits: Whether a relation has what else the verb needs.
        on_functions: Whether the rows of functions have it, too.
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
"""Arguments of everything that writes."""
FORM = {"form": words(*FORMS)}


def forms(*usual: Schema, more: Iterable[Schema] = ()) -> Schema:
    """Return the schema of a result in its default forms, as lists, as JSON text, or in `more` forms."""
    return any_of(*usual, reference("lists"), reference("text"), *more)


class DescribedRows(ABC):
    """
    Rows of one kind, with their shared parts of the document: `row.<name>`, `rows.<name>`.

    Args:
        defs: Shared parts of the document.
        name: Name of the relation in URIs, or of the function with its index among the overloads.
    """

    prefix: ClassVar[str] = ""
    """Prefix of a verb's name in the names of parts that all such rows share."""

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
        """Return a reference to a part, by its name in the verb table."""
        if kind == "null":
            return NULL
        if kind in ("page", "written"):
            return {**reference(kind), "properties": {"rows": self.part("rows")}}
        return self.defs.refer(f"{kind}.{self.name}", self.makers[kind])

    def described(
        self, verb: Verb, takes: Mapping[str, Any], required: Iterable[str] = ()
    ) -> dict[str, Any]:
        """
        Describe a verb on these rows: its arguments, result and errors.

        Args:
            verb: The verb.
            takes: Schemas of the arguments that depend on the rows.
            required: Further required arguments.
        """
        # Keywords beside a $ref (allowed since 2019-09) describe what is particular to these rows. The rest
        # of a verb is in the document once, so that the document of a large database fits into one result.
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
        """Return the schema of a result, with the default form first."""
        usual = [self.part(each) for each in parts]
        return any_of(*usual, shared) if usual else shared
