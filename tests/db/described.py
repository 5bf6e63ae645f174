"""
Checks that calls, results and errors match their descriptions by `describe`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from jsonschema import Draft202012Validator

from service.api.dispatcher import Dispatcher
from service.catalog import Catalog
from service.describe.document import describe
from service.errors import ServiceError
from service.payload import WithReceipt
from tests.amounts import amount

Schema = Mapping[str, Any]

MANY = amount(5, 50)
"""Number of items of a list that are validated."""

SHAPING = {"select", "embed", "form", "returning"}
"""Arguments that change the form of a result."""


class Descriptions:
    """
    The descriptions of the catalogs that a dispatcher serves, made on first use.

    Args:
        dispatcher: The dispatcher whose verbs are described.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._made: WeakKeyDictionary[Catalog, Described] = WeakKeyDictionary()

    def of(self, catalog: Catalog) -> Described:
        """Return the description of a catalog."""
        if catalog not in self._made:
            document = describe(catalog, "rowcast", "0", self._dispatcher.verbs, {})
            self._made[catalog] = Described(document)
        return self._made[catalog]


class Described:
    """
    A description against which calls are checked.

    Args:
        document: The document that `describe` returns.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self._validators: dict[str, Draft202012Validator] = {}

    def validator(self, schema: Schema, known: str = "") -> Draft202012Validator:
        """Return a validator for a schema of the document; cache it under `known` unless that is empty."""
        found = self._validators.get(known)
        if found is None:
            found = Draft202012Validator({"allOf": [schema], "$defs": self.document["$defs"]})
            if known:
                self._validators[known] = found
        return found

    def faults(self, schema: Schema, value: Any, known: str = "") -> list[str]:
        """Return the validation errors of a value, of which only the first items are validated."""
        found = self.validator(schema, known).iter_errors(plain(_sample(value)))
        return [f"{'.'.join(map(str, each.path))}: {each.message}"[:600] for each in found]

    def resolved(self, schema: Schema) -> Schema:
        """Return the schema that a `$ref` names."""
        name = unquote(schema["$ref"].removeprefix("#/$defs/"))
        found: Schema = self.document["$defs"][name.replace("~1", "/").replace("~0", "~")]
        return found

    def uris(self, errors: Schema) -> set[str]:
        """Return the URIs in the error schema of a procedure."""
        each = [self.resolved(one) for one in self.resolved(errors)["oneOf"]]
        return {one["properties"]["error"]["const"] for one in each}

    def check_call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], answer: Any
    ) -> None:
        """Assert that the arguments and the result of a call match the description."""
        found = list(self._procedures(name))
        if not found:
            return
        answer = answer.answer if isinstance(answer, WithReceipt) else answer
        given = self._named(name, args, kwargs)
        faults = self.faults({"anyOf": [each["arguments"] for each in found]}, given, f"{name}()")
        assert not faults, (name, given, faults)
        other = SHAPING & kwargs.keys() or self._nests(name, given)
        forms = "" if other else " as usual"
        results = [each["result"] for each in found]
        if forms:
            results = [self.usual(each) for each in results]
        faults = self.faults({"anyOf": results}, answer, f"{name}{forms}")
        assert not faults, (name, kwargs, answer, faults)

    def check_refusal(self, name: str, error: ServiceError) -> None:
        """Assert that an error is one of those described for the procedure."""
        said = {"error": error.uri, "args": [error.message], "kwargs": error.details}
        for each in self._procedures(name):
            faults = self.faults(each["errors"], said, f"{name}!")
            assert not faults, (name, said, self.uris(each["errors"]))

    def usual(self, result: Schema) -> Schema:
        """Return the result schema of calls without arguments that change the form of the result."""
        if "anyOf" not in result:
            return result
        return {
            "anyOf": [
                self.usual(each)
                for each in result["anyOf"]
                if not each.get("$ref", "").startswith(("#/$defs/result.", "#/$defs/lists"))
            ]
        }

    def _procedures(self, name: str) -> Iterator[Mapping[str, Any]]:
        """Yield the procedures described under a name: a verb, a function, or a verb of functions."""
        before, _, verb = name.rpartition(".")
        relation = self.document["relations"].get(before, {"verbs": {}})
        if verb in relation["verbs"]:
            yield relation["verbs"][verb]
        yield from self.document["functions"].get(name, ())
        for function in self.document["functions"].get(before, ()):
            if verb in function["verbs"]:
                yield function["verbs"][verb]

    def _nests(self, name: str, given: Mapping[str, Any]) -> bool:
        """Return whether new rows contain related rows, which the result then embeds."""
        before, _, verb = name.rpartition(".")
        relation, values = self.document["relations"].get(before), given.get("values")
        if verb != "create" or relation is None:
            return False
        referring = {each for key in relation["foreign_keys"] for each in key["columns"]}
        names = relation["columns"].keys() - referring
        rows = values if isinstance(values, list) else [values]
        return any(
            key not in names and isinstance(value, dict | list | None)
            for row in rows
            for key, value in row.items()
        )

    def _named(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments by name, including those given by position."""
        before, _, verb = name.rpartition(".")
        if verb in self.document["relations"].get(before, {"verbs": ()})["verbs"]:
            positional = self.document["verbs"][verb]["positional"]
            return {**dict(zip(positional, args, strict=False)), **kwargs}
        return {**kwargs, "args": list(args)} if args else dict(kwargs)


def plain(value: Any) -> Any:
    """Return a value with its bytes encoded as in WAMP's JSON serialization."""
    if isinstance(value, bytes | bytearray | memoryview):
        return "\0" + b64encode(bytes(value)).decode()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _sample(value: Any) -> Any:
    """Return a value with lists cut to `MANY` items; long lists have items of one kind."""
    if isinstance(value, Mapping):
        return {key: _cut(each) for key, each in value.items()}
    return _cut(value)


def _cut(value: Any) -> Any:
    return value[:MANY] if isinstance(value, list | tuple) else value
