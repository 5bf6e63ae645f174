"""
Idempotency keys, stored in the transaction of the write whose result they stand for.

A call that may run code of the database's users inserts its key first and its result last, so the end of
its transaction commits or rolls back both. If the key is already there, the INSERT fails the message that it
travels in. Another call with the same key waits at the unique index until the first has committed, or runs
itself if the first was rolled back. This costs PostgreSQL no more than an advisory lock and a SELECT before
the write, and a function's code cannot interfere with it.

A write of one row that runs no such code is stored after it was written, with its key, by one INSERT: in the
message of COMMIT or, if its statement is prepared, in the message of the write itself
(`write_and_store_txn`). A second call with the key also writes first, and is rolled back by the unique index.

Of two calls with the same key, both lock the row before the key, or both the key before the row, whatever
their sessions have prepared: they cannot deadlock.

The statements run as the service's own role, whoever calls: no other role needs a privilege on the
table. All names in them are qualified and no type is named, because code that ran before them in the
session may have created objects of the same names in `pg_temp`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from json import dumps, loads
from typing import Any

import cbor2
import psycopg2
import psycopg2.errors
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from twisted.internet.defer import CancelledError

from service.db.codec import Codec
from service.db.connection import PgConnection, PgCursor
from service.db.literals import read_composite
from service.db.planned import PreparedStatement, plan_settled
from service.db.transaction import Actor, autocommit_txn, commit_txn, retryable, rollback_txn
from service.db.writes import SETTLE, NoRowWritten, transaction_txn
from service.errors import (
    Conflict,
    InvalidArgument,
    NotAuthorized,
    ServiceError,
    TooLarge,
    TooManyRows,
    Unavailable,
    causes,
)
from service.payload import WithReceipt, packed, unpacked
from service.request.arguments import IDEMPOTENCY_KEY
from service.sql.statement import Statement

SERVICE = Actor()

TABLE = "rowcast.idempotency_keys"
LOOK_UP = f"SELECT call, result FROM {TABLE} WHERE id OPERATOR(pg_catalog.=) {{}}"
_BYTES = "pg_catalog.bytea"
# PostgreSQL needs as long to plan these as to run them.
CLAIM = PreparedStatement(
    f"INSERT INTO {TABLE} (id, call) VALUES (%(id)s, %(call)s)", id=_BYTES, call=_BYTES
)
# As no UPDATE, which takes PostgreSQL twice as long, and whose index scan takes a predicate lock on a page of
# the index in a serializable transaction: it would conflict with every call that inserts a neighboring key.
STORE_RESULT = PreparedStatement(
    f"INSERT INTO {TABLE} (id, call) VALUES (%(id)s, '')"
    " ON CONFLICT (id) DO UPDATE SET result = %(result)s",
    id=_BYTES,
    result=_BYTES,
)
STORE_WITH_KEY = PreparedStatement(
    f"INSERT INTO {TABLE} (id, call, result) VALUES (%(id)s, %(call)s, %(result)s)",
    **dict.fromkeys(("id", "call", "result"), _BYTES),
)
CLAIM_IF_FREE = f"{CLAIM.text} ON CONFLICT (id) DO NOTHING RETURNING true"
# A row that is written and stored in one message. The write runs as the caller's role, which has no
# privilege on the table, so it hands the row on in a setting of the transaction, as the text that the
# output functions of its types make. Without a row the setting is empty, and nothing is stored.
ROW_SETTING = "rowcast_key.row"
_ROW_TEXT = f"pg_catalog.current_setting('{ROW_SETTING}')"
STORE_ROW = PreparedStatement(
    f"INSERT INTO {TABLE} (id, call, result) SELECT %(id)s, %(call)s,"
    f" %(head)s OPERATOR(pg_catalog.||) pg_catalog.convert_to({_ROW_TEXT}, 'UTF8')"
    f" WHERE {_ROW_TEXT} OPERATOR(pg_catalog.<>) '' RETURNING {_ROW_TEXT}",
    **dict.fromkeys(("id", "call", "head"), _BYTES),
)
ROW_PREFIX = b"\xff"
"""First byte of a stored row; the CBOR of any other result begins with another byte."""
MISSING = psycopg2.errors.UndefinedTable | psycopg2.errors.InvalidSchemaName
# SKIP LOCKED: several services prune, and none should wait for another's locks, or for a call's.
PRUNE = """
DELETE FROM rowcast.idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM rowcast.idempotency_keys
    WHERE kept_at < pg_catalog.now() - pg_catalog.make_interval(secs => %s)
    ORDER BY kept_at LIMIT %s FOR UPDATE SKIP LOCKED))
