"""
The verb import: any number of rows, in one call or in several, as one COPY in a transaction.

Several calls are an upload. It belongs to one session, and to the process that holds its transaction open
until the call with `done`; another replica forwards the calls to that process. An error, or the end of the
upload's lease, rolls the upload back. If the model of the relation has validations, it validates each row,
as in `create`; only then is CSV parsed here, by PostgreSQL's rules, though it may be cut anywhere.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import deferLater

from service.api.call import Call, Snapshot, not_in_transaction
from service.api.idempotency import key_refusal
from service.api.leases import Lease, Leases, Reason, process_of
from service.api.rules import catalog_faults, set_by_model
from service.catalog import Relation, Type
from service.db.copy import CopySource, Literal, RowText, Text, encode_csv, import_txn, not_a_row
from service.db.database import Database
from service.db.error_paths import GivenRow, imported_rows, note_rows
from service.db.statements import compute_txn
from service.db.writes import transaction_txn
from service.errors import Canceled, Conflict, InvalidArgument, InvalidRow
from service.payload import WithReceipt
from service.plan.joins import is_nested, refuse_related
from service.plan.write_plan import plan_import, writable
from service.request.arguments import IDEMPOTENCY_KEY, Caller
from service.request.names import encode
from service.request.read_request import Limits
from service.request.row_values import BY_DEFAULT, new_value
from service.request.write_request import ImportRequest, parse_import
from service.sql.modify import CopyIn, copy_in
from service.waiting import in_thread

Rows = list[Mapping[str, Any]]
Fields = tuple[Any, Mapping[str, Text]]
"""A row as its model sees it, and the original text of values that the model sees with less precision."""

SMALL = 16 * 1024
"""Characters of CSV that the reactor thread parses; more are parsed in a pool thread."""

MANY = 100
"""Rows of one call; more are searched for their columns in a pool thread."""
HEADER = 64 * 1024
"""Maximum length of a CSV header, in characters."""
MAX_RECORD = 1 << 20
"""
Maximum length of a record that comes in pieces, in characters.

An incomplete record is kept and parsed again with the next piece. Without a limit a quote that is never
closed would make the service keep, and parse again, ever more text.
"""

# The quantifiers are possessive (`*+`): else a quote that is never closed is tried again with each shorter match.
_FIELD = re.compile(r'(?:"([^"]*+(?:""[^"]*+)*+)"|([^",\r\n]*+))(,|\r\n|\n|\r|\Z)')

Record = list[str | None]
"""The fields of a record of CSV; None for an empty field without quotes."""

MARK = "\ufeff"
"""The byte order mark, with which some programs begin a text."""

PAUSE_RATIO = 0.5
"""Pause before the answer to a call of an upload, as a part of the time that the call took."""

MAX_PAUSE = 0.25
"""Seconds of that pause at most: a call that took longer has waited for the database, not worked here."""

Forward = Callable[[str, str, Sequence[Any], Mapping[str, Any], Caller], Awaitable[Any]]
"""Calls another process of the service: its id, the procedure's name, args, kwargs, and the caller."""


