"""Nested rows are subject to the rules of models, roles, policies, idempotency keys and transactions."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from schema.own import MAKE, make
from service.api.roles import Roles
from service.errors import (
    InvalidArgument,
    InvalidRow,
    NotAuthorized,
    NotFound,
    ServiceError,
    UniqueViolation,
)
from service.models.model import Model, not_blank
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.db.test_interactive import holding
from tests.deferreds import failure_of

CLERK = Caller(7, "ann", "clerk", "realm1")
ROLES = Roles({"clerk": "rc_nester"}, "rc_nobody")

SCHEMA = (
    """
CREATE ROLE rc_nester; CREATE ROLE rc_nobody;
CREATE TABLE orders (id serial PRIMARY KEY, note text, owner text);
CREATE TABLE lines (id serial PRIMARY KEY, order_id int REFERENCES orders, sku text UNIQUE,
    price int DEFAULT 5, secret text, qty int);
COMMENT ON COLUMN lines.secret IS '@hidden';
CREATE TABLE notes (id serial PRIMARY KEY, order_id int REFERENCES orders, text text, owner text);
CREATE TABLE vault (id serial PRIMARY KEY, order_id int REFERENCES orders);
CREATE TABLE unseen (id serial PRIMARY KEY, order_id int REFERENCES orders);
COMMENT ON TABLE unseen IS '@hidden';
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON notes TO rc_nester USING (owner = current_setting('rowcast.authid', true))
    WITH CHECK (owner = current_setting('rowcast.authid', true)
                AND EXISTS (SELECT FROM orders o WHERE o.id = order_id));
GRANT SELECT, INSERT ON orders TO rc_nester;
GRANT SELECT (id, order_id, sku, price), INSERT (order_id, sku), UPDATE (order_id) ON lines TO rc_nester;
GRANT SELECT, INSERT, UPDATE ON notes TO rc_nester;
GRANT SELECT ON vault TO rc_nester;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO rc_nester;
CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    IF new.note = 'none' THEN RETURN NULL; END IF;
    IF new.note = 'key' THEN new.id := 1000; END IF;
    RETURN new; END$$;