"""


@dataclass(frozen=True, slots=True)
class KeyedCall:
    """
    A call with an idempotency key.

    Args:
        id: Identifies the key among those of all callers.
        role: Role as which the call runs: another role must not get its result.
        procedure: Schema, relation and verb; or the name of a procedure.
        args: Positional arguments.
        kwargs: Keyword arguments, without the key.
        max_bytes: Maximum size of the result in bytes.
        codec: Reads a stored row; None if the result of such a call is never stored as a row.
    """

    id: bytes
    role: str
    procedure: Sequence[str]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    max_bytes: int
    codec: Codec | None = None

    def digest(self) -> bytes:
        """
        Return the hash that tells the call from others; in a pool thread, as arguments may be large.

        Raises:
            InvalidArgument: An argument holds a value that CBOR cannot encode.
        """
        call = [self.role, self.procedure, self.args, dict(self.kwargs)]
        try:
            # Canonical: a retry may have the items of its dicts in another order.
            return sha256(cbor2.dumps(call, canonical=True)).digest()
        except (cbor2.CBOREncodeError, ValueError, TypeError, RecursionError) as error:
            raise InvalidArgument(
                "these arguments cannot be told from others", path=IDEMPOTENCY_KEY
            ) from error


@dataclass(frozen=True, slots=True)
class StoredResult:
    """
    What is stored under a key.

    Args:
        result: The result of the first call.
    """

    result: Any


class KeyInUse(Conflict):
    """Another call with the key has not ended; because of its `pgcode` the transaction is retried."""

    pgcode = "40001"

    def __init__(self) -> None:
        super().__init__(
            "another call with this idempotency key is still under way", retry=True, clock="lock"
        )


class MaybeStored(Exception):
    """
    The call failed, and a result may be stored under its key already.

    Args:
        error: The call's error if there is none.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def claim_txn(connection: PgConnection, keyed: KeyedCall) -> None:
    """
    Claim a key for a transaction whose BEGIN has not been sent yet.

    The claim travels with the first statement, behind BEGIN, and fails it if the key is there already.
    """
    connection.act(SERVICE)
    STORE_RESULT.again(connection)
    CLAIM.again(connection)
    sql = _sql(connection, CLAIM, id=keyed.id, call=keyed.digest())
    connection.opening = f"{connection.opening or ''}{sql}"


def lookup_txn(connection: PgConnection, keyed: KeyedCall) -> StoredResult | None:
    """
    Return what is stored under a key, as the service's own role.

    Raises:
        InvalidArgument: The key was used for another call.
    """
    with connection.cursor() as cursor:
        cursor.execute(LOOK_UP.format(_bytes(keyed.id)), clean=True)
        found = cursor.fetchone()
    if found is None:
        return None
    if bytes(found[0]) != keyed.digest():
        raise InvalidArgument(
            "this idempotency key was used for another call",
            path=IDEMPOTENCY_KEY,
            hint="a retry has the same procedure, arguments and options; another call, a new key",
        )
    return StoredResult(_decode_result(connection, keyed, bytes(found[1])))


def store_result_txn(
    connection: PgConnection, keyed: KeyedCall, result: Any, claimed: bool = True
) -> None:
    """
    Store a result under a key, in the message of the transaction's COMMIT.

    Deferred triggers fire before the result is stored: at COMMIT they would run as the service's role.

    Args:
        connection: The transaction's connection.
        keyed: The call.
        result: Its result.
        claimed: Whether the transaction has claimed the key.

    Raises:
        TooLarge: The result is too large to be sent; the transaction must not commit.
    """
    value = packed(result, keyed.max_bytes)
    if connection.get_transaction_status() == TRANSACTION_STATUS_IDLE:
        connection.command("")  # sends BEGIN and the claim, as the function sent no statement
    connection.act(SERVICE)
    # COMMIT drops statements noted in `opening`, so the change of identity goes into `ending`.
    identity, connection.opening = connection.opening, None
    # The prepared statement is forgotten if statements have run since that may have deallocated it.
    if claimed:
        sql = _sql(connection, STORE_RESULT, id=keyed.id, result=value)
    else:
        sql = _sql(connection, STORE_WITH_KEY, id=keyed.id, call=keyed.digest(), result=value)
    connection.ending = f"{f'{SETTLE}{identity}' if identity else ''}{sql}"


