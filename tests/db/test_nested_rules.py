"""
Nested creates of tables with rewrite rules, whose INSERT PostgreSQL does not accept in WITH.

The expected rows are read from the tables with plain SQL.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.conftest import execute
from tests.db.dispatchers import serving

TABLES = """
DROP SCHEMA public CASCADE; CREATE SCHEMA public;
CREATE TABLE log (what text);
CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text);
CREATE TABLE lines (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, order_id int REFERENCES orders,
    name text DEFAULT 'line');
CREATE TABLE bills (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id int NOT NULL REFERENCES orders);
CREATE TABLE tags (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
CREATE TABLE order_tags (order_id int REFERENCES orders, tag_id int REFERENCES tags,
    PRIMARY KEY (order_id, tag_id));
CREATE TABLE kept (order_id int REFERENCES orders, name text);
INSERT INTO lines (name) VALUES ('old');
INSERT INTO tags (name) VALUES ('red');
"""
ORDER = {
    "note": "n",
    "lines": [{"name": "new"}, {"$link": 1}],
    "bills": [{}],
    "tags": [{"$link": 1}, {"name": "blue"}],
}
ROWS = [
    ("SELECT note FROM orders", [("n",)]),
    ("SELECT order_id, name FROM lines ORDER BY id", [(1, "old"), (1, "new")]),
    ("SELECT order_id FROM bills", [(1,)]),
    ("SELECT order_id, name FROM order_tags JOIN tags ON id = tag_id ORDER BY id",
     [(1, "red"), (1, "blue")]),
]  # fmt: skip
ALSO = "CREATE RULE r AS ON {event} TO {table} DO ALSO INSERT INTO log VALUES ('{table}')"


@pytest.mark.parametrize(
    ("event", "table", "times"),
    [
        ("INSERT", "orders", 1),
        ("INSERT", "lines", 1),
        ("INSERT", "bills", 1),
        ("INSERT", "tags", 1),
        ("INSERT", "order_tags", 2),
        ("UPDATE", "lines", 1),
        ("UPDATE", "orders", 0),
        ("UPDATE", "order_tags", 0),
    ],
)
@pytest_twisted.ensureDeferred
async def test_nested_rows_of_a_table_with_a_rule_are_created(
    dsn: str, event: str, table: str, times: int
) -> None:
    """The rule acts once for each row."""
    execute(dsn, TABLES + ALSO.format(event=event, table=table))
    async with serving(dsn) as db:
        made = await db.call("orders.create", ORDER)
        assert [sorted(each["name"] for each in made[name]) for name in ("lines", "tags")] == [
            ["new", "old"],
            ["blue", "red"],
        ]
    for query, rows in ROWS:
        assert execute(dsn, query) == rows, query
    assert execute(dsn, "SELECT what FROM log") == [(table,)] * times


@pytest_twisted.ensureDeferred
async def test_nested_rows_of_tables_that_all_have_rules_are_created(dsn: str) -> None:
    """No value is passed within PostgreSQL; each is returned to the service."""
    rules = [
        ALSO.format(event=event, table=table).replace("RULE r", f"RULE {event}_{table}")
        for event in ("INSERT", "UPDATE")
        for table in ("orders", "lines", "bills", "tags", "order_tags")
    ]
    execute(dsn, TABLES + ";".join(rules))
    async with serving(dsn) as db:
        await db.call("orders.create", ORDER)
        [_, second] = await db.call("orders.create", [{"lines": [{}, {}]}, {"lines": [{}]}])
        assert len(second["lines"]) == 1
    assert execute(dsn, "SELECT count(*) FROM lines WHERE order_id IS NOT NULL") == [(5,)]


@pytest.mark.parametrize("table", ["orders", "lines"])
@pytest.mark.parametrize("returning", [True, False])
@pytest_twisted.ensureDeferred
async def test_row_that_refers_to_a_new_one_is_created_by_a_rule(
    dsn: str, table: str, returning: bool
) -> None:
    """The rows of the call are inserted last, with the key that was generated before."""
    execute(dsn, TABLES + ALSO.format(event="INSERT", table=table))
    async with serving(dsn) as db:
        made = await db.call(
            "lines.create", {"name": "new", "order_id": {"note": "n"}}, returning=returning
        )
        if returning:
            assert made["order_id"] == {"id": 1, "note": "n"}
    query = "SELECT note, name FROM orders o JOIN lines ON order_id = o.id"
    assert execute(dsn, query) == [("n", "new")]
    assert execute(dsn, "SELECT what FROM log") == [(table,)]


INSTEAD: list[tuple[str, Any, str, list[Any]]] = [
    (
        "CREATE RULE r AS ON INSERT TO lines DO INSTEAD INSERT INTO kept VALUES (NEW.order_id, NEW.name)",
        {"lines": [{"name": "a"}, {"name": "b"}], "bills": [{}]},
        "SELECT * FROM kept ORDER BY name",
        [(1, "a"), (1, "b")],
    ),
    (
        "CREATE RULE r AS ON INSERT TO order_tags DO INSTEAD"
        " INSERT INTO kept SELECT NEW.order_id, name FROM tags WHERE id = NEW.tag_id",
        {"tags": [{"$link": 1}]},
        "SELECT * FROM kept",
        [(1, "red")],
    ),
    (
        "CREATE RULE r AS ON UPDATE TO lines DO INSTEAD"
        " UPDATE tags SET name = NEW.order_id::text WHERE id = OLD.id",
        {"lines": [{"$link": 1}], "bills": [{}]},
        "SELECT name FROM tags",
        [("1",)],
    ),
]


@pytest.mark.parametrize(("rule", "order", "query", "rows"), INSTEAD)
@pytest_twisted.ensureDeferred
async def test_instead_rule_of_nested_rows_has_the_new_key(
    dsn: str, rule: str, order: Any, query: str, rows: list[Any]
) -> None:
    """The rule's statement has the key of the new row."""
    execute(dsn, TABLES + rule)
    async with serving(dsn) as db:
        await db.call("orders.create", order)
    assert execute(dsn, query) == rows
