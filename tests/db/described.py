"""
Whether what callers send and get is as `describe` says.
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
from service.payload import Receipted

Schema = Mapping[str, Any]

MANY = 50
"""Items of a list that are looked at."""

FORMING = {"select", "embed", "form", "returning"}
"""What gives an answer another form than the usual one."""


class Descriptions:
    """
    The descriptions of what a dispatcher serves, each made when it is first needed.

    Args:
        dispatcher: Knows the verbs.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._made: WeakKeyDictionary[Catalog, Described] = WeakKeyDictionary()

    def of(self, catalog: Catalog) -> Described:
        """Give the description of a catalog."""
        if catalog not in self._made:
            document = describe(catalog, "rowcast", "0", self._dispatcher.verbs, {})
            self._made[catalog] = Described(document)
        return self._made[catalog]


class Described:
    """
    Args:
        document: As `describe` gives it.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self._validators: dict[str, Draft202012Validator] = {}

    def validator(self, schema: Schema, known: str = "") -> Draft202012Validator:
        """Give what judges by a schema of the document; one that has a name is kept."""
        found = self._validators.get(known)
        if found is None:
            found = Draft202012Validator({"allOf": [schema], "$defs": self.document["$defs"]})
            if known:
                self._validators[known] = found
        return found

    def faults(self, schema: Schema, value: Any, known: str = "") -> list[str]:
        """List what a schema has against a value, or against the first items of it."""
        found = self.validator(schema, known).iter_errors(plain(_sample(value)))
        return [f"{'.'.join(map(str, each.path))}: {each.message}"[:600] for each in found]

    def resolved(self, schema: Schema) -> Schema:
        """Give what a schema refers to."""
        name = unquote(schema["$ref"].removeprefix("#/$defs/"))
        found: Schema = self.document["$defs"][name.replace("~1", "/").replace("~0", "~")]
        return found

    def uris(self, errors: Schema) -> set[str]:
        """Give the URIs of the errors of a procedure."""
        each = [self.resolved(one) for one in self.resolved(errors)["oneOf"]]
        return {one["properties"]["error"]["const"] for one in each}

    def check_call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], answer: Any
    ) -> None:
        """Make sure that a call that was answered is as described."""
        found = list(self._procedures(name))
        if not found:
            return
        answer = answer.answer if isinstance(answer, Receipted) else answer
        given = self._named(name, args, kwargs)
        faults = self.faults({"anyOf": [each["arguments"] for each in found]}, given, f"{name}()")
        assert not faults, (name, given, faults)
        other = FORMING & kwargs.keys() or self._nests(name, given)
        forms = "" if other else " as usual"
        results = [each["result"] for each in found]
        if forms:
            results = [self.usual(each) for each in results]
        faults = self.faults({"anyOf": results}, answer, f"{name}{forms}")
        assert not faults, (name, kwargs, answer, faults)

    def check_refusal(self, name: str, error: ServiceError) -> None:
        """Make sure that a refusal is one of those that are described."""
        said = {"error": error.uri, "args": [error.message], "kwargs": error.details}
        for each in self._procedures(name):
            faults = self.faults(each["errors"], said, f"{name}!")
            assert not faults, (name, said, self.uris(each["errors"]))

    def usual(self, result: Schema) -> Schema:
        """Give what a call answers that says nothing of its answer's form."""
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
        """Find what is described under a name: a verb, or functions and their verbs."""
        before, _, verb = name.rpartition(".")
        relation = self.document["relations"].get(before, {"verbs": {}})
        if verb in relation["verbs"]:
            yield relation["verbs"][verb]
        yield from self.document["functions"].get(name, ())
        for function in self.document["functions"].get(before, ()):
            if verb in function["verbs"]:
                yield function["verbs"][verb]

    def _nests(self, name: str, given: Mapping[str, Any]) -> bool:
        """Say whether new rows have related rows inside, which the answer then embeds."""
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
        """Name the arguments that were given by position."""
        before, _, verb = name.rpartition(".")
        if verb in self.document["relations"].get(before, {"verbs": ()})["verbs"]:
            positional = self.document["verbs"][verb]["positional"]
            return {**dict(zip(positional, args, strict=False)), **kwargs}
        return {**kwargs, "args": list(args)} if args else dict(kwargs)


def plain(value: Any) -> Any:
    """Write binary as WAMP's JSON does."""
    if isinstance(value, bytes | bytearray | memoryview):
        return "\0" + b64encode(bytes(value)).decode()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _sample(value: Any) -> Any:
    """Cut long lists short, which have many items of one kind."""
    if isinstance(value, Mapping):
        return {key: _cut(each) for key, each in value.items()}
    return _cut(value)


def _cut(value: Any) -> Any:
    return value[:MANY] if isinstance(value, list | tuple) else value
