"""
stream and export of the rows of functions, which may write.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted

from service.errors import DatabaseRefused, InvalidArgument, NoSuchProcedure
from tests.conftest import execute
from tests.db.dispatchers import ANYONE, DirectCaller
from tests.db.test_exporting import copied
from tests.db.test_streaming import Taker, transactions
from tests.deferreds import failure_of, until

SCHEMA = """
CREATE TABLE makers (id int PRIMARY KEY, name text NOT NULL, secret text);
COMMENT ON COLUMN makers.secret IS '@hidden';
INSERT INTO makers VALUES (0, 'Ada', 's'), (1, E'B"o,\\nb', 's');
CREATE TABLE items (id int PRIMARY KEY, maker_id int REFERENCES makers, price numeric(8, 2));
INSERT INTO items SELECT i, i % 2, i * 1.5 FROM generate_series(1, 1500) i;
CREATE TABLE log (n int);
CREATE SEQUENCE counter;
CREATE FUNCTION cheap(most numeric) RETURNS SETOF items STABLE
    LANGUAGE sql AS 'SELECT * FROM items WHERE price <= most ORDER BY id';
CREATE FUNCTION everyone() RETURNS SETOF makers STABLE LANGUAGE sql AS 'SELECT * FROM makers';
CREATE FUNCTION logged(many int) RETURNS TABLE (n int, "half ""%s" numeric) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO log SELECT count(*) FROM log;
    RETURN QUERY SELECT i, i / 2.0 FROM generate_series(1, many) i;
END$$;
CREATE FUNCTION sneaky() RETURNS SETOF items STABLE LANGUAGE plpgsql
    AS $$BEGIN PERFORM nextval('counter'); END$$;
CREATE FUNCTION number() RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION whole(jsonb) RETURNS TABLE (k text) IMMUTABLE
    LANGUAGE sql AS 'SELECT jsonb_object_keys($1)';
