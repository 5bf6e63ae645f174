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
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from twisted.internet.defer import CancelledError

from service.db.connection import PgConnection
from service.db.planned import Planned
from service.db.transaction import Actor, commit_txn, retryable, rollback_txn
from service.db.writes import SETTLE, transaction_txn
from service.errors import (
    Conflict,
    InvalidArgument,
    NotAuthorized,
    ServiceError,
    Unavailable,
    causes,
)
from service.payload import Receipted, packed, unpacked
from service.request.arguments import IDEMPOTENCY_KEY

SERVICE = Actor()

TABLE = "rowcast.idempotency_keys"
CLAIM = f"INSERT INTO {TABLE} (id, call) VALUES ({{}}, {{}})"
CLAIM_PLACED = f"{CLAIM} RETURNING ctid"
CLAIM_NEW = f"{CLAIM} ON CONFLICT (id) DO NOTHING RETURNING ctid"
LOOK = f"SELECT call, result FROM {TABLE} WHERE id OPERATOR(pg_catalog.=) {{}}"
# By its place, where that is known: in a serializable transaction a look into the index would be one
# at its neighbors, and so in conflict with whoever inserts a key meanwhile.
KEEP = f"UPDATE {TABLE} SET result = {{}} WHERE {{}}"
BY_ID, BY_PLACE = "id OPERATOR(pg_catalog.=) {}", "ctid OPERATOR(pg_catalog.=) '{}'"
_BYTES = "pg_catalog.bytea"
# To plan the two takes PostgreSQL as long as to run them.
CLAIMING = Planned(CLAIM.format("%(id)s", "%(call)s"), id=_BYTES, call=_BYTES)
KEEPING = Planned(KEEP.format("%(result)s", BY_ID.format("%(id)s")), result=_BYTES, id=_BYTES)
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


@dataclass(slots=True)
class KeyClaim:
    """
    A key that a transaction claims.

    Args:
        keyed: The call.
        place: Where the row of it is, if that is known.
    """

    keyed: Keyed
    place: str | None = None


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


