"""
Idempotency keys in the database: kept in the transaction of the write whose result they stand for.

A call inserts its key before all else and the result last, so that whatever ends its transaction
ends both; a key that is there already fails what comes with it. Another call with the key waits at
the unique index until the first has committed, or begins itself if that has rolled back. That costs
PostgreSQL no more than an advisory lock and a look before the write, and no code of a function can
hold it up.

The statements are the service's own, whoever calls: no other role needs a right on the table. All
names in them are qualified, and no type is named, since what ran in between may have left objects
of those names in `pg_temp`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import cbor2
import psycopg2
import psycopg2.errors

from service.db.connection import PgConnection
from service.db.transaction import Actor, commit_txn, rollback_txn
from service.db.writes import SETTLE, transaction_txn
from service.errors import Conflict, InvalidArgument, NotAuthorized
from service.payload import Receipted, packed, unpacked
from service.request.arguments import IDEMPOTENCY_KEY

SERVICE = Actor()

TABLE = "rowcast.idempotency_keys"
CLAIM = f"INSERT INTO {TABLE} (id, call) VALUES ({{}}, {{}})"
CLAIM_NEW = f"{CLAIM} ON CONFLICT (id) DO NOTHING RETURNING ctid"
LOOK = f"SELECT call, result FROM {TABLE} WHERE id OPERATOR(pg_catalog.=) {{}}"
# By its place, where that is known: in a serializable transaction a look into the index would be one
# at its neighbors, and so in conflict with whoever inserts a key meanwhile.
KEEP = f"UPDATE {TABLE} SET result = {{}} WHERE {{}};"
MISSING = psycopg2.errors.UndefinedTable | psycopg2.errors.InvalidSchemaName
# SKIP LOCKED: several services prune, and none should wait for another's rows, or for a call.
PRUNE = """
DELETE FROM rowcast.idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM rowcast.idempotency_keys
    WHERE kept_at < pg_catalog.now() - pg_catalog.make_interval(secs => %s)
    ORDER BY kept_at LIMIT %s FOR UPDATE SKIP LOCKED))
"""


@dataclass(frozen=True, slots=True)
class Keyed:
    """
    A call with an idempotency key.

    Args:
        id: Of the key, among those of all callers.
        role: As whom it runs: what one role was answered is not for another.
        procedure: What it calls: schema, name and verb, or a name.
        args: By position.
        kwargs: By name, less the key.
        max_bytes: What its result may weigh.
    """

    id: bytes
    role: str
    procedure: Sequence[str]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    max_bytes: int

    def digest(self) -> bytes:
        """
        Return what tells the call from others; for a pool thread, as the arguments may be large.

        Raises:
            InvalidArgument: The arguments hold what no JSON or CBOR text does.
        """
        call = [self.role, self.procedure, self.args, dict(self.kwargs)]
        try:
            # Canonical: the same call may have its dicts in another order.
            return sha256(cbor2.dumps(call, canonical=True)).digest()
        except (cbor2.CBOREncodeError, ValueError, TypeError, RecursionError) as error:
            raise InvalidArgument(
                "these arguments cannot be told from others", path=IDEMPOTENCY_KEY
            ) from error


@dataclass(frozen=True, slots=True)
class Kept:
    """
    What was kept under a key.

    Args:
        result: Of the first call.
    """

    result: Any


class KeyInUse(Conflict):
    """Another call with the key has not ended; PostgreSQL's code has it tried again."""

    pgcode = "40001"

    def __init__(self) -> None:
        super().__init__(
            "another call with this idempotency key is still under way", retry=True, clock="lock"
        )


def claim_txn(connection: PgConnection, keyed: Keyed) -> Kept | str:
    """
    Claim a key for the open transaction; return its place, or what was kept under it.

    Raises:
        InvalidArgument: Another call was made under the key; or the database keeps none.
        KeyInUse: The first call takes longer than a lock is waited for.
    """
    call = keyed.digest()
    connection.act(SERVICE)
    with connection.cursor() as cursor:
        try:
            cursor.execute(CLAIM_NEW.format(_bytes(keyed.id), _bytes(call)), clean=True)
        except psycopg2.Error as error:
            _refuse(error)
            raise
        claimed = cursor.fetchone()
        if claimed is not None:
            return str(claimed[0])
        cursor.execute(LOOK.format(_bytes(keyed.id)), clean=True)
        found = cursor.fetchone()
    if found is None:  # pruned since
        raise KeyInUse
    if bytes(found[0]) != call:
        raise InvalidArgument(
            "this idempotency key was used for another call",
            path=IDEMPOTENCY_KEY,
            hint="a retry has the same procedure, arguments and options; another call, a new key",
        )
    return Kept(unpacked(bytes(found[1])))


