"""
One import, whether it comes in one call or in many: a COPY in a transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock

from service.answer.csv_rows import header_of, whole
from service.answer.judged import Judged
from service.answer.served import Served
from service.catalog import Relation
from service.db.copy import CsvText, Feed, RowText, import_txn
from service.db.database import Database
from service.db.statements import apart_txn
from service.errors import Canceled, InvalidArgument
from service.plan.write import plan_import
from service.request.write import ImportRequest
from service.sql.copy import CopyIn, copy_in

MANY = 100
"""Rows of one call from which on they are looked through in a pool thread."""
HEADER = 64 * 1024
"""Characters of a header, at most."""
MARK = "\ufeff"
"""What some programs put before a text."""


class Upload:
    """
    The rows of one import, on their way in.

    The transaction begins with the first rows, and ends with `finish` or `abort`.

    Args:
        database: Where they go.
        served: The catalog that the first call met.
        relation: Where in it.
        first: The first call, which says what holds for all.

    Attributes:
        lock: One call at a time, in their order.
    """

    def __init__(
        self, database: Database, served: Served, relation: Relation, first: ImportRequest
    ) -> None:
        self.relation = relation
        self.lock = DeferredLock()
        self.aborted = False
        self._database = database
        self._served = served
        self._first = first
        self._names = first.columns
        ruled = served.judge(relation).ruled
        self._judged = Judged(database, served, relation, first.columns) if ruled else None
        self._csv: bool | None = None
        self._begun = False
        self._head = ""
        self._feed: Feed | None = None
        self._written: Deferred[int] | None = None

    async def take(self, call: ImportRequest) -> None:
        """
        Take the rows of one call; done when the COPY has them.

        Raises:
            InvalidArgument: They are no rows, or not like those before.
            ServiceError, psycopg2.Error: The import has failed.
        """
        if call.empty:
            return
        if self._csv is None:
            self._csv = call.csv is not None
        if self._csv != (call.csv is not None):
            path = "rows" if self._csv else "csv"
            raise InvalidArgument("an import is rows, or CSV, throughout", path=path)
        if call.csv is None:
            rows = call.rows or ()
            await self._put(await self._judged.of_rows(rows) if self._judged else rows)
            return
        text = call.csv if self._begun else call.csv.removeprefix(MARK)
        self._begun = True
        await self._put(await self._judged.of_csv(text) if self._judged else self._headed(text))

    async def finish(self) -> int:
        """Commit; gives the number of rows written."""
        if self._csv and self._judged:
            await self._put(await self._judged.of_csv("", last=True))
        if self._head:  # and no rows
            await self._put(self._head)
        if self._feed is None or self._written is None:
            return 0
        self._feed.end()
        return await self._written

    def abort(self) -> None:
        """Keep nothing."""
        self.aborted = True
        if self._feed is not None and self._written is not None:
            self._feed.fail(Canceled())
            self._written.addErrback(lambda _: None)
            self._written.cancel()

    def _headed(self, text: str) -> str:
        """Keep the beginning of CSV until its header is whole."""
        if self._feed is not None or self._names is not None:
            return text
        text, self._head = self._head + text, ""
        if whole(text[:HEADER]):
            return text
        if len(text) > HEADER:
            raise _no_header()
        self._head = text
        return ""

    async def _put(self, given: Any) -> None:
        if not given:
            return
        if self._feed is None:
            names = await self._columns(given)
            if self.aborted:  # while it was read
                raise Canceled
            self._feed = self._start(names, isinstance(given, str))
        await self._feed.put(given)

    def _start(self, names: list[tuple[str, str]], csv: bool) -> Feed:
        """Begin the transaction: now it is known what the rows are made of."""
        catalog = self._served.catalog
        header = csv and self._names is None
        plan = plan_import(catalog, self.relation, names, csv, header, self._first.conflict)
        rows = RowText(self._served.codec, plan.columns, catalog.type, whole=plan.staged)
        feed = Feed(self._database.reactor, CsvText().encode if csv else rows.encode)
        self._written = Deferred.fromCoroutine(self._write(copy_in(plan), feed))
        self._written.addBoth(feed.over)
        return feed

    async def _write(self, spelled: CopyIn, feed: Feed) -> int:
        async with self._database.transaction():
            return int(await self._database.run(import_txn, spelled, feed))

    async def _columns(self, given: Any) -> list[tuple[str, str]]:
        """Name the columns of the import, each with where it is named."""
        if self._names is not None and not self._judged:  # a model may add to what was named
            return [(name, f"columns.{at}") for at, name in enumerate(self._names)]
        if isinstance(given, str):
            return [(name, f"csv.{name}") for name in header_of(given)]
        if len(given) <= MANY:
            return _named(given)
        found: list[tuple[str, str]] = await self._database.run(
            apart_txn, _named, given, retry=True
        )
        return found


def _named(rows: Sequence[Any]) -> list[tuple[str, str]]:
    """Name the columns of rows, each with the first row that has it."""
    found: dict[str, str] = {}
    for at, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
            raise InvalidArgument(
                "a row is a dict of columns and values",
                path=f"rows.{at}",
                hint='"columns" names the items of rows that are lists',
            )
        if row.keys() - found.keys():
            found.update({name: f"rows.{at}.{name}" for name in row if name not in found})
    if not found:
        raise InvalidArgument("a row names a column at least", path="rows.0")
    return list(found.items())


def _no_header() -> InvalidArgument:
    return InvalidArgument("the header of the CSV is a whole line", path="csv")
