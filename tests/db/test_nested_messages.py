"""Number of messages that nested creates take: at most one for each level of the tree, and COMMIT."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.errors import (
    CheckViolation,
    ForeignKeyViolation,
    InvalidArgument,
    InvalidRow,
    ServiceError,
    UniqueViolation,
)
from service.models.model import Model
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.db.relay import Relay
from tests.db.test_nested import BEFORE_EACH as ORDERS_BEFORE
from tests.db.test_nested import NEW
from tests.db.test_nested import SCHEMA as ORDERS
from tests.deferreds import failure_of

SCHEMA = (
    ORDERS
    + """
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE events (region int NOT NULL, order_id bigint REFERENCES orders, n positive,
    kind text CHECK (kind <> 'bad')) PARTITION BY LIST (region);
CREATE TABLE events_one PARTITION OF events FOR VALUES IN (1);
CREATE TABLE veiled (id int PRIMARY KEY, n int, u uuid);
CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER same BEFORE UPDATE ON veiled FOR EACH ROW EXECUTE FUNCTION same();
ALTER TABLE veiled ENABLE ROW LEVEL SECURITY;
CREATE POLICY any_row ON veiled USING (true);
INSERT INTO veiled VALUES (1, 1, NULL);
"""
)
BEFORE_EACH = ORDERS_BEFORE.replace("TRUNCATE ", "TRUNCATE events, ", 1)
LINES = [{"sku": "a", "parts": [{"name": "p"}]}, {"sku": "b", "parts": [{"name": "q"}]}]
TREES: list[tuple[str, str, Any, int, int]] = [
    ("rows that refer to one", "orders", {"customer_id": 1, "lines": [{"sku": "a"}, {"sku": "b"}]}, 1, 2),
    ("the one that is referred to", "orders", {"note": "n", "customer_id": NEW}, 1, 2),
    ("a chain", "customers", {**NEW, "upper_id": {**NEW, "upper_id": {**NEW, "upper_id": NEW}}}, 1, 4),
    ("places of one depth", "orders", {
        "customer_id": NEW, "biller_id": NEW, "lines": [{"sku": "a"}], "invoices": {"due": "2026-01-01"},
        "tags": [{"name": "t"}]}, 1, 3),
    ("rows of several", "orders", {"customer_id": 1, "lines": LINES}, 2, 3),
    ("the same at one depth", "orders", {
        "customer_id": 1, "lines": LINES, "tags": [{"name": "t"}, {"name": "u"}], "invoices": {}}, 2, 3),
    ("three levels of many", "customers", [
        {"name": f"c{n}", "orders!customer_id": [{"lines": LINES}, {"note": "x"}]} for n in "ab"], 4, 4),
    ("a junction with links", "orders", {
        "customer_id": 1, "tags": [{"$link": 1}, {"$link": {"name": "blue"}}]}, 1, 2),
    ("a junction with new rows and links", "orders", {
        "customer_id": 1, "tags": [{"name": "t"}, {"name": "u"}, {"$link": {"name": "blue"}}]}, 2, 2),
    ("a link by another key", "orders", {"customer_id": {"$link": {"email": "ada@x"}}}, 1, 2),
    ("links to the new row", "customers", {
        **NEW, "customers!id=upper_id": [{"$link": 1}, {"name": "a"}]}, 2, 2),
    ("columns that two relationships set", "carts", {
        "tenant": "t1", "items": [{"of_product": {"$link": {"name": "cup"}}},
                                  {"of_product": {"tenant": "t1", "id": 9, "name": "new"}}]}, 2, 2),
]  # fmt: skip
"""With the messages of each: where no model has rules, and where all do, which see the keys of rows."""
RULED = tuple(
    type(f"Ruled{name.title()}", (Model,), {"TABLENAME": name, "beforeSave": lambda _: True})
    for name in (
        "customers", "orders", "lines", "parts", "tags", "order_tags", "invoices", "carts", "products", "items",
    )
)  # fmt: skip


@pytest.mark.parametrize("models", [(), RULED], ids=["plain", "models"])
@pytest.mark.parametrize(
    ("relation", "values", "most", "ruled"),
    [each[1:] for each in TREES],
    ids=[each[0] for each in TREES],
)
@pytest_twisted.ensureDeferred
async def test_tree_takes_at_most_one_message_per_level(
    dsn: str,
    relation: str,
    values: Any,
    most: int,
    ruled: int,
    models: tuple[type[Model], ...],
) -> None:
    """BEGIN and the statement of the result share a message with the inserts."""
    execute(dsn, BEFORE_EACH)
    most = ruled if models else most
    with Relay(dsn) as relay:
        async with serving(relay.dsn, written=models) as db:
            await db.call("tags.get", 1)
            before = len(relay.messages)
            await db.call(f"{relation}.create", values)
            sent = relay.messages[before:]
    assert sent[0].startswith(b"BEGIN;"), sent
    assert b"COMMIT" in sent[-1], sent
    assert len(sent) - 1 <= most, sent


@pytest.mark.parametrize(
    ("events", "kind", "path"),
    [
        (
            [{"region": 1, "kind": "a"}, {"region": 1, "kind": "bad"}],
            CheckViolation,
            "values.events.1.kind",
        ),
        ([{"region": 1, "n": 0}], CheckViolation, "values.events.0.n"),
        ([{"region": 1}, {"region": "1x"}], InvalidArgument, "values.events.1.region"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_error_of_a_message_has_the_path_of_its_row(
    db: DirectCaller, events: Any, kind: type[ServiceError], path: str
) -> None:
    """PostgreSQL's error names a partition or a domain, but no statement."""
    refused = await failure_of(
        db.call("orders.create", {"customer_id": NEW, "note": "n", "events": events})
    )
    assert isinstance(refused, kind), refused
    assert refused.details["path"] == path


