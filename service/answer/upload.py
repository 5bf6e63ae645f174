"""
One import, whether it comes in one call or in many: a COPY in a transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock

from service.answer.csv_rows import CsvRows, header_of
from service.answer.served import Served
from service.catalog import Relation
from service.db.copy_text import CsvText, RowText
from service.db.feeding import Feed, import_txn
from service.db.scope import Database
from service.errors import Canceled, InvalidArgument
from service.plan.importing import plan_import
from service.request.imports import ImportRequest
from service.sql.copy import CopyIn, copy_in


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
        self._judge = served.judge(relation)
        self._names = first.columns
        self._cut = CsvRows()
        self._csv: bool | None = None
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
            await self._put(await self._judged(call.rows or ()))
            return
        text = call.csv if self._feed is not None or self._cut.begun else _unmarked(call.csv)
        await self._put(
            await self._judged(self._rows(self._cut.take(text))) if self._ruled else text
        )

    async def finish(self) -> int:
        """Commit; gives the number of rows written."""
        if self._csv and self._ruled:
            await self._put(await self._judged(self._rows(self._cut.end())))
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

    @property
    def _ruled(self) -> bool:
        return bool(self._judge.ruled)

    async def _put(self, given: Any) -> None:
        if not given:
            return
        if self._feed is None:
            self._start(given)
        assert self._feed is not None
        await self._feed.put(given)

    def _start(self, given: Any) -> None:
        """Begin the transaction: now it is known what the rows are made of."""
        catalog = self._served.catalog
        csv = isinstance(given, str)
        names = self._columns(given)
        header = csv and self._names is None
        plan = plan_import(catalog, self.relation, names, csv, header, self._first.conflict)
        rows = RowText(self._served.codec, plan.columns, catalog.type, whole=plan.staged)
        self._feed = Feed(self._database.reactor, CsvText().encode if csv else rows.encode)
        self._written = Deferred.fromCoroutine(self._write(copy_in(plan), self._feed))
        self._written.addBoth(self._feed.over)

    async def _write(self, spelled: CopyIn, feed: Feed) -> int:
        async with self._database.transaction():
            return int(await self._database.run(import_txn, spelled, feed))

    def _columns(self, given: Any) -> list[tuple[str, str]]:
        """Name the columns of the import, each with where it is named."""
        if self._names is not None and not self._ruled:  # a model may add to what was named
            return [(name, f"columns.{at}") for at, name in enumerate(self._names)]
        if isinstance(given, str):
            return [(name, f"csv.{name}") for name in header_of(given)]
        found: dict[str, str] = {}
        for at, row in enumerate(given):
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

    async def _judged(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Have the model judge each row, if it has rules; gives the rows as it left them."""
        if not self._ruled:
            return rows
        found = []
        for at, row in enumerate(rows):
            found.append(await self._admitted(self._named(row, at), f"rows.{at}"))
            await self._database.breathe(at)
        return found

    async def _admitted(self, row: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        codec = self._served.codec
        given = {name: value for name, value in row.items() if value != {"$default": True}}
        admitted = await self._judge.admit_new(given, codec, path)
        made = {
            name: codec.wire(value)
            for name, value in admitted.items()
            if name not in given or value is not given[name]
        }
        return {**row, **made}

    def _named(self, row: Any, at: int) -> Mapping[str, Any]:
        if isinstance(row, list | tuple) and len(row) == len(self._names or ()):
            row = dict(zip(self._names or (), row, strict=True))
        if not isinstance(row, Mapping):
            raise InvalidArgument("a row is a dict of columns and values", path=f"rows.{at}")
        for name in row:
            self.relation.column(name, f"rows.{at}.{name}")
        return row

    def _rows(self, records: Sequence[Sequence[str | None]]) -> list[Mapping[str, Any]]:
        """Give the rows of CSV that the model is to see."""
        if records and self._names is None:
            self._names = tuple(name or "" for name in records[0])
            records = records[1:]
        names = self._names or ()
        for record in records:
            if len(record) != len(names):
                raise InvalidArgument(f"a record of the CSV has {len(names)} fields", path="csv")
        return [
            {name: self._value(name, text) for name, text in zip(names, record, strict=True)}
            for record in records
        ]

    def _value(self, name: str, text: str | None) -> Any:
        """Give the wire value of a field: only in JSON a text means something else on the wire."""
        type = self._served.catalog.type(self.relation.column(name, f"csv.{name}").type)
        return self._served.codec.read(type, text) if type.name in ("json", "jsonb") else text


def _unmarked(text: str) -> str:
    return text.removeprefix("\ufeff")
