"""
The rules of models with roles that may not read, or not write, all columns.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import pytest_twisted
from twisted.logger import LogLevel, capturedLogs, formatEvent

from service.api.roles import Roles
from service.errors import InvalidRow, NotAuthorized
from service.models.model import Model, not_blank
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE ROLE rc_owner; CREATE ROLE rc_guest; CREATE ROLE rc_looker;
CREATE TABLE shelves (id int PRIMARY KEY);
CREATE TABLE products (id int PRIMARY KEY, sku text NOT NULL UNIQUE, title text, price int, stock int,
    shelf int REFERENCES shelves, note text);
GRANT ALL ON products, shelves TO rc_owner; GRANT ALL ON shelves TO rc_guest;
GRANT SELECT (id, sku, title, price, shelf), INSERT (id, sku, title, price),
    UPDATE (sku, title, price, stock, shelf), DELETE ON products TO rc_guest;
GRANT SELECT (id, sku, title, price, shelf, note) ON products TO rc_looker;
CREATE TABLE limits (id int PRIMARY KEY, sku varchar(20) NOT NULL, title text, price int NOT NULL);
"""
LONG = "is longer than 20 characters"
BEFORE_EACH = (
    "TRUNCATE products, shelves; GRANT ALL ON shelves TO rc_looker;"
    " REVOKE INSERT, UPDATE ON products FROM rc_looker; INSERT INTO products (id, sku, title, price, stock) VALUES"
    " (1, 'a', 'A', 10, 14), (2, 'b', 'B', 20, 0), (3, 'c', 'C', 30, 1)"
)
ROLES = Roles({"owner": "rc_owner", "guest": "rc_guest", "looker": "rc_looker"})
OWNER, GUEST, LOOKER = (Caller(1, name, name, "realm1") for name in ("owner", "guest", "looker"))


class Product(Model):
    """A model whose rules read the stock, which the guest may not read."""

    TABLENAME = "products"
    NEEDS = ("sku", "title", "price", "stock")

    def beforeDelete(self) -> bool | None:
        """Keep products that are in stock."""
        if self.stock:
            self.errors.add("stock", "is not empty")
            return False
        return None

    def beforeUpdate(self) -> None:
        """Refuse to give away what is in stock."""
        if (self.price == 0 or self.shelf) and self.stock > 0:
            self.errors.add("price", "is 0")


Product.addValidator(not_blank("title"))

pytestmark = pytest.mark.serving(roles=ROLES, written=(Product,))

NEEDS_STOCK: list[tuple[str, dict[str, Any]]] = [
    ("products.delete", {"key": 1}),
    ("products.delete", {"key": 2}),
    ("products.delete", {"where": {"id": 1}}),
    ("products.delete", {"key": 1, "returning": "both"}),
    ("products.update", {"key": 1, "changes": {"price": 0}}),
    ("products.update", {"where": {"id": 1}, "changes": {"price": 0}}),
    ("products.update", {"rows": [{"id": 1, "price": 0}]}),
    ("products.update", {"key": 1, "changes": {"price": 0}, "returning": "both"}),
    ("products.update", {"where": {"id": 1}, "changes": {"price": 0}, "limit": 1, "order": ["id"]}),
    ("products.upsert", {"values": {"id": 1, "sku": "a", "title": "A"}, "update": {"price": 0}}),
    ("shelves.create", {"values": {"id": 1, "products": [{"$link": 1}]}}),
    ("transaction", {"operations": [{"call": "products.delete", "args": [1]}]}),
]


def stored(dsn: str) -> list[tuple[Any, ...]]:
    """Return the rows of the table."""
    return execute(dsn, "SELECT id, price, stock, shelf FROM products ORDER BY id")


@pytest.mark.parametrize(("name", "kwargs"), NEEDS_STOCK)
@pytest_twisted.ensureDeferred
async def test_write_whose_rule_reads_an_unreadable_column_is_not_authorized(
    db: DirectCaller, dsn: str, name: str, kwargs: dict[str, Any]
) -> None:
    """Nothing is written, the refusal does not name the column, and the log does."""
    before = stored(dsn)
    refused = await failure_of(db.call_as(GUEST, name, **kwargs))
    assert isinstance(refused, NotAuthorized), refused
    assert "stock" not in f"{refused} {refused.details}"
    assert stored(dsn) == before


@pytest_twisted.ensureDeferred
async def test_same_writes_by_a_role_that_reads_the_column_follow_the_rule(
    db: DirectCaller, dsn: str
) -> None:
    """The rule refuses the row that is in stock, and no other."""
    for name, kwargs in NEEDS_STOCK:
        if kwargs.get("key") != 2:
            refused = await failure_of(db.call_as(OWNER, name, **kwargs))
            assert isinstance(refused, InvalidRow), (name, kwargs, refused)
    assert (await db.call_as(OWNER, "products.delete", 2))["id"] == 2
    assert [each[0] for each in stored(dsn)] == [1, 3]


