"""Names from other tools: the hint of each refusal has Rowcast's name, with an example that runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted

from schema.seed import sow
from service.errors import InvalidArgument, NoSuchProcedure, ServiceError
from service.request.synonyms import SYNONYMS, Synonym, letters
from tests.db.dispatchers import ANYONE, DirectCaller, serving
from tests.db.test_streaming import Taker
from tests.deferreds import failure_of


class Named:
    """A relation in an example; an attribute of it is a call, parsed into its arguments."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, verb: str) -> Any:
        return lambda *args, **kwargs: (f"{self._name}.{verb.rstrip('_')}", args, kwargs)


def call_of(example: str, page: Any = None) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Parse an example."""
    relations = {name: Named(name) for name in ("actions", "drivers", "vehicles")}
    written = example.replace(".import(", ".import_(")
    found: tuple[str, tuple[Any, ...], dict[str, Any]] = eval(written, {**relations, "page": page})
    return found


def renamed(value: Any, ours: str, word: str) -> Any:
    """Replace a key by another word at any depth."""
    if isinstance(value, dict):
        return {word if k == ours else k: renamed(v, ours, word) for k, v in value.items()}
    return [renamed(each, ours, word) for each in value] if isinstance(value, list) else value


@pytest_twisted.async_yield_fixture(scope="module")
async def db(migrated: str) -> AsyncIterator[DirectCaller]:
    """Serve the demo's tables, with their rows."""
    sow(migrated)
    async with serving(migrated) as callee:
        yield callee


@pytest.mark.parametrize("row", SYNONYMS, ids=lambda row: f"{row.kind}-{row.ours}")
@pytest_twisted.ensureDeferred
async def test_synonym_is_refused_with_an_example_that_runs(db: DirectCaller, row: Synonym) -> None:
    """The example runs, and with the other word it is refused with this hint."""
    page = await db.call("actions.find", limit=2)
    page |= {"prev": (await db.call("actions.find", limit=2, after=page["next"]))["prev"]}
    name, args, kwargs = call_of(row.example, page)
    relation, verb = name.split(".")
    hints = []
    for word in row.words:
        if row.kind == "verb":
            refused = await failure_of(
                db.dispatcher.answer(f"{relation}.{word}", args, kwargs, ANYONE)
            )
            assert isinstance(refused, NoSuchProcedure)
        else:
            typed = renamed(kwargs, row.ours, word)
            typed_args = renamed([*args], row.ours, word)
            assert (typed, typed_args) != (kwargs, [*args])
            refused = await failure_of(db.call(name, *typed_args, **typed))
            assert isinstance(refused, InvalidArgument), (word, refused)
        hint = refused.details["hint"]
        alike = [each for each in SYNONYMS if each.kind == row.kind
                 and letters(word) in map(letters, each.words)]  # fmt: skip
        assert hint in [each.hint for each in alike], (word, hint)
        hints.append(hint)
    assert row.hint in hints
    if verb in {"stream", "export"}:
        await Taker(db).call(name, **kwargs)
    else:
        await db.call(name, *args, **kwargs)


TYPED: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("find", [{"status": False}], {}, 'name the arguments, as in where={"status": False}'),
    ("count", [], {"status": False}, 'a column goes into "where", as in where={"status": …}'),
    ("create", [], {"action": "x"}, 'a column goes into "values", as in values={"action": …}'),
    ("update", [1], {"action": "x"}, 'a column goes into "changes", as in changes={"action": …}'),
    ("find", [], {"order": ["action desc"]}, 'did you mean "-action"?'),
    ("find", [], {"order": "action DESC NULLS LAST"}, 'did you mean "-action"?'),
    ("find", [], {"order": "action asc"}, 'did you mean "action"?'),
    ("find", [], {"order": "action, id"}, 'did you mean a list, as in ["action", "id"]?'),
    ("find", [], {"select": "id,action"}, 'did you mean a list, as in ["id", "action"]?'),
    ("find", [], {"order": {"action": "desc"}}, 'did you mean ["-action"]?'),
    ("find", [], {"order": {"action": -1}}, 'did you mean ["-action"]?'),
    ("find", [], {"select": {"action": True}}, 'did you mean ["action"]?'),
    ("find", [], {"order": ["action.desc"]},
     '"action" is a column; descending is "-action", a value in JSON is "action->key"'),
    ("find", [], {"embed": ["vehicles", "x"]}, 'as in {"vehicles": true, "x": true}'),
    ("find", [], {"embed": "vehicles"}, 'as in {"vehicles": true}'),
    ("find", [], {"where": {"action__icontains": "a"}},
     'did you mean {"action": {"icontains": …}}?'),
    ("find", [], {"where": {"id__gt": 1}}, 'did you mean {"id": {"gt": …}}?'),
    ("find", [], {"where": {"id": {"_eq": 1}}}, 'did you mean "eq"?'),
    ("find", [], {"where": {"id": {"$in": [1]}}}, 'did you mean "in"?'),
    ("find", [], {"where": {"$or": [{"id": 1}]}}, 'did you mean "or"?'),
    ("find", [], {"where": {"_not": {"id": 1}}}, 'did you mean "not"?'),
    ("find", [], {"where": {"OR": [{"id": 1}]}}, 'did you mean "or"?'),
    ("find", [], {"orderBy": ["id"]},
     'did you mean "order", as in actions.find(order=["-created_at", "id"])?'),
    ("find", [], {"embed": {"vehicles": {"fields": ["id"]}}},
     'did you mean "select", as in actions.find(select=["id", "action"])?'),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "args", "kwargs", "hint"), TYPED)
@pytest_twisted.ensureDeferred
async def test_call_in_the_form_of_another_tool_is_refused_with_a_hint(
    db: DirectCaller, verb: str, args: list[Any], kwargs: dict[str, Any], hint: str
) -> None:
    """The hint has the equivalent call."""
    refused = await failure_of(db.call(f"actions.{verb}", *args, **kwargs))
    assert isinstance(refused, ServiceError)
    assert refused.details["hint"] == hint