class ImportProcedure:
    """
    Answers `import`, and holds the uploads of this process.

    Args:
        database: The database to import into.
        limits: The bounds on what a call may ask for, and the idle time of an upload.
        process: The id of this process.

    Attributes:
        forward: Forwards a call to the process that holds its upload; None for a single process.
    """

    def __init__(self, database: Database, limits: Limits, process: str) -> None:
        self._database = database
        self._limits = limits
        self.forward: Forward | None = None
        # Each upload holds a connection, and two are left for other calls. One session may have half of the
        # uploads, so that it cannot keep all others from importing.
        total = max(1, database.pool.scheduler.limits.most - 2)
        self.uploads: Leases[Upload] = Leases(
            database.reactor,
            process,
            "upload",
            total,
            (total + 1) // 2,
            "done=True ends one, and keeps its rows",
        )

    async def answer(self, call: Call) -> Any:
        """
        Answer `import`: the number of rows written, or the id of an upload that expects further calls.

        Raises:
            NotAuthorized: The upload belongs to another session.
            Conflict: The process that held it has stopped.
            Unavailable: The maximum number of uploads is open.
            ServiceError: A row is refused; nothing is kept.
        """
        request, caller, relation = parse_import(call.args, call.kwargs), call.caller, call.relation
        assert relation is not None
        if call.kwargs.get(IDEMPOTENCY_KEY) is not None and (request.upload or not request.done):
            raise key_refusal("an upload has no idempotency key", "a call that brings all rows has")
        if request.upload is None and request.done:
            upload = Upload(self._database, call.snapshot, relation, request)
            return await self._import_at_once(upload, request)
        if self._database.level is not None:
            raise not_in_transaction(
                "import", "an import of one call can be: all rows, and no upload"
            )
        call.state.begun = True  # a refusal ends the upload
        if request.upload is None:
            upload = Upload(self._database, call.snapshot, relation, request)
            return await self._run_one(
                self.uploads.open(caller, upload, self._limits.idle), request
            )
        process = process_of(request.upload)
        if self.forward is not None and process and process != self.uploads.process:
            name = ".".join(map(encode, (relation.schema, relation.name, "import")))
            return await self.forward(process, name, call.args, call.kwargs, caller)
        lease = self.lease_of(request.upload, caller.session)
        home = lease.held.relation
        if (home.schema, home.name) != (relation.schema, relation.name):
            raise InvalidArgument(f'the upload is for "{home.name}"', path="upload")
        if self.forward is not None and lease.calls:
            # A forwarded call can be overtaken by the next one, and CSV may be cut anywhere.
            self.uploads.drop(lease, "failed")
            raise InvalidArgument(
                "an upload has one call at a time where several services share the procedures",
                path="upload",
                hint="wait for each answer before the next call; nothing is kept of this upload",
            )
        return await self._run_one(lease, request)

    def lease_of(self, id: Any, session: int | None) -> Lease[Upload]:
        """
        Return the lease of a session's upload.

        Raises:
            InvalidArgument: There is no such upload.
            NotAuthorized: It belongs to another session.
            Conflict: The service is stopping, and has ended it.
        """
        lease = self.uploads.find(id, session) if isinstance(id, str) else None
        if lease is None:
            if isinstance(id, str) and self.uploads.reason(id) == "stopped":
                raise Conflict("the service that had the upload is stopping", reason="stopped")
            raise _no_such_upload()
        return lease

    async def _import_at_once(self, upload: Upload, call: ImportRequest) -> Any:
        try:
            return await self._database.within(call.timeout, _all(upload, call))
        except BaseException as error:
            upload.drop()
            if isinstance(error, Exception):  # a coroutine that is closed may not wait
                rows = upload.rows()
                await in_thread(self._database.reactor, "pg-rows", note_rows, error, rows)
            raise

    async def _run_one(self, lease: Lease[Upload], call: ImportRequest) -> Any:
        """Run one call of an upload, after the earlier ones."""
        upload = lease.held
        with self.uploads.use(lease):
            try:
                await upload.lock.acquire()
                try:
                    if upload.over:  # an earlier call has failed, or was the last
                        raise _no_such_upload()
                    if call.done:
                        answer = await self._database.within(call.timeout, _all(upload, call))
                        upload.over = True
                        self.uploads.end(lease, "committed")
                        return answer
                    await self._part(upload, call)
                    answer = {"upload": lease.id}
                    return WithReceipt(answer, None) if call.receipt else answer
                finally:
                    upload.lock.release()
            except BaseException:
                self.uploads.drop(lease, "failed")
                raise

    async def _part(self, upload: Upload, call: ImportRequest) -> None:
        """Write the rows of a call, and pause before the answer, so that other calls get their turn."""
        reactor = self._database.reactor
        began = reactor.seconds()
        await self._database.within(call.timeout, upload.add(call))
        took = max(0.0, reactor.seconds() - began)  # the clock of the system may be set back
        await deferLater(reactor, min(MAX_PAUSE, PAUSE_RATIO * took))