@pytest.mark.parametrize(
    ("values", "kind", "path"),
    [
        ({"name": "N", "upper_id": 99}, ForeignKeyViolation, "values.customer_id.upper_id"),
        ({"name": "N", "email": "n@x"}, UniqueViolation, "values.biller_id.email"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_error_of_a_relation_nested_twice_has_a_path_only_if_it_is_certain(
    db: DirectCaller, values: dict[str, Any], kind: type[ServiceError], path: str | None
) -> None:
    """The first row that refers to no row is named; of two equal rows, none is certain."""
    refused = await failure_of(
        db.call("orders.create", {"customer_id": values, "biller_id": {**values, "name": "M"}})
    )
    assert isinstance(refused, kind), refused
    assert refused.details.get("path") == path


SAME = {"name": "N", "email": "n@x"}
OTHER = {"name": "O", "email": "o@x"}
NONE: dict[str, Any] = {"orders!customer_id": []}


@pytest.mark.parametrize(
    ("relation", "values", "path", "hint"),
    [
        ("customers", [{**OTHER, **NONE}, SAME, SAME], "values.2.email", "values.1.email has the same key"),
        ("orders", {"customer_id": SAME, "biller_id": SAME}, "values.biller_id.email",
         "values.customer_id.email has the same key"),
        ("customers", {"name": "C", "orders!customer_id": [
            {"lines": [{"sku": "b"}]}, {"lines": [{"sku": "a"}, {"sku": "b"}, {"sku": "b"}]}]},
         "values.orders!customer_id.1.lines.2", "values.orders!customer_id.1.lines.1 has the same key"),
        # the key of the order is not known yet
        ("orders", {"customer_id": 1, "lines": [{"sku": "a"}, {"sku": "b"}, {"sku": "b"}]},
         "values.lines", None),
        ("customers", [{**OTHER, **NONE}, {"name": "A", "email": "ada@x"}], "values.1.email", None),
        ("customers", [{**OTHER, **NONE}, {"name": "A"}, SAME, SAME], "values.3.email", "values.2.email has the same key"),
    ],
    ids=str,
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_duplicate_key_has_the_path_of_the_second_row_or_of_the_common_parent(
    db: DirectCaller, relation: str, values: Any, path: str, hint: str | None
) -> None:
    """Which row PostgreSQL refuses depends on rows that are not part of the call."""
    refused = await failure_of(db.call(f"{relation}.create", values))
    assert isinstance(refused, UniqueViolation), refused
    assert (refused.details["path"], refused.details.get("hint")) == (path, hint)


@pytest.mark.parametrize(
    ("lines", "kind", "path"),
    [
        ([{"sku": "x"}, {"sku": "b"}, {"$link": 50}], UniqueViolation, "values.1.lines"),
        ([{"sku": "x"}, {"sku": "z"}, {"$link": 51}], CheckViolation, "values.1.lines.2"),
    ],
    ids=str,
)
@pytest_twisted.ensureDeferred
async def test_refused_link_has_its_path(
    db: DirectCaller, dsn: str, lines: Any, kind: type[ServiceError], path: str
) -> None:
    """A constraint on columns that the link does not change names the linked row."""
    execute(
        dsn,
        """INSERT INTO orders (id, customer_id) VALUES (1000, 1);
        INSERT INTO lines (id, order_id, sku, doc) VALUES (50, 1000, 'b', '0'), (51, 1000, 'c', '1');
        ALTER TABLE lines ADD CONSTRAINT stays CHECK (doc <> '1' OR order_id = 1000)""",
    )
    try:
        orders = [{"customer_id": 1, "lines": each} for each in ([{"sku": "a"}], lines)]
        refused = await failure_of(db.call("orders.create", orders))
    finally:
        execute(dsn, "ALTER TABLE lines DROP CONSTRAINT stays")
    assert isinstance(refused, kind), refused
    assert refused.details.get("path") == path


@pytest.mark.parametrize(
    "text", ["rowcast_left_out 0", "rowcast_left_out 1", "rowcast_left_out 99"]
)
@pytest_twisted.ensureDeferred
async def test_value_that_looks_like_an_internal_error_is_refused_like_any_other(
    db: DirectCaller, text: str
) -> None:
    """A caller's value is not mistaken for a message that the service's own SQL raises."""
    refused = await failure_of(
        db.call("kinds.create", {"b": "101", "u": text, "kinds!id=up_id": [{"c": "a"}, {"c": "b"}]})
    )
    assert isinstance(refused, InvalidArgument | InvalidRow), refused
    assert refused.details["sqlstate"] == "22P02"


@pytest.mark.parametrize("text", ["rowcast_missed", "rowcast_unseen"])
@pytest_twisted.ensureDeferred
async def test_value_that_looks_like_an_error_of_a_write_is_refused_like_any_other(
    db: DirectCaller, text: str
) -> None:
    for refused in (
        await failure_of(db.call("veiled.update", 1, {"u": text})),
        await failure_of(db.call("veiled.upsert", {"id": 1, "u": text}, where={"n": 1})),
    ):
        assert isinstance(refused, InvalidArgument | InvalidRow), refused
        assert refused.details["sqlstate"] == "22P02"
