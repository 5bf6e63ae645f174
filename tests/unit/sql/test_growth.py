"""
The cost of a call grows linearly with its number of parts: parsed, planned and built into a statement.

The cost is the number of Python instructions, which is the same in each run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from service.request import filters, read_request
from service.request.read_request import parse_find
from tests.unit.sql.test_statements import (
    CATALOG,
    LIMITS,
    ROWS,
    VERBS,
    nested,
    read,
)

FEW, TIMES = 60, 4
"""How many parts a call has, and how many times as many the other one."""
BOUNDED = {"sort keys": 15, "embeds": 15, "measures": 50}
"""Of what a call may not have so many."""

Kwargs = Callable[[int], dict[str, Any]]


def instructions(run: Callable[[], Any]) -> int:
    """Return the number of Python instructions that a call takes."""
    found = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal found
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        found += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return found


def written(verb: str, kwargs: dict[str, Any]) -> None:
    """Build the statement of a write, or of a get."""
    parse, plan, build = ROWS if verb == "rows" else VERBS[verb]
    relation = CATALOG.relation("public", "vehicles")
    build(plan(CATALOG, relation, parse([], kwargs, LIMITS).request))


def terms(n: int) -> list[dict[str, Any]]:
    return [{"id": {"gt": at}} for at in range(n)]


def rows(n: int) -> list[dict[str, Any]]:
    return [{"id": at, "plate": "B", "model": None if at % 2 else "van"} for at in range(n)]


READS: dict[str, Kwargs] = {
    "terms": lambda n: {"where": {"and": terms(n)}},
    "terms under a not": lambda n: {"where": {"not": {"or": terms(n)}}},
    "candidates": lambda n: {"where": {"id": {"in": list(range(n))}}},
    "columns": lambda n: {"select": [f"a{at}:plate" for at in range(n)]},
    "sort keys": lambda n: {"order": [["-id", "model"][at % 2] for at in range(n)]},
    "embeds": lambda n: {"embed": {f"e{at}": {"relation": "drivers"} for at in range(n)}},
    "embedded columns": lambda n: {
        "embed": {"drivers": {"select": [f"a{at}:name" for at in range(n)]}}
    },
}
WRITES: dict[str, tuple[str, Kwargs]] = {
    "keys": ("get", lambda n: {"keys": list(range(n))}),
    "keys by name": ("get", lambda n: {"keys": [{"id": at} for at in range(n)]}),
    "new rows": ("create", lambda n: {"values": rows(n)}),
    "new rows, each of other columns": (
        "create",
        lambda n: {"values": [{["plate", "model"][at % 2]: "x"} for at in range(n)]},
    ),
    "upserted rows": ("upsert", lambda n: {"values": rows(n)}),
    "updated rows": ("rows", lambda n: {"rows": rows(n)}),
    "updated rows, each of other columns": (
        "rows",
        lambda n: {"rows": [{"id": at, ["plate", "model"][at % 2]: "x"} for at in range(n)]},
    ),
    "measures": ("aggregate", lambda n: {"measures": {f"m{at}": {"sum": "id"} for at in range(n)}}),
}


def grows(kwargs: Kwargs, run: Callable[[dict[str, Any]], Any], n: int = FEW) -> float:
    """Return the ratio of the instructions of a longer call to those of a shorter one."""
    few, many = kwargs(n), kwargs(n * TIMES)
    for given in few, many:  # fills caches that are shared by all calls
        run(given)
    filters._shapes.clear()
    read_request._rows.clear()  # which keeps short finds only
    return instructions(lambda: run(many)) / instructions(lambda: run(few))


@pytest.mark.parametrize("what", READS)
def test_cost_of_a_read_grows_linearly_with_its_parts(what: str) -> None:
    n = BOUNDED.get(what, FEW)
    assert grows(READS[what], lambda kwargs: read("vehicles", kwargs), n) < TIMES * 1.1


@pytest.mark.parametrize("what", WRITES)
def test_cost_of_a_call_grows_linearly_with_its_rows(what: str) -> None:
    verb, kwargs = WRITES[what]
    n = BOUNDED.get(what, FEW)
    assert grows(kwargs, lambda given: written(verb, given), n) < TIMES * 1.1


def test_cost_of_a_nested_create_grows_linearly_with_its_rows() -> None:
    def kwargs(n: int) -> dict[str, Any]:
        return {"values": {"name": "x", "vehicles": [{"plate": "B", "model": "v"}] * n}}

    assert grows(kwargs, lambda given: nested("drivers", [], given)) < TIMES * 1.1


def test_cached_filter_is_hashed_once() -> None:
    """Otherwise each lookup in a cache would hash all of its conditions."""
    kwargs = {"where": {"and": terms(FEW)}}
    parse = lambda: parse_find([], kwargs, LIMITS, "vehicles").request  # noqa: E731
    hash(parse())
    again = parse()
    assert instructions(lambda: hash(again)) < 100