def run_and_store_txn(
    connection: PgConnection,
    keyed: KeyedCall,
    function: Callable[..., Any],
    args: Sequence[Any],
    shape: Callable[..., Any],
) -> Any:
    """Run a function in a transaction that has claimed a key; store and return its shaped result."""
    result = shape(function(connection, *args))
    store_result_txn(connection, keyed, result)
    return result


def claim_or_lookup_txn(connection: PgConnection, keyed: KeyedCall) -> StoredResult | None:
    """
    Claim a key in the open transaction, as the service's own role, once no other call is claiming it.

    Returns:
        What is stored under the key, if it was there already; it is not claimed then.

    Raises:
        InvalidArgument: The key was used for another call; or the database has no table of keys.
        KeyInUse: The first call with it has not ended within the lock timeout.
    """
    connection.act(SERVICE)
    with connection.cursor() as cursor:
        try:
            # ON CONFLICT, not an error, which would abort the transaction.
            parts = {"id": _bytes(keyed.id), "call": _bytes(keyed.digest())}
            cursor.execute(CLAIM_IF_FREE % parts, clean=True)
        except psycopg2.Error as error:
            refused = _claim_refusal(error)
            if refused is None:
                raise
            raise refused from error
        if cursor.fetchone() is not None:
            return None
    stored = lookup_txn(connection, keyed)
    if stored is None:  # it was pruned meanwhile
        raise KeyInUse
    return stored


def claim_at_end_txn(
    connection: PgConnection, keyed: KeyedCall, receipt: bool
) -> StoredResult | None:
    """
    Claim a key at the end of the open transaction, and store a receipt or nothing under it.

    Returns and raises as `claim_or_lookup_txn`.
    """
    # Deferred triggers fire as the role that ran last, before the claim is made as the service.
    connection.opening = f"{connection.opening or ''}{SETTLE}"
    stored = claim_or_lookup_txn(connection, keyed)
    if stored is None:
        result = WithReceipt(None, transaction_txn(connection)) if receipt else None
        store_result_txn(connection, keyed, result)
    return stored


def keyed_txn(
    connection: PgConnection,
    actor: Actor,
    keyed: KeyedCall,
    function: Callable[..., Any],
    args: Sequence[Any],
    shape: Callable[..., Any],
) -> Any:
    """
    Run a function in a transaction of its own under a key; return its result, or the stored one.

    The claim travels in front of the first statement, and the result in front of COMMIT, so a key costs
    no round trip but that of COMMIT. The table is queried only if the claim finds the key there.

    Args:
        connection: The connection.
        actor: The role and claims under which the function runs.
        keyed: The call.
        function: Called with the connection and `args`.
        args: Further arguments of the function.
        shape: Makes the answer from the function's result.
    """
    connection.begin("BEGIN")
    try:
        claim_txn(connection, keyed)
        connection.act(actor)
        result = run_and_store_txn(connection, keyed, function, args, shape)
    except psycopg2.Error as error:
        refused = _claim_refusal(error)
        if refused is not None:
            raise refused from error
        if not _is_key_taken(error):
            raise
        stored = _lookup_after_rollback_txn(connection, keyed)
        if stored is None:  # it was pruned meanwhile
            raise KeyInUse from error
        return stored.result
    commit_txn(connection)
    return result


def keyed_row_txn(
    connection: PgConnection,
    actor: Actor,
    keyed: KeyedCall,
    function: Callable[..., Any],
    args: Sequence[Any],
    shape: Callable[..., Any],
    row: list[Sequence[Any]],
) -> Any:
    """
    Run a function that writes one row at most and runs no code of the database's users, as `keyed_txn`.

    The key is inserted after the write. So if the write fails, it may be that of a second call.

    Args:
        connection: The connection.
        actor: The role and claims under which the function runs.
        keyed: The call.
        function: Called with the connection and `args`.
        args: Further arguments of the function.
        shape: Makes the answer from the function's result.
        row: Arguments of `write_and_store_txn`, which is tried once instead of all this; empty if it
            cannot be.
    """
    try:
        if row:
            written = _try_row_txn(connection, actor, keyed, row.pop())
            if written is not None:
                return written
        connection.begin("BEGIN")
        STORE_WITH_KEY.again(connection)
        connection.act(actor)
        result = shape(function(connection, *args))
        store_result_txn(connection, keyed, result, claimed=False)
        commit_txn(connection)
    except Exception as error:
        refused = _claim_refusal(error) if isinstance(error, psycopg2.Error) else None
        if refused is not None:
            raise refused from error
        if not _may_be_second_call(error):
            raise
        stored = _lookup_after_rollback_txn(connection, keyed)
        if stored is None:
            raise
        return stored.result
    return result


