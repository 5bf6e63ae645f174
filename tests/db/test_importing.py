"""
import: any number of rows, in one call or in many, written atomically.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.internet.task import Clock

from service.api.import_ import MAX_PAUSE, PAUSE_RATIO
from service.errors import (
    Canceled,
    CheckViolation,
    Conflict,
    ForeignKeyViolation,
    InvalidArgument,
    NotAuthorized,
    NotNullViolation,
    ServiceError,
    Unavailable,
    UniqueViolation,
    UnknownName,
)
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import ANYONE, DirectCaller, serving
from tests.db.test_streaming import transactions
from tests.deferreds import failure_of, until

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE parents (id int PRIMARY KEY);
INSERT INTO parents VALUES (1), (2);
CREATE TABLE items (
    id int PRIMARY KEY, name text NOT NULL DEFAULT 'unnamed', price numeric(8, 2) CHECK (price >= 0),
    mood mood, tags text[], doc jsonb, body bytea, seen timestamptz,
    parent_id int REFERENCES parents, twice int GENERATED ALWAYS AS (id * 2) STORED,
    no int GENERATED ALWAYS AS IDENTITY, secret text DEFAULT 'kept');
COMMENT ON COLUMN items.secret IS '@hidden';
CREATE TABLE "odd %s" (id int PRIMARY KEY, "a ""b%" text);
CREATE VIEW dear AS SELECT id, name, price FROM items WHERE price > 100 WITH CHECK OPTION;
CREATE TABLE rows_of (id int PRIMARY KEY, owner text DEFAULT 'me');
ALTER TABLE rows_of ENABLE ROW LEVEL SECURITY;
"""

BEFORE_EACH = 'TRUNCATE items, "odd %s", rows_of'


def rows(dsn: str, what: str = "id, name, price", of: str = "items") -> list[tuple[object, ...]]:
    """Return the rows of a table."""
    return execute(dsn, f"SELECT {what} FROM {of} ORDER BY id")


@pytest_twisted.ensureDeferred
async def test_rows_with_missing_columns_are_imported_with_defaults(
    dsn: str, db: DirectCaller
) -> None:
    """Values are in wire form; a column that only some rows have is set to its default in the others."""
    given = [
        {
            "id": 1,
            "name": "tab\t, new\nline\r, back\\slash, \\N and \\.",
            "price": "1.50",
            "mood": "ok",
            "tags": ["a", None, 'b"\\,{}'],
            "doc": {"n": [1, None, "é\n"]},
            "body": b"\0\xff\\",
            "seen": "2026-01-01T00:00:00Z",
        },
        {"id": 2, "name": "", "price": None, "doc": "text", "tags": []},
        {"id": 3, "name": {"$default": True}},
    ]
    assert await db.call("items.import", given) == {"rows": 3}
    found = (await db.call("items.find", order=["id"]))["rows"]
    assert [row["name"] for row in found] == [given[0]["name"], "", "unnamed"]
    for name, value in given[0].items():
        assert found[0][name] == value
    assert found[1]["doc"] == "text"
    assert found[1]["tags"] == []
    assert found[1]["price"] is None
    assert found[2]["twice"] == 6
    assert rows(dsn, "secret") == [("kept",)] * 3


@pytest_twisted.ensureDeferred
async def test_values_that_look_like_operators_are_imported_in_value(
    dsn: str, db: DirectCaller
) -> None:
    """As in other new rows, `$value` wraps a value that is taken literally."""
    documents = [{"$default": True}, {"$value": 1}, {"$add": 1, "n": 2}, {"$number": "1"}, None, 5]
    given = [{"id": at, "doc": {"$value": each}} for at, each in enumerate(documents)]
    await db.call("items.import", given)
    await db.call(
        "items.import",
        [[9, {"$default": True}, {"$value": {"$add": 1}}]],
        columns=["id", "name", "doc"],
    )
    await db.call("items.import", csv='id,doc\n10,"{""$add"": 1}"\n')
    stored = [doc for (doc,) in rows(dsn, "doc")]
    assert stored == [*documents, {"$add": 1}, {"$add": 1}]
    assert rows(dsn, "name", "items WHERE id = 9") == [("unnamed",)]