class PerhapsKept(Exception):
    """
    The end of work under a key that may be there already.

    Args:
        error: What it is, if not.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def claim_txn(connection: PgConnection, claim: KeyClaim, placed: bool = False) -> None:
    """
    Claim a key for a transaction whose BEGIN is noted, behind which the claim is sent.

    It goes along with the first statement, which fails if the key is there already.

    Args:
        connection: Of the transaction.
        claim: The key.
        placed: Whether it is sent at once, so that its place is known.
    """
    connection.act(SERVICE)
    keyed = claim.keyed
    parts = _bytes(keyed.id), _bytes(keyed.digest())
    if placed:
        (claim.place,) = connection.ask(CLAIM_PLACED.format(*parts))
        return
    name, _ = CLAIMING.again(connection), KEEPING.again(connection)
    words = CLAIM.format(*parts) if name is None else f"EXECUTE {name} ({', '.join(parts)})"
    connection.opening = f"{connection.opening or ''}{words};"


def look_txn(connection: PgConnection, keyed: Keyed) -> Kept | None:
    """
    Return what was kept under a key, as the service itself.

    Raises:
        InvalidArgument: Another call was made under it.
    """
    with connection.cursor() as cursor:
        cursor.execute(LOOK.format(_bytes(keyed.id)), clean=True)
        found = cursor.fetchone()
    if found is None:
        return None
    if bytes(found[0]) != keyed.digest():
        raise InvalidArgument(
            "this idempotency key was used for another call",
            path=IDEMPOTENCY_KEY,
            hint="a retry has the same procedure, arguments and options; another call, a new key",
        )
    return Kept(unpacked(bytes(found[1])))


def keep_txn(connection: PgConnection, claim: KeyClaim, result: Any) -> None:
    """
    Store a result under a key that the transaction has claimed, in the message of its COMMIT.

    Deferred triggers fire before that: at COMMIT they would fire with the service's rights.

    Raises:
        TooLarge: It cannot be sent; the transaction must not commit.
    """
    value = _bytes(packed(result, claim.keyed.max_bytes))
    if connection.get_transaction_status() == TRANSACTION_STATUS_IDLE:
        connection.command("")  # nothing was sent yet, the claim neither
    connection.act(SERVICE)
    # COMMIT drops what was noted for a next statement, so it is put into the ending instead.
    words, connection.opening = connection.opening, None
    connection.ending = f"{SETTLE}{words}" if words else ""
    id, name = _bytes(claim.keyed.id), connection.planned.get(KEEPING)
    if claim.place is not None:
        connection.ending += f"{KEEP.format(value, BY_PLACE.format(claim.place))};"
    elif name:  # there is none any more where code of others has run since
        connection.ending += f"EXECUTE {name} ({value}, {id});"
    else:
        connection.ending += f"{KEEP.format(value, BY_ID.format(id))};"


def kept_txn(
    connection: PgConnection,
    claim: KeyClaim,
    function: Callable[..., Any],
    args: Sequence[Any],
    shape: Callable[..., Any],
) -> Any:
    """Run a function in a transaction that has claimed a key; return its answer, which is kept."""
    result = shape(function(connection, *args))
    keep_txn(connection, claim, result)
    return result


def ending_txn(connection: PgConnection, keyed: Keyed, receipt: bool) -> Kept | None:
    """
    Keep a key and at most a receipt, last in the open transaction; return what was kept before.

    Raises:
        InvalidArgument: It was kept for another call; or the database keeps none.
        KeyInUse: The first call takes longer than a lock is waited for.
    """
    # As whoever ran last, before the claim is made as the service.
    connection.opening = f"{connection.opening or ''}{SETTLE}"
    connection.act(SERVICE)
    with connection.cursor() as cursor:
        try:
            # No error where it is there: the transaction may have savepoints, to go on from.
            parts = _bytes(keyed.id), _bytes(keyed.digest())
            cursor.execute(CLAIM_NEW.format(*parts), clean=True)
        except psycopg2.Error as error:
            refused = _claim_refusal(error)
            if refused is None:
                raise
            raise refused from error
        claimed = cursor.fetchone()
    if claimed is None:
        kept = look_txn(connection, keyed)
        if kept is None:  # pruned since
            raise KeyInUse
        return kept
    result = Receipted(None, transaction_txn(connection)) if receipt else None
    keep_txn(connection, KeyClaim(keyed, str(claimed[0])), result)
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
    claim = KeyClaim(keyed)
    try:
        claim_txn(connection, claim)
        connection.act(actor)
        result = kept_txn(connection, claim, function, args, shape)
    except psycopg2.Error as error:
        refused = _claim_refusal(error)
        if refused is not None:
            raise refused from error
        if not _is_taken(error):
            raise
        rollback_txn(connection)
        connection.begin("BEGIN")
        kept = look_txn(connection, keyed)
        if kept is None:  # pruned since
            raise KeyInUse from error
        return kept.result
    commit_txn(connection)
    return result


def keyed_outcome(error: Exception) -> Exception:
    """Return what work under a key has ended in."""
    for each in causes(error):
        if not isinstance(each, psycopg2.Error):
            continue
        if _is_taken(each):
            return PerhapsKept(KeyInUse())
        if isinstance(each, psycopg2.errors.InFailedSqlTransaction):
            # It was the claim that has failed, perhaps, and a model has caught that.
            return PerhapsKept(error)
        return _claim_refusal(each) or error
    if retryable(error) or isinstance(error, CancelledError | Unavailable):
        return error
    # What a model refuses now it has taken, perhaps, when the call came first.
    return PerhapsKept(error)


def prune_txn(connection: PgConnection, seconds: float, most: int) -> int:
    """Drop the oldest keys, if they were kept for so long; return how many."""
    (there,) = connection.ask(f"SELECT pg_catalog.to_regclass('{TABLE}') IS NOT NULL")
    if not there:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(PRUNE, (seconds, most), clean=True)
        return int(cursor.rowcount)


def _is_taken(error: BaseException) -> bool:
    """Return whether an error says that a key which was to be claimed is there already."""
    if not isinstance(error, psycopg2.errors.UniqueViolation):
        return False
    diag = error.diag
    # With a context it comes out of somebody's function, which wrote there itself.
    return f"{diag.schema_name}.{diag.table_name}" == TABLE and diag.context is None


def _is_ours(error: psycopg2.Error) -> bool:
    """Return whether an error is one of the claim, rather than of what came with it."""
    diag = error.diag
    if isinstance(error, psycopg2.errors.LockNotAvailable):
        # The context of a lock that was waited for names the index; its words are translated.
        return "idempotency_keys_pkey" in (diag.context or "")
    known = isinstance(error, MISSING | psycopg2.errors.InsufficientPrivilege)
    return known and diag.context is None and "rowcast" in (diag.message_primary or "")


def _claim_refusal(error: psycopg2.Error) -> ServiceError | None:
    """Return why a key cannot be claimed, if an error says that: another one than that it is taken."""
    if not _is_ours(error):
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


def _bytes(value: bytes) -> str:
    """Return a literal that means the same whatever the settings of the session are by now."""
    return f"E'\\\\x{value.hex()}'"
