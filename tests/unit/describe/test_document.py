"""Which verbs a relation has, and what a declaration says of a procedure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from service.api import verbs
from service.catalog import Column, ForeignKey, Relation, UniqueKey
from service.describe.document import describe, described_procedure
from service.describe.relations import verbs_of
from tests.unit.samples import catalog

SOME = ("get", "find", "aggregate", "create", "upsert", "update", "delete")
VERBS = {name: verbs.VERBS[name] for name in SOME}
RELATIONS = catalog().relations
ACTIONS = RELATIONS["public", "actions"]
NOTES = RELATIONS["public", "notes"]


@pytest.mark.parametrize(
    ("relation", "lacking"),
    [
        (ACTIONS, set()),
        (NOTES, {"get", "upsert"}),
        (replace(ACTIONS, primary_key=()), {"get"}),
        (replace(ACTIONS, selectable=False), {"get", "find", "aggregate"}),
        (replace(ACTIONS, insertable=False), {"create", "upsert"}),
        (replace(ACTIONS, updatable=False), {"update", "upsert"}),
        (replace(ACTIONS, deletable=False), {"delete"}),
    ],
)
def test_verbs_without_their_right_or_key_are_not_described(relation, lacking):
    """A verb needs a right, and some need a key."""
    assert verbs_of(relation, VERBS) == [verb for verb in VERBS if verb not in lacking]


def test_relations_that_refer_to_others_in_a_long_chain_are_described():
    """New rows of each may contain those of the next, deeper than Python's recursion limit."""
    relations = {}
    for at in range(500):
        target = ("public", f"link_{at + 1}")
        key = ForeignKey("next", ("next",), target, ("id",))
        columns = {name: Column(name, 23, "integer", at > 0) for name in ("id", "next")}
        unique = UniqueKey("key", ("id",))
        relations["public", f"link_{at}"] = Relation(
            *("public", f"link_{at}", "table", columns, ("id",), (unique,)),
            (key,) if at < 499 else (),
        )
    chain = replace(catalog(), relations=relations)
    parts = describe(chain, "rowcast", "1", verbs.VERBS, {})["$defs"]
    assert {f"tree.link_{at}" for at in range(500)} <= parts.keys()
    assert all(part != {} for name, part in parts.items() if name.startswith("tree."))


async def rich(
    call: object,
    key: int | None,
    names: Sequence[str] = (),
    *rest: int,
    by: Mapping[str, float],
    flag: bool | str = False,
    any: int | Any = 1,
    data: bytes = b"",
    **more: object,
) -> dict[str, Any]:
    """Do much."""


async def poor(call, a, /, b=1):
    pass


async def unresolved(call: Nowhere, a: int) -> str:  # noqa: F821
    pass


def test_procedure_with_annotations_has_their_types():
    """Its parameters are its arguments, with the types that JSON Schema can express."""
    found = described_procedure(rich)
    assert found["comment"] == "Do much."
    assert found["positional"] == ["key", "names"]
    assert found["result"] == {"type": "object", "additionalProperties": {}}
    arguments = found["arguments"]
    assert arguments["required"] == ["key", "by"]
    assert "additionalProperties" not in arguments
    assert {name: each for name, each in arguments["properties"].items() if name != "timeout"} == {
        "key": {"type": ["integer", "null"]},
        "names": {"type": "array", "items": {"type": "string"}},
        "by": {"type": "object", "additionalProperties": {"type": "number"}},
        "flag": {"anyOf": [{"type": "boolean"}, {"type": "string"}]},
        "any": {},
        "data": {"type": "string", "format": "binary"},
    }


@pytest.mark.parametrize("function", [poor, unresolved])
def test_procedure_without_annotations_takes_anything(function):
    """A missing or unresolvable annotation means any value; the names are known."""
    found = described_procedure(function)
    assert found["result"] == {}
    assert found["arguments"]["properties"]["a"] == {}
    assert found["arguments"]["required"] == ["a"]
    assert found["arguments"]["additionalProperties"] is False