def _lookup_after_rollback_txn(connection: PgConnection, keyed: KeyedCall) -> StoredResult | None:
    """Roll back, and return what is stored under a key once no other call is claiming it."""
    rollback_txn(connection)
    connection.begin("BEGIN")
    stored = claim_or_lookup_txn(connection, keyed)
    rollback_txn(connection)
    return stored


def _may_be_second_call(error: Exception) -> bool:
    """Return whether a write failed in a way in which a second call with its key may fail."""
    if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        # The call that holds the lock on the row may be the first one.
        return isinstance(error, psycopg2.errors.LockNotAvailable)
    known = psycopg2.Error | NoRowWritten | TooLarge | TooManyRows
    return isinstance(error, known) and not retryable(error)


def _try_row_txn(
    connection: PgConnection, actor: Actor, keyed: KeyedCall, args: Sequence[Any]
) -> dict[str, Any] | None:
    """Run `write_and_store_txn`; return None if nothing was written and the function is to run instead."""
    try:
        found: dict[str, Any] | None = autocommit_txn(
            connection, write_and_store_txn, actor, keyed, *args
        )
    except psycopg2.Error as error:
        if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
            raise
        if _is_key_taken(error):
            raise
        return None  # the row is large, or the plan is outdated, or the error has no position
    return found


def write_and_store_txn(
    connection: PgConnection,
    actor: Actor,
    keyed: KeyedCall,
    codec: Codec,
    make: Callable[[], Statement],
    values: Sequence[Any],
    *_: Any,
) -> dict[str, Any] | None:
    """
    Write a row and store it under a key in one message, by two prepared statements.

    Args:
        connection: The connection, outside a transaction.
        actor: The role and claims under which the write runs.
        keyed: The call.
        codec: Encodes the values and decodes the row.
        make: Returns the statement, which has `types`.
        values: Values of the call.

    Returns:
        The row; None if there is none, and nothing was written or stored.

    Raises:
        psycopg2.Error: The key is there already, the row cannot be written, or its columns are not of
            the types that the catalog has; nothing was committed.
    """
    statement, store = make(), STORE_ROW.again(connection)
    if store is None or not (statement.pure and codec.current):
        return None
    cursor, identity = connection.wire(codec), actor.identity
    connection.assume(identity.local)
    write = plan_settled(cursor, codec, _row_into_setting(statement.text, statement.types))
    if not write:
        return None
    parameters = codec.parameters(statement.bounds, values)
    given = f"({', '.join(['%s'] * len(parameters))})" if parameters else ""
    # Deferred constraints are checked as the caller's role, as in `store_result_txn`.
    undo = f"{SETTLE}{connection.path_statement}{identity.undo}" if identity.local else ""
    head = _row_head(statement.columns, statement.types)
    stored = ", ".join(map(_bytes, (keyed.id, keyed.digest(), head)))
    message = f"EXECUTE {write} {given};{undo}EXECUTE {store} ({stored})"
    try:
        cursor.execute(message, parameters, clean=True, runs=statement.text)
    finally:
        connection.counted |= statement.writes  # as `execute` in `db/statements.py`
    found = cursor.fetchone()
    return _row(cursor, statement.columns, statement.types, found[0]) if found else None


def keyed_outcome(error: Exception) -> Exception:
    """Return the error of a call under a key, as `MaybeStored` if a result may be stored already."""
    for each in causes(error):
        if not isinstance(each, psycopg2.Error):
            continue
        if _is_key_taken(each):
            return MaybeStored(KeyInUse())
        if isinstance(each, psycopg2.errors.InFailedSqlTransaction):
            # The claim may have failed, and a model's code may have caught that error.
            return MaybeStored(error)
        return _claim_refusal(each) or error
    if retryable(error) or isinstance(error, CancelledError | Unavailable):
        return error
    # A validation that fails now may have passed when the call was made first.
    return MaybeStored(error)


def prune_txn(connection: PgConnection, seconds: float, most: int) -> int:
    """Delete at most `most` keys that are older than `seconds`, the oldest first; return how many."""
    (there,) = connection.ask(f"SELECT pg_catalog.to_regclass('{TABLE}') IS NOT NULL")
    if not there:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(PRUNE, (seconds, most), clean=True)
        return int(cursor.rowcount)