@pytest_twisted.ensureDeferred
async def test_write_whose_rules_read_no_unreadable_column_is_made(
    db: DirectCaller, dsn: str
) -> None:
    """A role may write a column that it may not read; a rule then sees the value that is given."""
    await db.call_as(GUEST, "products.update", 1, {"title": "B"})
    await db.call_as(GUEST, "products.update", where={"id": 1}, changes={"price": 11})
    await db.call_as(GUEST, "products.update", 1, {"price": 12, "stock": 13})
    await db.call_as(GUEST, "products.update", 2, {"price": 0, "stock": 0})
    refused = await failure_of(db.call_as(GUEST, "products.update", 3, {"price": 0, "stock": 1}))
    assert isinstance(refused, InvalidRow)
    await db.call_as(GUEST, "products.create", {"id": 4, "sku": "d", "title": "D"})
    assert [each[:3] for each in stored(dsn)] == [
        (1, 12, 13),
        (2, 0, 0),
        (3, 30, 1),
        (4, None, None),
    ]


FORBIDDEN: list[tuple[str, dict[str, Any]]] = [
    ("products.delete", {"key": 1}),
    ("products.delete", {"where": {"id": 1}}),
    ("products.update", {"key": 1, "changes": {"title": " "}}),
    ("products.update", {"key": 1, "changes": {"price": 0}}),
    ("products.update", {"where": {"id": 1}, "changes": {"title": " "}}),
    ("products.update", {"rows": [{"id": 1, "title": " "}]}),
    ("products.create", {"values": {"id": 9, "sku": "z", "title": " "}}),
    ("products.create", {"values": [{"id": i, "sku": f"{i}", "title": " "} for i in range(30)]}),
    ("products.upsert", {"values": {"id": 1, "sku": "a", "title": " "}}),
    ("products.upsert", {"values": {"id": 1, "sku": "a", "title": " "}, "update": {"price": 0}}),
    ("products.import", {"rows": [{"id": 9, "sku": "z", "title": " "}]}),
    ("shelves.create", {"values": {"id": 1, "products": [{"$link": 1}]}}),
    ("shelves.create", {"values": {"id": 1, "products": [{"id": 9, "sku": "z", "title": " "}]}}),
]


@pytest.mark.parametrize(("name", "kwargs"), FORBIDDEN)
@pytest_twisted.ensureDeferred
async def test_write_without_the_right_is_not_authorized_before_rules_run(
    db: DirectCaller, dsn: str, name: str, kwargs: dict[str, Any]
) -> None:
    """The rules would refuse these rows, too, and their messages would tell of stored values."""
    execute(dsn, "GRANT SELECT (stock), INSERT (stock), UPDATE (note) ON products TO rc_looker")
    await db.catch_up()
    before = stored(dsn)
    refused = await failure_of(db.call_as(LOOKER, name, **kwargs))
    assert isinstance(refused, NotAuthorized), refused
    assert stored(dsn) == before


@pytest_twisted.ensureDeferred
async def test_upsert_without_the_right_to_update_is_not_authorized_before_rules_run(
    db: DirectCaller, dsn: str
) -> None:
    """The new rows are those that a rule would refuse."""
    execute(dsn, "GRANT INSERT ON products TO rc_looker; REVOKE UPDATE ON products FROM rc_looker")
    await db.catch_up()
    row = {"id": 1, "sku": "a", "title": " "}
    refused = await failure_of(db.call_as(LOOKER, "products.upsert", row))
    assert isinstance(refused, NotAuthorized), refused
    refused = await failure_of(db.call_as(LOOKER, "products.upsert", row, update=[]))
    assert isinstance(refused, InvalidRow)


class Careless(Model):
    """A model whose hooks ignore exceptions, or take all values at once."""

    TABLENAME = "products"

    def beforeDelete(self) -> bool | None:
        """Keep what is in stock, if that can be known."""
        try:
            return not self.stock
        except Exception:
            return None

    def beforeUpdate(self) -> None:
        """Look at the complete row."""
        try:
            self.columns()
        except Exception:
            self.title = "unknown"


@pytest_twisted.ensureDeferred
async def test_rule_that_ignores_that_a_column_is_unreadable_refuses_the_row(
    dsn: str, db: DirectCaller
) -> None:
    """A rule that catches every exception lets no row pass; the log names the column, once for a role."""
    with capturedLogs() as logged:
        async with serving(dsn, roles=ROLES, written=(Careless,)) as careless:
            for call in (("delete", 1), ("update", 1, {"price": 1}), ("delete", 2)):
                verb, *args = call
                refused = await failure_of(careless.call_as(GUEST, f"products.{verb}", *args))
                assert isinstance(refused, NotAuthorized), refused
    assert [each[:2] for each in stored(dsn)] == [(1, 10), (2, 20), (3, 30)]
    warnings = [formatEvent(each) for each in logged if each["log_level"] is LogLevel.warn]
    about = [each for each in warnings if "Careless" in each]
    assert len(about) == 1, about
    assert all("stock" in each and "rc_guest" in each for each in about)