class Upload:
    """
    One import that is under way.

    Its transaction begins with the first rows, and ends with `finish` or `drop`.

    Args:
        database: The database to import into.
        snapshot: The snapshot of the first call.
        relation: The relation to import into.
        first: The first call, whose options hold for all calls.

    Attributes:
        lock: Lets one call run at a time, in their order.
        over: Whether the import was finished or dropped.
        receipt: Whether the answer has the id of the transaction.
        tx: That id, once all rows are written.
    """

    def __init__(
        self, database: Database, snapshot: Snapshot, relation: Relation, first: ImportRequest
    ) -> None:
        self.relation = relation
        self.lock = DeferredLock()
        self.over = False
        self.receipt = False
        self.tx: str | None = None
        self._database = database
        self._snapshot = snapshot
        self._first = first
        self._names = first.columns
        ruled = snapshot.model(relation).has_rules(creating=True)
        self._validator = (
            RowValidator(database, snapshot, relation, first.columns) if ruled else None
        )
        self._csv: bool | None = None
        self._begun = False
        self._rows: Sequence[Any] = ()
        self._head = ""
        self._feed: CopySource | None = None
        self._written: Deferred[int] | None = None

    async def add(self, call: ImportRequest) -> None:
        """
        Write the rows of one call; return when the COPY has received them.

        Raises:
            InvalidArgument: They are not rows, or CSV after rows, or rows after CSV.
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
            self._rows = await self._validator.of_rows(rows) if self._validator else rows
            await self._put(self._rows)
            return
        # Only at the very beginning is it a byte order mark.
        text = call.csv if self._begun else call.csv.removeprefix(MARK)
        self._begun = True
        await self._put(
            await self._validator.of_csv(text, call.done) if self._validator else self._headed(text)
        )

    def rows(self) -> Iterator[GivenRow]:
        """Yield the rows of the last call, to name the failing one in an error; none of CSV."""
        catalog, conflict = self._snapshot.catalog, self._first.conflict
        return imported_rows(catalog, self.relation, self._rows, self._names or (), conflict)

    async def finish(self) -> int:
        """Commit; return the number of rows written."""
        if self._csv and self._validator and not self._validator.ended:
            await self._put(await self._validator.of_csv("", last=True))
        if self._head:  # a header whose line does not end, and no rows
            await self._put(self._head)
        if self._feed is None or self._written is None:
            return 0
        self._feed.end()
        return await self._written

    def drop(self, reason: Reason = "failed") -> None:
        """Roll back."""
        self.over = True
        if self._feed is not None and self._written is not None:
            self._feed.fail(Canceled())
            # No call awaits it any more, and Twisted would log an unhandled error.
            self._written.addErrback(lambda _: None)
            self._written.cancel()

    def _headed(self, text: str) -> str:
        """Return the CSV to send, "" until its header is complete."""
        if self._feed is not None or self._names is not None:
            return text
        text, self._head = self._head + text, ""
        if end_of_records(text[:HEADER]):
            return text
        if len(text) > HEADER:
            raise InvalidArgument(
                f"the header of the CSV is longer than {HEADER} characters", path="csv"
            )
        self._head = text
        return ""

    async def _put(self, given: Any) -> None:
        if not given:
            return
        if self._feed is None:
            names = await self._columns(given)
            if self.over:  # dropped while the columns were read in a pool thread
                raise Canceled
            self._feed = self._start(names, isinstance(given, str))
        await self._feed.put(given)

    def _start(self, names: list[tuple[str, str]], csv: bool) -> CopySource:
        """Begin the transaction, now that the columns are known."""
        catalog, columns = self._snapshot.catalog, self.relation.columns
        for name, path in names:
            if name not in columns and is_nested(catalog, self.relation, name, row=False):
                refuse_related(catalog, self.relation, name, path, "an import")
        header = csv and self._names is None
        plan = plan_import(catalog, self.relation, names, csv, header, self._first.conflict)
        lines = self._validator.lines.of_row if self._csv and self._validator else None
        rows = RowText(self._snapshot.codec, plan.columns, catalog.type, plan.staged, lines)
        feed = CopySource(self._database.reactor, encode_csv if csv else rows.encode)
        feed.lines = lines
        self._written = Deferred.fromCoroutine(self._write(copy_in(plan), feed))
        self._written.addBoth(feed.over)
        return feed

    async def _write(self, statements: CopyIn, feed: CopySource) -> int:
        # In a batch, which takes no uploads, all rows are here, and COPY is a statement like any other.
        alone = self._database.level is None
        async with self._database.transaction():
            rows = int(await self._database.run(import_txn, statements, feed, alone))
            if self.receipt:
                self.tx = await self._database.run(transaction_txn)
            return rows

    async def _columns(self, given: Any) -> list[tuple[str, str]]:
        """Return the columns of the import, each with the path that names it."""
        if self._names is not None and not self._validator:  # a model may set further columns
            return [(name, f"columns.{at}") for at, name in enumerate(self._names)]
        if isinstance(given, str):
            return [(name, f"csv.{name}") for name in header_of(given)]
        if len(given) <= MANY:
            return _named(given)
        found: list[tuple[str, str]] = await self._database.run(
            compute_txn, _named, given, retry=True
        )
        return found


async def _all(upload: Upload, call: ImportRequest) -> Any:
    """Write the rows of the last call and commit; return the answer."""
    await upload.add(call)
    upload.receipt = call.receipt
    answer = {"rows": await upload.finish()}
    return WithReceipt(answer, upload.tx) if call.receipt else answer


def _no_such_upload() -> InvalidArgument:
    return InvalidArgument(
        "there is no such upload",
        path="upload",
        hint="it is done, has failed or was idle for too long; only one that is done is kept",
    )


def _named(rows: Sequence[Any]) -> list[tuple[str, str]]:
    """Return the columns of rows, each with the path of its first value."""
    found: dict[str, str] = {}
    for at, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
            raise not_a_row(row, None, f"rows.{at}")
        if row.keys() - found.keys():
            found.update({name: f"rows.{at}.{name}" for name in row if name not in found})
    if not found:
        raise InvalidArgument("a row needs at least one column", path="rows.0")
    return list(found.items())


class RowLines:
    """
    The lines of CSV at which its rows end, as errors of COPY have them.

    COPY itself receives the validated rows, each as one line. Only rows with line ends in a field take
    memory, 16 bytes each.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._first, self._before = array("Q"), array("Q")

    def add(self, line: int) -> None:
        """Add the line of the next row."""
        self._rows += 1
        if not self._before or self._before[-1] != line - self._rows:
            self._first.append(self._rows)
            self._before.append(line - self._rows)

    def of_row(self, row: int) -> int:
        """Return the line of a row, both counted from 1."""
        return row + self._before[bisect_right(self._first, row) - 1]