@lru_cache(256)
def _row_into_setting(write: str, types: Sequence[int]) -> str:
    """
    Return the statement that writes a row and hands it on, or fails if its columns have other types.

    A migration may have changed the types since the catalog was read. The row would be decoded wrongly, or
    not at all, and in the second case no retry would get an answer either.
    """
    columns = [f"c{at}" for at in range(len(types))]
    found = f"ARRAY[{', '.join(f'pg_catalog.pg_typeof({column})' for column in columns)}]"
    expected = f"CAST('{{{','.join(map(str, types))}}}' AS pg_catalog.regtype[])"
    return (
        f"WITH written ({', '.join(columns)}) AS ({write}) SELECT pg_catalog.set_config('{ROW_SETTING}',"
        f" COALESCE((SELECT CASE WHEN {found} OPERATOR(pg_catalog.=) {expected}"
        " THEN CAST(ROW(written.*) AS text)"
        # No array's text is a boolean.
        f" ELSE CAST(CAST(CAST({found} AS text) AS boolean) AS text) END FROM written), ''), true)"
    )


@lru_cache(256)
def _row_head(columns: Sequence[str], types: Sequence[int]) -> bytes:
    """Return what precedes the text of a stored row: one line with the columns and their types."""
    return ROW_PREFIX + dumps([columns, types]).encode() + b"\n"


def _row(
    cursor: PgCursor, columns: Sequence[str], types: Sequence[int], text: str
) -> dict[str, Any]:
    """Decode the text of a row, by the typecasters that decode a result's columns."""
    # Not strict: a guard adds a column behind those of the row.
    values = zip(columns, types, read_composite(text), strict=False)
    return {name: None if each is None else cursor.cast(type, each) for name, type, each in values}


def _decode_result(connection: PgConnection, keyed: KeyedCall, result: bytes) -> Any:
    """Decode a stored result."""
    if not result.startswith(ROW_PREFIX):
        return unpacked(result)
    assert keyed.codec is not None
    head, _, text = result.removeprefix(ROW_PREFIX).partition(b"\n")
    columns, types = loads(head)
    return _row(connection.wire(keyed.codec), columns, types, text.decode())


def _is_key_taken(error: BaseException) -> bool:
    """Return whether an error means that the key to claim is there already."""
    if not isinstance(error, psycopg2.errors.UniqueViolation):
        return False
    diag = error.diag
    # An error with a context comes from a function that wrote to the table itself.
    return f"{diag.schema_name}.{diag.table_name}" == TABLE and diag.context is None


def _is_of_claim(error: psycopg2.Error) -> bool:
    """Return whether the claim raised an error, rather than the statement that it travelled with."""
    diag = error.diag
    if isinstance(error, psycopg2.errors.LockNotAvailable):
        # The context of a lock timeout names the index; the words around it may be translated.
        return "idempotency_keys_pkey" in (diag.context or "")
    known = isinstance(error, MISSING | psycopg2.errors.InsufficientPrivilege)
    return known and diag.context is None and "rowcast" in (diag.message_primary or "")


def _claim_refusal(error: psycopg2.Error) -> ServiceError | None:
    """Return why the key cannot be claimed, if the claim failed for another reason than a taken key."""
    if not _is_of_claim(error):
        return None
    if isinstance(error, MISSING):
        return InvalidArgument(
            "this database keeps no idempotency keys",
            path=IDEMPOTENCY_KEY,
            hint="alembic upgrade head makes the table, python -m service init where the"
            " migrations are not ours",
        )
    if isinstance(error, psycopg2.errors.InsufficientPrivilege):
        return NotAuthorized(
            "the service may not keep idempotency keys",
            hint="GRANT USAGE ON SCHEMA rowcast, and SELECT, INSERT, UPDATE, DELETE ON"
            f" {TABLE}, to the service's own role",
        )
    return KeyInUse()


def _sql(connection: PgConnection, statement: PreparedStatement, **values: bytes) -> str:
    """Return the SQL of a statement, with its values in the order of its types; prepared, an EXECUTE."""
    literals = {name: _bytes(value) for name, value in values.items()}
    name = connection.planned.get(statement)
    if name:
        return f"EXECUTE {name} ({', '.join(literals.values())});"
    return f"{statement.text % literals};"


def _bytes(value: bytes) -> str:
    """Return a `bytea` literal that means the same whatever the settings of the session are."""
    return f"E'\\\\x{value.hex()}'"