"""


pytestmark = pytest.mark.serving(max_rows=10)


@pytest_twisted.ensureDeferred
async def test_stream_of_a_function_has_all_rows_in_chunks(db: DirectCaller) -> None:
    """The number of rows is not limited, and the arguments of find apply."""
    taker = Taker(db)
    assert await taker.call("fn.cheap.stream", args={"most": 9999}, chunk=200) == {"rows": 1500}
    rows = [row for part in taker.parts for row in part]
    assert [row["id"] for row in rows] == list(range(1, 1501))
    assert max(map(len, taker.parts)) <= 200
    taker = Taker(db)
    answer = await taker.call(
        "public.fn.cheap.stream", args={"most": "30"}, where={"id": {"gt": 15}}, order=["-id"],
        select=["id"], embed={"makers": {"select": ["name"]}}, limit=3, offset=1, form="lists",
    )  # fmt: skip
    assert answer == {"columns": ["id", "makers"], "rows": 3}
    assert taker.parts == [
        [[19, {"name": 'B"o,\nb'}], [18, {"name": "Ada"}], [17, {"name": 'B"o,\nb'}]]
    ]
    taker = Taker(db)
    answering = db.dispatcher.answer(
        "fn.whole.stream", ({"a": 1},), {}, ANYONE, progress=taker.take
    )
    assert (await answering, taker.parts) == ({"rows": 1}, [[{"k": "a"}]])


@pytest_twisted.ensureDeferred
async def test_export_of_a_function_is_csv_or_json_lines(dsn: str, db: DirectCaller) -> None:
    """CSV is what COPY writes, without hidden columns; JSON lines are rows in wire form."""
    taker = Taker(db)
    answer = await taker.call("fn.everyone.export")
    text = "".join(taker.parts)
    assert text == copied(dsn, "SELECT id, name FROM makers")
    assert answer == {"rows": 2, "bytes": len(text.encode())}
    taker = Taker(db)
    answer = await taker.call("fn.logged.export", args={"many": 700}, format="ndjson", chunk=90)
    lines = "".join(taker.parts).splitlines()
    assert json.loads(lines[0]) == {"n": 1, 'half "%s': "0.50000000000000000000"}
    assert (len(lines), answer["rows"], len(taker.parts) > 5) == (700, 700, True)
    taker = Taker(db)
    await taker.call("fn.logged.export", args={"many": 700}, select=["n"], where={"n": {"lt": 3}})
    assert "".join(taker.parts) == "n\n1\n2\n"


@pytest.mark.parametrize(
    ("verb", "kwargs"), [("stream", {}), ("export", {}), ("export", {"format": "ndjson"})]
)
@pytest_twisted.ensureDeferred
async def test_writes_of_a_streamed_function_are_committed_after_its_last_row(
    dsn: str, db: DirectCaller, verb: str, kwargs: dict[str, Any]
) -> None:
    """If the caller leaves before, they are rolled back."""
    execute(dsn, "TRUNCATE log")
    taker = Taker(db)
    await taker.call(f"fn.logged.{verb}", args={"many": 5000}, **kwargs)
    assert execute(dsn, "SELECT count(*) FROM log") == [(1,)]
    taker = Taker(db)
    taker.open = False
    call = taker.call(f"fn.logged.{verb}", args={"many": 500_000}, **kwargs)
    await until(lambda: taker.parts)
    call.cancel()
    await failure_of(call)
    await until(lambda: transactions(dsn) == [])
    assert execute(dsn, "SELECT count(*) FROM log") == [(1,)]


@pytest.mark.parametrize("kwargs", [{}, {"format": "ndjson"}])
@pytest_twisted.ensureDeferred
async def test_function_not_volatile_that_writes_is_refused(
    db: DirectCaller, kwargs: dict[str, Any]
) -> None:
    """A STABLE or IMMUTABLE function runs in a read-only transaction."""
    verb = "export" if kwargs else "stream"
    refused = await failure_of(Taker(db).call(f"fn.sneaky.{verb}", **kwargs))
    assert isinstance(refused, DatabaseRefused)
    assert refused.details["hint"] == "a function that writes is VOLATILE"


@pytest.mark.parametrize(
    ("name", "kwargs", "refusal", "path"),
    [
        ("number.stream", {}, NoSuchProcedure, None),
        ("nothing.stream", {}, NoSuchProcedure, None),
        ("cheap.streams", {}, NoSuchProcedure, None),
        ("cheap.import", {}, NoSuchProcedure, None),
        ("cheap.stream", {}, InvalidArgument, "args.most"),
        ("cheap.stream", {"most": 1}, InvalidArgument, "most"),
        ("cheap.stream", {"args": {"most": 1}, "chunk": 0}, InvalidArgument, "chunk"),
        ("cheap.stream", {"args": {"most": 1}, "after": "x"}, InvalidArgument, "after"),
        ("cheap.export", {"args": {"most": 1}, "format": "xml"}, InvalidArgument, "format"),
        ("cheap.export", {"args": {"most": 1}, "form": "lists"}, InvalidArgument, "form"),
        ("everyone.export", {"where": {"secret": "s"}}, InvalidArgument, "where.secret"),
        ("cheap.export", {"args": {"most": 1}, "embed": {"makers": {"spread": True}}},
         InvalidArgument, "embed.makers.spread"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_stream_with_arguments_it_does_not_take_is_refused(
    db: DirectCaller, name: str, kwargs: dict[str, Any], refusal: type[Exception], path: str | None
) -> None:
    """The error names the argument, also if the call asks for no progressive results."""
    refused = await failure_of(Taker(db).call(f"fn.{name}", **kwargs))
    assert isinstance(refused, refusal), refused
    assert path is None or refused.details["path"] == path  # type: ignore[attr-defined]
    single = await failure_of(db.call(f"fn.{name}", **kwargs))
    assert (type(single), str(single)) == (type(refused), str(refused))