@pytest_twisted.ensureDeferred
async def test_rows_as_lists_with_named_columns_are_imported(dsn: str, db: DirectCaller) -> None:
    """Rows may be lists if `columns` names the columns; any name is quoted as an identifier."""
    answer = await db.call("items.import", [[1, "a"], [2, "b"]], columns=["id", "name"])
    assert answer == {"rows": 2}
    assert rows(dsn, "id, name") == [(1, "a"), (2, "b")]
    await db.call("odd%20%25s.import", rows=[{"id": 1, 'a "b%': "100%"}])
    await db.call("odd%20%25s.import", csv='id,"a ""b%"\n2,%s\n', on_conflict="id")
    assert rows(dsn, "*", '"odd %s"') == [(1, "100%"), (2, "%s")]
    assert await db.call("items.import", []) == {"rows": 0}
    assert await db.call("items.import", csv="") == {"rows": 0}


@pytest_twisted.ensureDeferred
async def test_csv_with_or_without_a_header_is_imported(dsn: str, db: DirectCaller) -> None:
    """PostgreSQL reads the CSV; its header names the columns unless the call does."""
    assert await db.call("items.import", csv="id,name\n9,NULL\n") == {"rows": 1}
    assert (await db.call("items.delete", 9))["name"] == "NULL"
    text = '\ufeffid,name,"price"\r\n1,"a ""quoted"", one",1.5\r\n2,"",\r\n'
    assert await db.call("items.import", csv=text) == {"rows": 2}
    assert await db.call("items.import", "3,c\n4,d", columns=["id", "name"]) == {"rows": 2}
    found = [(id, name, price and str(price)) for id, name, price in rows(dsn)]
    assert found == [(1, 'a "quoted", one', "1.50"), (2, "", None), (3, "c", None), (4, "d", None)]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"rows": [{"nope": 1}]}, "rows.0.nope"),
        ({"rows": [{"id": 1}, {"id": 2, "secret": "x"}]}, "rows.1.secret"),
        ({"rows": [{"id": 1, "twice": 2}]}, "rows.0.twice"),
        ({"rows": [{"id": 1, "no": 2}]}, "rows.0.no"),
        ({"rows": [{}]}, "rows.0"),
        ({"rows": [7]}, "rows.0"),
        ({"rows": {"id": 1}}, "rows"),
        ({"rows": [[1]]}, "rows.0"),
        ({"rows": [[1, 2]], "columns": ["id"]}, "rows.0"),
        ({"rows": [{"id": 1}], "columns": []}, "columns"),
        ({"rows": [{"id": 1}], "columns": ["id", "nope"]}, "columns.1"),
        ({"rows": [{"id": 1, "name": "x"}], "columns": ["id"]}, "rows.0.name"),
        ({"rows": [{"id": "x"}]}, "rows.0.id"),
        ({"rows": [{"id": 1, "doc": {"a": "\0"}}]}, "rows.0.doc.a"),
        ({"csv": "id,nope"}, "csv.nope"),
        ({"csv": '"id'}, "csv"),
        ({"csv": "id,nope\n"}, "csv.nope"),
        ({"csv": "id,id\n"}, "csv.id"),
        ({"csv": "id\n\0\n"}, "csv"),
        ({"csv": 'a"b\n'}, "csv"),
        ({"csv": 1}, "csv"),
        ({"csv": "id\n", "rows": []}, "csv"),
        ({"upload": 1}, "upload"),
        ({"upload": "nope", "columns": ["id"]}, "columns"),
        ({"upload": "nope"}, "upload"),
        ({"done": "yes"}, "done"),
        ({}, "rows"),
        ({"on_conflict": ["id"], "columns": ["id"]}, "rows"),
        ({"rows": [{"id": 1}], "on_conflict": []}, "on_conflict"),
        ({"rows": [{"id": 1}], "on_conflict": "name"}, "on_conflict"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_import_with_malformed_arguments_writes_nothing(
    dsn: str, db: DirectCaller, arguments: dict[str, Any], path: str
) -> None:
    """The call is refused before anything is written."""
    refused = await failure_of(db.call("items.import", **arguments))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == path
    assert rows(dsn) == []
    assert not transactions(dsn)


@pytest.mark.parametrize(
    ("bad", "kind", "column"),
    [
        ({"id": 3, "name": None}, NotNullViolation, "name"),
        ({"id": 3, "price": "-1"}, CheckViolation, "price"),
        ({"id": 1}, UniqueViolation, "id"),
        ({"id": 3, "price": "x"}, InvalidArgument, "price"),
        ({"id": 3, "mood": "glad"}, InvalidArgument, "mood"),
        ({"id": 3, "price": []}, InvalidArgument, "price"),
        ({"id": 3, "price": {"$add": 1}}, InvalidArgument, "price"),
        ({"id": 3, "doc": {"$valeu": 1}}, InvalidArgument, "doc"),
        ({"id": 3, "doc": {"$default": 1}}, InvalidArgument, "doc"),
        ({"id": 3, "doc": {"$default": True, "a": 1}}, InvalidArgument, "doc"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_failed_import_names_line_and_column_only(
    dsn: str, db: DirectCaller, bad: dict[str, Any], kind: type[ServiceError], column: str
) -> None:
    """The error has the line and the column, and no values of the row."""
    given = [{"id": 1, "name": "the secret"}, {"id": 2}, {"name": "the secret", **bad}, {"id": 4}]
    refused = await failure_of(db.call("items.import", given))
    assert isinstance(refused, kind)
    assert refused.details["line"] == 3
    assert refused.details["column"] == column
    assert "secret" not in f"{refused} {refused.details}"
    assert rows(dsn) == []


@pytest_twisted.ensureDeferred
async def test_import_into_what_was_dropped_may_be_retried(dsn: str, db: DirectCaller) -> None:
    """If a column or a table was dropped meanwhile, the error is retryable."""
    execute(dsn, "CREATE TABLE passing (id int PRIMARY KEY, name text)")
    db.catalogs.reload()
    await until(lambda: ("public", "passing") in db.dispatcher.served.catalog.relations)
    for drop in ("ALTER TABLE passing DROP COLUMN name", "DROP TABLE passing"):
        db.dispatcher.refresh = lambda: succeed(True)  # keeps the old schema cache
        execute(dsn, drop)
        refused = await failure_of(db.call("passing.import", [{"id": 1, "name": "a"}]))
        assert isinstance(refused, Unavailable)
        assert refused.details["retry"] is True


@pytest_twisted.ensureDeferred
async def test_failed_csv_names_its_line(dsn: str, db: DirectCaller) -> None:
    """Lines of CSV are counted as in an editor, including the header."""
    refused = await failure_of(db.call("items.import", csv="id,name\n1,a\nx,the secret\n"))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["line"] == 3
    assert refused.details["column"] == "id"
    assert "secret" not in f"{refused} {refused.details}"
    refused = await failure_of(db.call("items.import", csv="id,name\n1,a\n2\n"))
    assert isinstance(refused, InvalidArgument)
    assert refused.message == 'missing data for column "name"'
    assert (refused.details["line"], refused.details["column"]) == (3, "name")
    refused = await failure_of(db.call("items.import", csv="id,name\n1,a,b\n"))
    assert isinstance(refused, InvalidArgument)
    assert refused.message == "extra data after last expected column"
    refused = await failure_of(db.call("items.import", csv="id,parent_id\n1,1\n2,77\n"))
    assert isinstance(refused, ForeignKeyViolation)
    assert rows(dsn) == []


@pytest_twisted.ensureDeferred
async def test_import_with_on_conflict_updates_what_is_named(dsn: str, db: DirectCaller) -> None:
    """Existing rows take all given columns, the named columns, or none."""
    execute(dsn, "INSERT INTO items (id, name, price) VALUES (1, 'old', 1)")
    given = [{"id": 1, "name": "new", "price": 2}, {"id": 2, "name": "two", "price": 2}]
    assert isinstance(await failure_of(db.call("items.import", given)), UniqueViolation)
    answer = await db.call("items.import", given, on_conflict=["id"], update=[])
    assert answer == {"rows": 1}
    assert [row[:2] for row in rows(dsn)] == [(1, "old"), (2, "two")]
    answer = await db.call("items.import", given, on_conflict="items_pkey", update=["price"])
    assert answer == {"rows": 2}
    assert [(i, n, int(str(p)[0])) for i, n, p in rows(dsn)] == [(1, "old", 2), (2, "two", 2)]
    answer = await db.call("items.import", csv="id,name\n1,csv\n", on_conflict="id")
    assert answer == {"rows": 1}
    assert [row[:2] for row in rows(dsn)] == [(1, "csv"), (2, "two")]
    refused = await failure_of(
        db.call("items.import", [{"id": 7, "name": "x"}, {"id": 8}], on_conflict="id")
    )
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "rows.1.name"


@pytest_twisted.ensureDeferred
async def test_import_into_views_and_under_row_security_is_written(
    dsn: str, db: DirectCaller
) -> None:
    """COPY cannot write to these, so the import uses another statement."""
    assert await db.call("dear.import", [{"id": 1, "name": "gold", "price": 200}]) == {"rows": 1}
    refused = await failure_of(db.call("dear.import", [{"id": 2, "name": "tin", "price": 1}]))
    assert isinstance(refused, CheckViolation)
    assert await db.call("rows_of.import", csv="id\n1\n2\n") == {"rows": 2}
    assert rows(dsn, "id, owner", "rows_of") == [(1, "me"), (2, "me")]


@pytest_twisted.ensureDeferred
async def test_upload_in_many_calls_is_visible_after_the_last(dsn: str, db: DirectCaller) -> None:
    """All calls feed one COPY: no row is visible before the last call, all rows are after it."""
    begun = await db.call("items.import", done=False)
    assert list(begun) == ["upload"]
    for start in range(0, 3000, 1000):
        chunk = [{"id": n, "name": f"n{n}"} for n in range(start, start + 1000)]
        assert await db.call("items.import", chunk, **begun) == begun
    assert rows(dsn) == []
    answer = await db.call("items.import", [{"id": 5000, "name": "last"}], done=True, **begun)
    assert answer == {"rows": 3001}
    assert len(rows(dsn)) == 3001
    refused = await failure_of(db.call("items.import", [{"id": 1}], **begun))
    assert isinstance(refused, InvalidArgument)
    await until(lambda: not transactions(dsn))  # a check of the catalog may run


@pytest_twisted.ensureDeferred
async def test_upload_of_csv_cut_anywhere_is_imported(dsn: str, db: DirectCaller) -> None:
    """CSV may be split anywhere, and calls may be pipelined."""
    text = "id,name\n" + "".join(f'{n},"é ""{n}""\n"\n' for n in range(500))
    begun = await db.call("items.import", csv=text[:20], done=False)
    calls = [
        Deferred.fromCoroutine(db.call("items.import", csv=text[at : at + 777], **begun))
        for at in range(20, len(text), 777)
    ]
    last = Deferred.fromCoroutine(db.call("items.import", done=True, **begun))
    assert await last == {"rows": 500}
    assert await gatherResults(calls) == [begun] * len(calls)
    assert rows(dsn, "name")[499] == ('é "499"\n',)


@pytest_twisted.ensureDeferred
async def test_call_after_the_last_of_an_upload_is_refused(dsn: str, db: DirectCaller) -> None:
    """A call that arrives while the last one runs is refused because the upload is complete."""
    begun = await db.call("items.import", [{"id": 1}], done=False)
    last, late, later = (
        Deferred.fromCoroutine(db.call("items.import", [{"id": n}], done=done, **begun))
        for n, done in ((2, True), (3, False), (4, True))
    )
    assert await last == {"rows": 2}
    for each in (late, later):
        refused = await failure_of(each.addTimeout(5, reactor))
        assert isinstance(refused, InvalidArgument)
        assert refused.details["path"] == "upload"
    assert rows(dsn, "id") == [(1,), (2,)]


@pytest_twisted.ensureDeferred
async def test_csv_with_its_header_in_pieces_is_imported(dsn: str, db: DirectCaller) -> None:
    """CSV may be split within its header, too; a header that never ends is refused."""
    begun = await db.call("items.import", csv="\ufeffid,na", done=False)
    for piece in ('me,"pri', 'ce"\r', "\n1,a,2\r\n2"):
        assert await db.call("items.import", csv=piece, **begun) == begun
    assert await db.call("items.import", csv=",b,3\r\n", done=True, **begun) == {"rows": 2}
    assert rows(dsn, "id, name") == [(1, "a"), (2, "b")]
    for csv in ("id,name", "id,name\n", "\ufeffid"):
        assert await db.call("items.import", csv=csv) == {"rows": 0}
    refused = await failure_of(db.call("items.import", csv="id," * 50_000, done=False))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "csv"


@pytest_twisted.ensureDeferred
async def test_rows_with_different_columns_are_imported(dsn: str, db: DirectCaller) -> None:
    """The rows of a large call may have different columns; an invalid row is named by its position."""
    given: list[Any] = [{"id": n} for n in range(500)]
    given[400]["name"] = "named"
    assert await db.call("items.import", given) == {"rows": 500}
    assert rows(dsn, "name", "items WHERE id IN (400, 401)") == [("named",), ("unnamed",)]
    given[450] = 7
    refused = await failure_of(db.call("items.import", given))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "rows.450"


@pytest_twisted.ensureDeferred
async def test_upload_without_rows_ends_with_none(dsn: str, db: DirectCaller) -> None:
    """An upload may be empty."""
    begun = await db.call("items.import", done=False, columns=["id"])
    assert await db.call("items.import", done=True, **begun) == {"rows": 0}


@pytest_twisted.ensureDeferred
async def test_failed_upload_keeps_nothing_and_names_its_line(dsn: str, db: DirectCaller) -> None:
    """An error ends the upload; lines are counted across its calls."""
    begun = await db.call("items.import", [{"id": 1}, {"id": 2}], done=False)
    refused = await failure_of(db.call("items.import", [{"id": "x"}], **begun))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "rows.0.id"
    assert refused.details["line"] == 3
    await until(lambda: not transactions(dsn))
    assert isinstance(await failure_of(db.call("items.import", [], **begun)), InvalidArgument)
    begun = await db.call("items.import", [{"id": 1}, {"id": 1}], done=False)
    refused = await failure_of(db.call("items.import", done=True, **begun))
    assert isinstance(refused, UniqueViolation)
    assert refused.details["line"] == 2
    begun = await db.call("items.import", [{"id": 1}], done=False)
    refused = await failure_of(db.call("items.import", [{"id": 2, "name": "x"}], **begun))
    assert isinstance(refused, UnknownName)
    begun = await db.call("items.import", [{"id": 1}], done=False)
    refused = await failure_of(db.call("items.import", csv="2\n", **begun))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "csv"
    await until(lambda: not transactions(dsn))
    assert rows(dsn) == []


class AdvancingClock(Clock):
    """A clock that advances by a second each time that the reactor thread reads it."""

    def seconds(self) -> float:
        """Return the time."""
        self.rightNow += 1.0
        return self.rightNow

    def callFromThread(self, function: Any, *args: Any) -> None:
        """Call a function in the reactor thread."""
        reactor.callFromThread(function, *args)  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_upload_pauses_after_each_call_for_other_calls(dsn: str) -> None:
    """A call of an upload is answered after a pause of half its duration, for other calls."""
    async with serving(dsn) as db:
        clock = db.database.reactor = AdvancingClock()
        call = Deferred.fromCoroutine(db.call("items.import", [{"id": 1}], done=False))
        await until(clock.getDelayedCalls)
        assert not call.called
        clock.advance(PAUSE_RATIO)
        upload = await call
        slow = Deferred.fromCoroutine(db.call("items.import", [{"id": 2}], done=False, **upload))
        clock.advance(60)  # as when a trigger or a lock delays it
        await until(clock.getDelayedCalls)
        clock.advance(MAX_PAUSE)
        await slow
        assert await db.call("items.import", done=True, **upload) == {"rows": 2}


@pytest.mark.serving(idle=0.4)
@pytest_twisted.ensureDeferred
async def test_idle_upload_is_dropped(dsn: str, db: DirectCaller) -> None:
    """Its connection is released."""
    begun = await db.call("items.import", [{"id": 1}], done=False)
    assert transactions(dsn)
    await until(lambda: not transactions(dsn))
    await until(lambda: not db.pool.stats().busy)
    assert isinstance(
        await failure_of(db.call("items.import", done=True, **begun)), InvalidArgument
    )
    assert rows(dsn) == []


@pytest_twisted.ensureDeferred
async def test_uploads_of_a_session_that_is_gone_are_dropped(dsn: str, db: DirectCaller) -> None:
    """Only the uploads of the lost session are dropped."""
    one, two = (Caller(n, None, None, "realm1") for n in (1, 2))
    mine = await db.call_as(one, "items.import", [{"id": 1}], done=False)
    theirs = await db.call_as(two, "items.import", [{"id": 2}], done=False)
    refused = await failure_of(db.call_as(two, "items.import", done=True, **mine))
    assert isinstance(refused, NotAuthorized)
    db.dispatcher.departed(1)
    assert isinstance(
        await failure_of(db.call_as(one, "items.import", done=True, **mine)), InvalidArgument
    )
    assert await db.call_as(two, "items.import", done=True, **theirs) == {"rows": 1}
    assert rows(dsn, "id") == [(2,)]
    assert not transactions(dsn)


@pytest_twisted.ensureDeferred
async def test_session_cannot_take_every_upload(db: DirectCaller) -> None:
    """A session may hold half of the uploads; other sessions may start theirs, and an ended one is free again."""
    one, two = (Caller(n, None, None, "realm1") for n in (1, 2))
    mine = [await db.call_as(one, "items.import", done=False) for _ in range(2)]
    refused = await failure_of(db.call_as(one, "items.import", done=False))
    assert isinstance(refused, Unavailable)
    assert "done=True ends one" in refused.details["hint"]
    theirs = await db.call_as(two, "items.import", done=False)
    assert await db.call_as(one, "items.import", done=True, **mine.pop()) == {"rows": 0}
    mine.append(await db.call_as(one, "items.import", done=False))
    for each in mine:
        await db.call_as(one, "items.import", done=True, **each)
    await db.call_as(two, "items.import", done=True, **theirs)


@pytest_twisted.ensureDeferred
async def test_upload_into_another_relation_is_refused(dsn: str, db: DirectCaller) -> None:
    """All calls of an upload must name the same relation."""
    begun = await db.call("items.import", done=False)
    refused = await failure_of(db.call("rows_of.import", [{"id": 1}], **begun))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "upload"


@pytest_twisted.ensureDeferred
async def test_uploads_beyond_their_bound_are_refused(dsn: str, db: DirectCaller) -> None:
    """The bound leaves connections for other calls."""
    begun = [await db.call("items.import", [{"id": n}], done=False) for n in range(3)]
    refused = await failure_of(db.call("items.import", done=False))
    assert isinstance(refused, Unavailable)
    assert refused.details["retry"] is True
    assert await db.call("items.count") == 0
    assert await db.call("items.import", [{"id": 9}]) == {"rows": 1}
    for each in begun:
        assert await db.call("items.import", done=True, **each) == {"rows": 1}
    assert len(rows(dsn)) == 4


@pytest_twisted.ensureDeferred
async def test_import_that_is_cancelled_keeps_nothing(dsn: str, db: DirectCaller) -> None:
    """Cancelling the call rolls back its import."""
    execute(dsn, "CREATE TABLE IF NOT EXISTS lazy (id int CHECK (pg_sleep(0.05) IS NOT NULL))")
    db.catalogs.reload()
    await until(lambda: ("public", "lazy") in db.dispatcher.served.catalog.relations)
    given = [{"id": n} for n in range(1000)]
    call = Deferred.fromCoroutine(db.dispatcher.answer("lazy.import", [given], {}, ANYONE))
    await until(lambda: transactions(dsn))
    call.cancel()
    assert isinstance(await failure_of(call), CancelledError | Canceled)
    await until(lambda: not transactions(dsn))
    assert await db.call("lazy.count") == 0


@pytest_twisted.ensureDeferred
async def test_upload_to_a_service_that_stops_keeps_nothing(dsn: str) -> None:
    """A stopping service does not wait for an upload, and rolls it back."""
    async with serving(dsn, idle=60) as db:
        await db.call("items.import", [{"id": 70}], done=False)
    await until(lambda: not transactions(dsn))
    assert rows(dsn, "id", "items WHERE id = 70") == []


@pytest_twisted.ensureDeferred
async def test_uploads_of_a_stopping_service_end_as_conflict(dsn: str) -> None:
    """The caller receives the reason; an upload with a running call ends with that call."""
    async with serving(dsn) as db:
        one, two = [await db.call("items.import", [{"id": n}], done=False) for n in (1, 2)]
        running = Deferred.fromCoroutine(db.call("items.import", [{"id": 3}], **two))
        db.dispatcher.stop()
        assert await running == two
        for upload in (one, two):
            refused = await failure_of(db.call("items.import", done=True, **upload))
            assert isinstance(refused, Conflict)
            assert refused.details["reason"] == "stopped"
        assert isinstance(await failure_of(db.call("items.import", done=False)), Unavailable)
        await until(lambda: not transactions(dsn))
    assert rows(dsn) == []
