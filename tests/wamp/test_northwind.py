"""
An existing database, the Northwind sample, served unchanged.

The results over WAMP equal those of SQL, for each table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from jsonschema import Draft202012Validator
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from service.describe.stubs import python, typescript
from service.waiting import in_thread
from tests.conftest import ROOT, execute, missing
from tests.db.described import Described
from tests.db.test_stubs import check, compiler
from tests.wamp.callers import Caller

SAMPLE = ROOT.parent / "shared" / "data" / "northwind" / "northwind.sql"
TABLES = 14


@pytest.fixture(scope="module", autouse=True)
def northwind(dsn: str) -> None:
    """Load the sample."""
    if not Path(SAMPLE).exists():
        missing("the Northwind sample is not here: its folder is not part of a clone")
    execute(dsn, SAMPLE.read_text() + "SET search_path TO public;")


def sql(dsn: str, query: str) -> Any:
    """Run a query without the service; return its JSON value."""
    return execute(dsn, f"SELECT coalesce(json_agg(q), '[]') FROM ({query}) q")[0][0]


@pytest_twisted.ensureDeferred
async def test_table_of_northwind_has_all_its_rows_page_by_page(caller: Caller, dsn: str) -> None:
    """Each table has procedures, a count, and all its rows in pages."""
    described = await caller.call("rowcast.describe")
    relations = described["relations"]
    names = {row["name"] for row in sql(dsn, "SELECT relname AS name FROM pg_class"
                                             " WHERE relkind = 'r' AND relnamespace ="
                                             " 'public'::regnamespace")}  # fmt: skip
    assert set(relations) == names
    assert len(names) == TABLES
    for name, relation in relations.items():
        expected = execute(dsn, f"SELECT count(*) FROM {name}")[0][0]
        assert await caller.call(f"rowcast.{name}.count") == expected
        key = relation["primary_key"]
        rows: list[dict[str, Any]] = []
        after = None
        while True:
            page = await caller.call(f"rowcast.{name}.find", limit=300, after=after)
            rows += page["rows"]
            after = page["next"]
            if after is None:
                break
        assert len(rows) == expected
        found = {tuple(row[column] for column in key) for row in rows}
        assert len(found) == expected
        for row in rows[:2]:
            again = await caller.call(f"rowcast.{name}.get", {part: row[part] for part in key})
            assert again == row


@pytest_twisted.ensureDeferred
async def test_description_of_northwind_is_valid_and_its_types_compile(
    caller: Caller, tmp_path: Path
) -> None:
    """The description is valid JSON Schema, results conform to it, and compilers accept the types."""
    document = await caller.call("rowcast.describe")
    await deferToThread(Draft202012Validator.check_schema, document)
    described = Described(document)
    for name in document["relations"]:
        page = await caller.call(f"rowcast.{name}.find", limit=40)
        described.check_call(f"{name}.find", [], {"limit": 40}, page)
    (tmp_path / "made.ts").write_text(typescript(document))
    (tmp_path / "made.py").write_text(python(document))
    tsc = [*compiler(), "--strict", "--noEmit", "--target", "es2022", "made.ts"]
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "made.py"]
    for command in (tsc, mypy):
        found = await in_thread(reactor, "compiler", check, command, tmp_path)
        assert found.returncode == 0, found.stdout


QUERIES: list[tuple[str, dict[str, Any], str]] = [
    (
        "customers",
        {"where": {"country": "Germany"}, "select": ["customer_id", "city"], "order": ["-city"]},
        "SELECT customer_id, city FROM customers WHERE country = 'Germany'"
        " ORDER BY city DESC, customer_id",
    ),
    (
        "orders",
        {
            "where": {"order_date": {"between": ["1997-01-01", "1997-01-31"]}, "ship_region": None},
            "select": ["order_id", "order_date", "ship_country"],
        },
        "SELECT order_id, order_date, ship_country FROM orders WHERE order_date BETWEEN"
        " '1997-01-01' AND '1997-01-31' AND ship_region IS NULL ORDER BY order_id",
    ),
    (
        "products",
        {
            "where": {"or": [{"units_in_stock": 0}, {"unit_price": {"gt": 100}}]},
            "select": ["product_name", "discontinued"],
            "order": ["product_name"],
        },
        "SELECT product_name, discontinued FROM products WHERE units_in_stock = 0"
        " OR unit_price > 100 ORDER BY product_name, product_id",
    ),
    (
        "employees",
        {
            "where": {"title": {"ilike": "%sales%"}, "reports_to": {"is": "not null"}},
            "select": ["name:last_name", "hire_date", "reports_to"],
            "order": [{"by": "hire_date", "desc": True}],
        },
        "SELECT last_name AS name, hire_date, reports_to FROM employees WHERE title ILIKE"
        " '%sales%' AND reports_to IS NOT NULL ORDER BY hire_date DESC, employee_id",
    ),
    (
        "order_details",
        {
            "where": {"quantity": {"gte": 100}, "discount": {"gt": 0}},
            "select": ["order_id", "product_id", "quantity"],
            "order": ["-quantity"],
        },
        "SELECT order_id, product_id, quantity FROM order_details WHERE quantity >= 100"
        " AND discount > 0 ORDER BY quantity DESC, order_id, product_id",
    ),
    (
        "suppliers",
        {"distinct": True, "select": ["country"], "order": ["country"]},
        "SELECT DISTINCT country FROM suppliers ORDER BY country",
    ),
]


@pytest.mark.parametrize(("relation", "kwargs", "query"), QUERIES)
@pytest_twisted.ensureDeferred
async def test_query_over_wamp_finds_what_psql_finds(
    caller: Caller, dsn: str, relation: str, kwargs: dict[str, Any], query: str
) -> None:
    found = await caller.call(f"rowcast.{relation}.find", **kwargs)
    expected = sql(dsn, query)
    assert found["rows"] == expected
    assert expected


@pytest_twisted.ensureDeferred
async def test_row_of_a_table_without_a_model_is_created_updated_deleted(
    caller: Caller, dsn: str
) -> None:
    made = await caller.call(
        "rowcast.shippers.create", {"shipper_id": 99, "company_name": "Rowboat", "phone": None}
    )
    assert made == {"shipper_id": 99, "company_name": "Rowboat", "phone": None}
    changed = await caller.call("rowcast.shippers.update", 99, {"phone": "555"})
    assert changed["phone"] == "555"
    assert execute(dsn, "SELECT phone FROM shippers WHERE shipper_id = 99") == [("555",)]
    assert (await caller.call("rowcast.shippers.delete", 99))["company_name"] == "Rowboat"