@pytest_twisted.ensureDeferred
async def test_procedure_whose_rules_need_an_unreadable_column_is_not_authorized(
    db: DirectCaller, dsn: str
) -> None:
    """Objects have all columns that any role may read, so PostgreSQL refuses to find or make them."""

    async def drop(_caller: Caller, args: Any, _kwargs: Any) -> Any:
        return await (await Product.find(*args)).delete()

    async def make(_caller: Caller, args: Any, _kwargs: Any) -> Any:
        return (await Product(id=args[0], sku="n", title="N").save()).id

    db.dispatcher.add({"drop": drop, "make": make})
    before = stored(dsn)
    for name, key in (("drop", 1), ("drop", 2), ("make", 5)):
        refused = await failure_of(db.call_as(GUEST, name, key))
        assert isinstance(refused, NotAuthorized), refused
    assert stored(dsn) == before
    assert await db.call_as(OWNER, "make", 5) == 5
    assert await db.call_as(OWNER, "drop", 2) == 1


def alike(subject: Any) -> None:
    """Refuse a negative price of a stored row."""
    if subject.persisted and subject.price < 0:
        subject.errors.add("price", "is negative")


async def known(subject: Any) -> None:
    """Refuse every row, asynchronously."""
    subject.errors.add("sku", "is unknown")


class Strict(Model):
    """A model with validations of each kind, beside the limits of the catalog."""

    TABLENAME = "limits"
    VALIDATIONS: ClassVar[list[Any]] = [not_blank("title", "sku"), alike, known]


FAILING: list[tuple[str, dict[str, Any], dict[str, list[str]], str | None]] = [
    (
        "create",
        {"values": {"id": 1, "sku": "z" * 30, "title": ""}},
        {"sku": [LONG], "price": ["is required"], "title": ["cannot be blank"]},
        None,
    ),
    (
        "create",
        {"values": {"id": 1, "sku": None, "title": "T", "price": 1}},
        {"sku": ["may not be null", "cannot be blank"]},
        None,
    ),
    (
        "update",
        {"key": 1, "changes": {"sku": "z" * 30, "title": " "}},
        {"sku": [LONG], "title": ["cannot be blank"]},
        None,
    ),
    (
        "update",
        {"where": {"id": 1}, "changes": {"sku": "z" * 30}},
        {"sku": [LONG]},
        None,
    ),
    (
        "create",
        {"values": [{"id": 1, "title": " "}, {"id": 2, "sku": "z" * 30, "price": 1}]},
        {"sku": ["is required"], "price": ["is required"]},
        "values.0",
    ),
]


@pytest.mark.serving(written=(Strict,))
@pytest.mark.parametrize(("verb", "kwargs", "fields", "path"), FAILING)
@pytest_twisted.ensureDeferred
async def test_limits_and_validations_of_one_row_are_reported_together(
    db: DirectCaller,
    verb: str,
    kwargs: dict[str, Any],
    fields: dict[str, list[str]],
    path: str | None,
) -> None:
    """Validations that wait, or need the stored row, run only if the limits hold."""
    refused = await failure_of(db.call(f"limits.{verb}", **kwargs))
    assert isinstance(refused, InvalidRow), refused
    assert (refused.details["fields"], refused.details.get("path")) == (fields, path)


class Noted(Model):
    """A model whose rules name a column that the guest may not use, without reading it."""

    TABLENAME = "products"

    def beforeDelete(self) -> None:
        """Refuse every delete."""
        self.errors.add("note", "is missing")
        self.errors.add("title", "stays")


Noted.validatesPresenceOf("note", message="has to be given")


@pytest.mark.serving(roles=ROLES, written=(Noted,))
@pytest_twisted.ensureDeferred
async def test_reason_against_a_hidden_column_names_no_column(db: DirectCaller) -> None:
    """A column that a role may neither read nor write has no name for it, also in the reasons of rules."""
    row = {"id": 4, "sku": "d"}
    calls: list[tuple[str, dict[str, Any], dict[str, list[str]]]] = [
        ("create", {"values": row}, {"note": ["has to be given"]}),
        ("create", {"values": {**row, "sku": None}},
         {"sku": ["may not be null"], "note": ["has to be given"]}),
        ("import", {"rows": [row]}, {"note": ["has to be given"]}),
        ("delete", {"key": 1}, {"note": ["is missing"], "title": ["stays"]}),
    ]  # fmt: skip
    for verb, kwargs, fields in calls:
        hidden = {"*" if name == "note" else name: found for name, found in fields.items()}
        for caller, expected in ((OWNER, fields), (GUEST, hidden)):
            refused = await failure_of(db.call_as(caller, f"products.{verb}", **kwargs))
            assert isinstance(refused, InvalidRow), refused
            assert refused.details["fields"] == expected, (verb, caller)
            assert ("note" in str(refused)) == (caller is OWNER)