class RowValidator:
    """
    Validates the rows of an import by the model of their relation.

    Args:
        database: Runs the parser in a pool thread, and yields to the reactor.
        snapshot: The catalog, and the model.
        relation: The relation of the rows.
        columns: The columns of rows that are lists, and of CSV without a header.

    Attributes:
        lines: The lines of the rows of CSV.
        ended: Whether the last piece of CSV has come.
    """

    def __init__(
        self,
        database: Database,
        snapshot: Snapshot,
        relation: Relation,
        columns: tuple[str, ...] | None,
    ) -> None:
        self._database = database
        self._snapshot = snapshot
        self._relation = relation
        self._names = columns
        self._rest = ""
        self._line = 0
        self.lines = RowLines()
        self.ended = False

    async def of_rows(self, rows: Sequence[Any]) -> Rows:
        """
        Validate rows; return them as the model left them.

        Raises:
            InvalidRow: The model refuses a row; `line` is its number in the entire import.
            InvalidArgument: A value is not a row; `line` likewise.
        """
        found = []
        for at, row in enumerate(rows):
            self._line += 1
            found.append(await self._validated((row, {}), f"rows.{at}", self._line))
            await self._database.yield_to_reactor(at)
        return found

    async def of_csv(self, text: str, last: bool = False) -> Rows:
        """
        Validate the rows that a piece of CSV completes; return them as the model left them.

        In the transaction of an idempotency key all rows have to come in one piece: a query of the model
        would wait for the end of the COPY, which would wait for the rows.

        Args:
            text: The piece.
            last: Whether it is the last one.
        """
        text, self._rest, self.ended = self._rest + text, "", last
        take = partial(_taken, self._snapshot, self._relation, text, last, self._names, self._line)
        taken = (
            take() if len(text) < SMALL else await self._database.run(compute_txn, take, retry=True)
        )
        self._names, rows, self._rest, self._line = taken
        found = []
        for at, (line, fields) in enumerate(rows):
            found.append(await self._validated(fields, "csv", line))
            self.lines.add(line)
            await self._database.yield_to_reactor(at)
        return found

    async def _validated(self, fields: Fields, path: str, line: int) -> Mapping[str, Any]:
        given_row, texts = fields
        try:
            row = self._named(given_row, path)
            # A field of CSV is always a value, never syntax such as a default.
            given = {
                name: value if name in texts else new_value(value, f"{path}.{name}")
                for name, value in row.items()
            }
            given = {name: value for name, value in given.items() if value is not BY_DEFAULT}
            left = row.keys() - given.keys()
            if faults := catalog_faults(self._relation, self._snapshot.catalog, given, True, left):
                raise InvalidRow(self._relation.name, faults, path)
            made = await set_by_model(self._snapshot, self._relation, given, path)
        except (InvalidRow, InvalidArgument) as refusal:
            refusal.details["line"] = line
            raise
        # The text is more exact than the value that the model saw; what the model has set wins over both.
        return {**row, **texts, **{name: Literal(value) for name, value in made.items()}}

    def _named(self, row: Any, path: str) -> Mapping[str, Any]:
        if isinstance(row, list | tuple) and len(row) == len(self._names or ()):
            row = dict(zip(self._names or (), row, strict=True))
        if not isinstance(row, Mapping):
            raise not_a_row(row, None if self._names is None else len(self._names), path)
        for name in row:
            writable(self._relation, name, f"{path}.{name}")
        return row