CREATE TRIGGER leave_out BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION leave_out();
"""
    + MAKE
)

ROWS = (
    "TRUNCATE orders, lines, notes, vault, unseen RESTART IDENTITY;"
    " INSERT INTO orders (note, owner) VALUES ('there', 'ann');"
    " INSERT INTO lines (sku) VALUES ('free');"
    " INSERT INTO notes (text, owner) VALUES ('mine', 'ann'), ('theirs', 'bob');"
    " INSERT INTO vault DEFAULT VALUES"
)


@pytest.fixture(autouse=True)
def _rows(dsn: str) -> None:
    execute(dsn, ROWS)


class Ordered(Model):
    """An order with rules."""

    TABLENAME = "orders"

    def beforeSave(self) -> bool:
        """Set the note in capitals."""
        self.note = str(self.note).upper()
        return self.note != "FORBIDDEN"


class Line(Model):
    """A line whose hook needs its order."""

    TABLENAME = "lines"
    seen: list[int] = []  # noqa: RUF012 - of all

    def beforeCreate(self) -> None:
        """Record the key of the order, which has been inserted."""
        self.seen.append(self.order_id)
        if self.price is None:
            self.price = self.order_id * 10

    def beforeUpdate(self) -> bool:
        """Refuse to change lines whose sku is "kept"."""
        return bool(self.sku != "kept")


Line.addValidator(not_blank("sku", "order_id"))


async def rows(db: DirectCaller) -> list[int]:
    """Return the number of rows of all tables."""
    return [await db.call(f"{name}.count") for name in ("orders", "lines", "notes", "vault")]


@pytest_twisted.ensureDeferred
async def test_rules_of_models_apply_at_each_level(dsn: str) -> None:
    """Hooks see the keys of outer rows, and what they set is written."""
    async with serving(dsn, written=(Ordered, Line)) as db:
        Line.seen.clear()
        made = await db.call(
            "orders.create",
            [
                {"note": "a", "lines": [{"sku": "x"}, {"sku": "y", "price": 1}, {"$link": 1}]},
                {"note": "b", "lines": [{"sku": "z"}]},
            ],
            select=["note"],
            embed={"lines": {"select": ["sku", "price"], "order": ["sku"]}},
        )
        ids = [row[0] for row in execute(dsn, "SELECT id FROM orders WHERE id > 1 ORDER BY note")]
        assert Line.seen == [ids[0], ids[0], ids[1]]
        assert made == [
            {"note": "A", "lines": [
                {"sku": "free", "price": 5}, {"sku": "x", "price": ids[0] * 10}, {"sku": "y", "price": 1}]},
            {"note": "B", "lines": [{"sku": "z", "price": ids[1] * 10}]},
        ]  # fmt: skip
        before = await rows(db)
        execute(dsn, "UPDATE lines SET sku = 'kept' WHERE sku = 'free'")
        for values, path in (
            ({"note": "forbidden", "lines": [{"sku": "n"}]}, "values"),
            ({"note": "c", "lines": [{"sku": "n"}, {"sku": " "}]}, "values.lines.1"),
            ({"note": "c", "lines": [{"sku": "n"}, {"$link": 1}]}, "values.lines.1"),
        ):
            refused = await failure_of(db.call("orders.create", values))
            assert isinstance(refused, InvalidRow)
            assert refused.details["path"] == path
        refused = await failure_of(
            db.call("orders.create", {"note": "c", "lines": [{"$link": 99}]})
        )
        assert isinstance(refused, NotFound)
        assert refused.details["path"] == "values.lines.0.$link"
        refused = await failure_of(db.call("orders.create", {"note": "c", "lines": [{"sku": "x"}]}))
        assert isinstance(refused, UniqueViolation)
        assert refused.details["path"] == "values.lines.0.sku"
        assert await rows(db) == before
        alone = await db.call("lines.create", {"sku": "up", "orders": {"note": "n"}}, receipt=True)
        assert alone.answer["orders"]["note"] == "N"
        assert alone.tx.isdigit()
        [inside] = await db.call(
            "transaction",
            [{"call": "lines.create", "args": [{"sku": "in", "orders": {"note": "n"}}]}],
        )
        assert inside["orders"]["note"] == "N"


@pytest_twisted.ensureDeferred
async def test_rights_apply_at_each_level(dsn: str) -> None:
    """Table and column grants, policies and hidden columns hold for new rows and for links."""
    async with serving(dsn, roles=ROLES) as db:

        async def create(name: str, values: Any, **kwargs: Any) -> Any:
            return await db.call_as(CLERK, f"{name}.create", values, **kwargs)

        made = await create(
            "orders", {"note": "x", "lines": [{"sku": "a"}, {"$link": 1}], "notes": [{"text": "t", "owner": "ann"}]}
        )  # fmt: skip
        assert [line["sku"] for line in made["lines"]] == ["free", "a"]
        assert made["notes"][0]["text"] == "t"
        before = await rows_as_owner(dsn)
        refused: list[tuple[str, Any, type[ServiceError]]] = [
            ("orders", {"notes": [{"text": "t", "owner": "bob"}]}, NotAuthorized),
            ("orders", {"notes": [{"$link": 1}, {"$link": 2}]}, NotFound),  # rows of others
            ("orders", {"lines": [{"sku": "b", "price": 1}]}, NotAuthorized),
            ("orders", {"lines": [{"sku": "b", "secret": "s"}]}, InvalidArgument),
            ("orders", {"lines": [{"sku": "b", "qty": 1}]}, InvalidArgument),
            ("orders", {"vault": [{}]}, NotAuthorized),
            ("orders", {"vault": [{"$link": 1}]}, NotAuthorized),
            ("orders", {"unseen": [{}]}, InvalidArgument),
        ]
        for name, values, kind in refused:
            error = await failure_of(create(name, {"note": "y", **values}))
            assert isinstance(error, kind), (values, error)
        assert await rows_as_owner(dsn) == before


async def rows_as_owner(dsn: str) -> Any:
    """Return the rows of all tables."""
    tables = ("orders", "lines", "notes", "vault")
    return [execute(dsn, f"SELECT t.* FROM {name} t ORDER BY id") for name in tables]


@pytest_twisted.ensureDeferred
async def test_row_suppressed_by_a_trigger_refuses_the_tree_around_it(
    dsn: str, db: DirectCaller
) -> None:
    """Without the parent, no child is written; if a trigger sets the parent's key, children have it."""
    before = await rows(db)
    for values in (
        {"note": "none", "lines": [{"sku": "a"}]},
        [{"note": "some", "lines": [{"sku": "a"}]}, {"note": "none", "lines": [{"sku": "b"}]}],
    ):
        refused = await failure_of(db.call("orders.create", values))
        assert refused.uri == "rowcast.error.not_changed"
    refused = await failure_of(db.call("lines.create", {"sku": "a", "orders": {"note": "none"}}))
    assert refused.details["path"] == "values.orders"
    assert await rows(db) == before
    made = await db.call("orders.create", {"note": "key", "lines": [{"sku": "a"}]})
    assert (made["id"], made["lines"][0]["order_id"]) == (1000, 1000)