def keep_txn(connection: PgConnection, keyed: Keyed, place: str | None, result: Any) -> None:
    """
    Store a result under a key that the open transaction has claimed, in the message of its COMMIT.

    Deferred triggers fire before that: at COMMIT they would fire with the service's rights.

    Raises:
        TooLarge: It cannot be sent; the transaction must not commit.
    """
    value = _bytes(packed(result, keyed.max_bytes))
    connection.act(SERVICE)
    # COMMIT drops what was noted for a next statement, so it is put into the ending instead.
    words, connection.opening = connection.opening, None
    where = f"id OPERATOR(pg_catalog.=) {_bytes(keyed.id)}"
    if place is not None:
        where = f"ctid OPERATOR(pg_catalog.=) '{place}'"
    connection.ending = f"{SETTLE}{words}" if words else ""
    connection.ending += KEEP.format(value, where)


def ending_txn(connection: PgConnection, keyed: Keyed, receipt: bool) -> Kept | None:
    """
    Keep a key and at most a receipt, last in the open transaction; return what was kept before.

    Raises:
        InvalidArgument: It was kept for another call.
    """
    connection.command(SETTLE)  # as whoever ran last, before the claim is made as the service
    claimed = claim_txn(connection, keyed)
    if isinstance(claimed, Kept):
        return claimed
    result = Receipted(None, transaction_txn(connection)) if receipt else None
    keep_txn(connection, keyed, claimed, result)
    return None


def keyed_txn(
    connection: PgConnection,
    actor: Actor,
    keyed: Keyed,
    function: Callable[..., Any],
    args: Sequence[Any],
    shape: Callable[..., Any],
) -> Any:
    """
    Run a function in a transaction of its own under a key; return its answer, or that kept.

    The claim travels in front of the first statement, and the result in front of COMMIT: a key costs
    no round trip but that of COMMIT. Only where it is there already is it looked for.
    """
    connection.begin("BEGIN")
    connection.act(SERVICE)
    claim = CLAIM.format(_bytes(keyed.id), _bytes(keyed.digest()))
    connection.opening = f"{connection.opening}{claim};"
    connection.act(actor)
    try:
        result = shape(function(connection, *args))
    except psycopg2.Error as error:
        if connection.closed or not _is_ours(error):
            raise
        if not isinstance(error, psycopg2.errors.UniqueViolation):
            _refuse(error)
            raise
        rollback_txn(connection)
        connection.begin("BEGIN")
        claimed = claim_txn(connection, keyed)
        if not isinstance(claimed, Kept):  # it is not there any more
            raise KeyInUse from error
        return claimed.result
    keep_txn(connection, keyed, None, result)
    commit_txn(connection)
    return result


def prune_txn(connection: PgConnection, seconds: float, most: int) -> int:
    """Drop the oldest keys, if they were kept for so long; return how many."""
    (there,) = connection.ask(f"SELECT pg_catalog.to_regclass('{TABLE}') IS NOT NULL")
    if not there:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(PRUNE, (seconds, most), clean=True)
        return int(cursor.rowcount)


def _is_ours(error: psycopg2.Error) -> bool:
    """Return whether an error is one of the claim, rather than of what came with it."""
    diag = error.diag
    if isinstance(error, psycopg2.errors.UniqueViolation):
        # With a context it comes out of somebody's function, which wrote there itself.
        return f"{diag.schema_name}.{diag.table_name}" == TABLE and diag.context is None
    if isinstance(error, psycopg2.errors.LockNotAvailable):
        # The context of a lock that was waited for names the index; its words are translated.
        return "idempotency_keys_pkey" in (diag.context or "")
    known = isinstance(error, MISSING | psycopg2.errors.InsufficientPrivilege)
    return known and diag.context is None and "rowcast" in (diag.message_primary or "")


def _refuse(error: psycopg2.Error) -> None:
    """
    Return if it is not known why a key cannot be claimed.

    Raises:
        InvalidArgument: The database keeps none.
        NotAuthorized: The service may not keep any.
        KeyInUse: The first call takes longer than a lock is waited for.
    """
    if isinstance(error, MISSING):
        raise InvalidArgument(
            "this database keeps no idempotency keys",
            path=IDEMPOTENCY_KEY,
            hint="alembic upgrade head makes the table, python -m service init where the"
            " migrations are not ours",
        ) from error
    if isinstance(error, psycopg2.errors.InsufficientPrivilege):
        raise NotAuthorized(
            "the service may not keep idempotency keys",
            hint="GRANT USAGE ON SCHEMA rowcast, and SELECT, INSERT, UPDATE, DELETE ON"
            f" {TABLE}, to the service's own role",
        ) from error
    if isinstance(error, psycopg2.errors.LockNotAvailable):
        raise KeyInUse from error


def _bytes(value: bytes) -> str:
    """Return a literal that means the same whatever the settings of the session are by now."""
    return f"pg_catalog.decode('{value.hex()}', 'hex')"