def _taken(
    snapshot: Snapshot,
    relation: Relation,
    text: str,
    last: bool,
    names: tuple[str, ...] | None,
    line: int,
) -> tuple[tuple[str, ...] | None, list[tuple[int, Fields]], str, int]:
    """
    Parse a piece of CSV, and return its names, the rows with their lines, the rest, and the last line.

    If no names are given, the first record is the header. The line of a row is its last one, as in the
    errors of COPY.
    """
    records, rest = split_csv(text, last)
    rows = []
    for record in records:
        line += 1 + sum(field.count("\n") for field in record if field)
        if names is None:
            names = _header(relation, record)
            continue
        try:
            rows.append((line, _row(snapshot, relation, names, record)))
        except InvalidArgument as refusal:
            refusal.details["line"] = line
            raise
    return names, rows, rest, line


def _header(relation: Relation, record: Record) -> tuple[str, ...]:
    names = tuple(name or "" for name in record)
    for at, name in enumerate(names):
        writable(relation, name, f"csv.{name}")
        if name in names[:at]:
            raise InvalidArgument(f'"{name}" is named twice', path=f"csv.{name}", column=name)
    return names


def _row(snapshot: Snapshot, relation: Relation, names: Sequence[str], record: Record) -> Fields:
    if len(record) != len(names):
        raise InvalidArgument(
            f"a record of the CSV must have {len(names)} fields, not {len(record)}", path="csv"
        )
    row: dict[str, Any] = dict(zip(names, record, strict=True))
    texts = {}
    for name, text in row.items():
        type = snapshot.catalog.plain(snapshot.catalog.type(relation.columns[name].type))
        if text is not None and type.form == "json":
            # Only in JSON does a text differ from its wire value, whose numbers are less exact.
            row[name], texts[name] = _json(snapshot, type, name, text), Text(text)
    return row, texts


def _json(snapshot: Snapshot, type: Type, name: str, text: str) -> Any:
    try:
        return snapshot.codec.read(type, text)
    except (ValueError, RecursionError):
        raise InvalidArgument("not JSON", path=f"csv.{name}", column=name) from None


def end_of_records(text: str) -> int:
    """
    Return the offset at which the last complete record of CSV ends; 0 if no record is complete.

    Raises:
        InvalidArgument: The incomplete record behind it is longer than `MAX_RECORD`.
    """
    ending = "\n" if "\n" in text else "\r"
    place = len(text) - text.endswith("\r")  # its "\n" may be in the next piece
    quotes = text.count('"')
    least = len(text) - MAX_RECORD
    # Backwards: the last complete record ends close to the end of the piece.
    while place > least:
        behind, place = place, text.rfind(ending, 0, place)
        quotes -= text.count('"', place + 1, behind)
        if place < 0:
            break
        if not quotes % 2:  # an odd number of quotes before it: the line end is inside a field
            return place + 1
    if len(text) <= MAX_RECORD:
        return 0
    raise InvalidArgument(
        f"a record of the CSV is longer than {MAX_RECORD} characters, or a quote is not closed",
        path="csv",
    )


def split_csv(text: str, last: bool) -> tuple[list[Record], str]:
    """
    Split a piece of CSV, cut anywhere, into records.

    Args:
        text: What the previous piece has left, and the piece.
        last: Whether this is the last piece; its last record may lack the line end.

    Returns:
        The complete records, and the text that is left.
    """
    end = len(text) if last else end_of_records(text)
    return list(csv_records(text[:end])), text[end:]


def header_of(text: str) -> list[str]:
    """
    Return the names in the header of CSV whose first record is complete.

    Raises:
        InvalidArgument: The text is not CSV.
    """
    return [name or "" for name in next(csv_records(text))]


def csv_records(text: str) -> Iterator[Record]:
    """
    Yield the records of CSV.

    Raises:
        InvalidArgument: The text is not CSV.
    """
    place, record = 0, Record()
    while place < len(text):
        found = _FIELD.match(text, place)
        if found is None:
            raise InvalidArgument(
                "not CSV: a quote is not closed, or stands beside other characters", path="csv"
            )
        quoted, plain, end = found.groups()
        record.append(quoted.replace('""', '"') if quoted is not None else plain or None)
        place = found.end()
        if end != ",":
            yield record
            record = []
        # The text ends with a comma: the empty field after it has no text that would match.
        elif place == len(text):
            yield [*record, None]