@pytest_twisted.ensureDeferred
async def test_nested_rows_under_an_idempotency_key_are_created_once(dsn: str) -> None:
    """Two calls at once and one later write once, with and without models."""
    for models in ((), (Ordered, Line)):
        execute(dsn, ROWS)
        async with serving(dsn, written=models) as db:
            make(dsn)
            call: dict[str, Any] = {"idempotency_key": f"k{len(models)}"}
            values = {"note": "K", "lines": [{"sku": "a"}, {"sku": "b"}]}
            calls = [db.call_as(CLERK, "orders.create", values, **call) for _ in range(3)]
            first, *others = await gatherResults(map(ensureDeferred, calls))
            assert all(each == first for each in others)
            assert await rows(db) == [2, 3, 2, 1]
            other = {**values, "lines": [{"sku": "c"}]}
            refused = await failure_of(db.call_as(CLERK, "orders.create", other, **call))
            assert refused.details["path"] == "idempotency_key"


@pytest_twisted.ensureDeferred
async def test_nested_rows_in_an_interactive_transaction_end_with_it(dsn: str) -> None:
    """They are written in it, an error aborts it, and a rollback undoes them."""
    async with holding(dsn) as begin:
        tx = await begin()
        made = await tx.call("orders.create", {"note": "h", "lines": [{"sku": "h"}]})
        assert made["lines"][0]["order_id"] == made["id"]
        await tx.ask("savepoint", "s")
        refused = await failure_of(tx.call("orders.create", {"note": "h", "lines": [{"sku": "h"}]}))
        assert isinstance(refused, UniqueViolation)
        await tx.ask("rollback_to", "s")
        await tx.call("lines.create", {"sku": "i", "orders": {"note": "i"}})
        await tx.ask("commit")
    assert execute(dsn, "SELECT note FROM orders ORDER BY id") == [("there",), ("h",), ("i",)]


@pytest_twisted.ensureDeferred
async def test_dry_run_of_nested_rows_keeps_none(db: DirectCaller) -> None:
    before = await rows(db)
    nest = {"call": "orders.create", "args": [{"note": "d", "lines": [{"sku": "d"}]}]}
    [made] = await db.call("transaction", [nest], dry_run=True)
    assert made["lines"][0]["sku"] == "d"
    assert await rows(db) == before
