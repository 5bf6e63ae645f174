"""
The Python client kit of `clients/`, and random `watch` messages as the service makes them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from random import Random
from typing import Any

from service.changes.delta import (
    FoundRows,
    Message,
    alive_message,
    delta_message,
    difference,
    has_copies,
    rows_of,
    snapshot_messages,
)
from service.plan.watch_plan import KeyForm
from tests.conftest import ROOT

PYTHON = ROOT / "clients" / "python" / "rowcast.py"
JAVASCRIPT = ROOT / "clients" / "javascript" / "rowcast.js"

SHOWN = {"order": ["n"]}
FORMS: dict[str, tuple[KeyForm, dict[str, Any]]] = {
    f"{name}{' in order' if ordered else ''}": (
        KeyForm(kind, columns, ordered),
        {**query, **(SHOWN if ordered else {})},
    )
    for name, kind, columns, query in (
        ("column", "column", ("a",), {}),
        ("columns", "columns", ("a", "b"), {}),
        ("column beside", "column", None, {"select": ["n"]}),
        ("columns beside", "columns", None, {"select": ["n"]}),
        ("group", "group", ("a", "b"), {"measures": {"n": {"count": "*"}}}),
        ("row", "row", None, {}),
    )
    for ordered in (False, True)
}
"""By name: how rows are identified, and the arguments of a query that identifies them so."""

VALUES = [
    *(None, True, False, 0, -1, 7, 2**53 - 1, 2**53 + 1, -(2**60), 0.5, -0.1, 1e300, 3.0),
    *("", "a", "é", "\u2028", '"\\\n\t\x00\x1f\x7f', "😀", "ﬀ", "12.50"),
    *([], [1, [2.5, None]], {}, {"b": 1, "a": [True]}, {"😀": 1, "ﬀ": 2, "10": 3, "9": 4}),
]


def kit() -> Any:
    """Import the Python kit, which is in no package, under the name `rowcast_kit`."""
    found = sys.modules.get("rowcast_kit")
    if found is None:
        spec = spec_from_file_location("rowcast_kit", PYTHON)
        assert spec is not None
        assert spec.loader is not None
        found = sys.modules["rowcast_kit"] = module_from_spec(spec)
        spec.loader.exec_module(found)
    return found


@dataclass(frozen=True)
class Step:
    """
    The messages that bring a client to a state.

    Args:
        messages: The messages, in order.
        rows: The rows of the state, in order.
        ordered: Whether the query has an order.
    """

    messages: Sequence[Message]
    rows: Sequence[Any]
    ordered: bool


def steps(name: str, random: Random, many: int) -> Iterator[Step]:
    """Yield the steps from one random state of a query to the next, as the service sends them."""
    form, _ = FORMS[name]
    before: FoundRows | None = None
    rows: list[tuple[dict[str, Any], list[Any]]] = []
    for at in range(many):
        rows = changed(form, rows, random)
        shown = [row if form.columns or form.kind == "row" else {"n": row["n"]} for row, _ in rows]
        found = rows_of(form, shown, [keys for _, keys in rows])
        position = f"1.{at}:{at}:"
        if before is None or (
            form.ordered and (has_copies(before.state) or has_copies(found.state))
        ):
            messages = list(snapshot_messages(form, found, position, reset=before is not None))
        else:
            change = difference(before.state, found.state)
            messages = [
                {
                    **delta_message(form, before.state, found.state, change, found.rows),
                    "position": position,
                }
            ]
        yield Step([*messages, alive_message(found.state, position)], shown, form.ordered)
        before = found


def steps_of_other_keys(random: Random) -> Iterator[Step]:
    """Yield the steps of a query whose table changes, loses and regains its primary key."""
    for name in ("columns", "row", "column", "row", "columns"):
        yield from steps(name, random, 3)


def changed(
    form: KeyForm, rows: list[tuple[dict[str, Any], list[Any]]], random: Random
) -> list[tuple[dict[str, Any], list[Any]]]:
    """Return rows, with the values of their keys, some of which are among the given ones."""
    kept = [each for each in rows if random.random() < 0.8]
    for _ in range(random.randint(0, 4)):
        # Only the key of a group may contain NULL.
        firsts = [1, 2, 3, "x", "é", *([None] if form.kind == "group" else [])]
        values = [random.choice(firsts), random.randint(1, 3)]
        row = {"a": values[0], "b": values[1], "n": random.choice(VALUES)}
        keys = values[:1] if form.kind == "column" else values
        if form.kind == "row" and random.random() < 0.3 and kept:
            row, keys = random.choice(kept)
        elif form.kind != "row":
            kept = [(other, its) for other, its in kept if its != keys]
        kept.insert(random.randint(0, len(kept)), (row, keys))
    if random.random() < 0.3:
        random.shuffle(kept)
    return kept
