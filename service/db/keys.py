"""
Idempotency keys, stored in the transaction of the write whose result they stand for.

A call inserts its key first and its result last, so the end of its transaction commits or rolls
back both. If the key is already there, the INSERT fails the message that it travels in. Another
call with the same key waits at the unique index until the first has committed, or runs itself if
the first was rolled back. This costs PostgreSQL no more than an advisory lock and a SELECT before the
write, and a function's code cannot interfere with it.

The statements run as the service's own role, whoever calls: no other role needs a privilege on the
table. All names in them are qualified and no type is named, because code that ran before them in the
session may have created objects of the same names in `pg_temp`.
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
# By ctid, where that is known: in a serializable transaction an index scan takes a predicate lock on
# the index page, and so conflicts with every call that inserts a neighboring key.
KEEP = f"UPDATE {TABLE} SET result = {{}} WHERE {{}}"
BY_ID, BY_PLACE = "id OPERATOR(pg_catalog.=) {}", "ctid OPERATOR(pg_catalog.=) '{}'"
_BYTES = "pg_catalog.bytea"
# PostgreSQL needs as long to plan these two as to run them.
CLAIMING = Planned(CLAIM.format("%(id)s", "%(call)s"), id=_BYTES, call=_BYTES)
KEEPING = Planned(KEEP.format("%(result)s", BY_ID.format("%(id)s")), result=_BYTES, id=_BYTES)
MISSING = psycopg2.errors.UndefinedTable | psycopg2.errors.InvalidSchemaName
# SKIP LOCKED: several services prune, and none should wait for another's locks, or for a call's.
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
        id: Identifies the key among those of all callers.
        role: Role as which the call runs: another role must not get its result.
        procedure: Schema, relation and verb; or the name of a procedure.
        args: Positional arguments.
        kwargs: Keyword arguments, without the key.
        max_bytes: Maximum size of the result in bytes.
    """

    id: bytes
    role: str
    procedure: Sequence[str]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    max_bytes: int

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


@dataclass(slots=True)
class KeyClaim:
    """
    A key that a transaction claims.

    Args:
        keyed: The call.
        place: The `ctid` of the key's row, if it is known.
    """

    keyed: Keyed
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
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


class PerhapsKept(Exception):
    """
    The call failed, and a result may be stored under its key already.

    Args:
        error: The call's error if there is none.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def claim_txn(connection: PgConnection, claim: KeyClaim, placed: bool = False) -> None:
    """
    Claim a key for a transaction whose BEGIN has not been sent yet.

    The claim travels with the first statement, behind BEGIN, and fails it if the key is there already.

    Args:
        connection: The transaction's connection.
        claim: The key.
        placed: Whether to send the claim at once, so that its `ctid` is known.
    """
    connection.act(SERVICE)
    keyed = claim.keyed
    parts = _bytes(keyed.id), _bytes(keyed.digest())
    if placed:
        (claim.place,) = connection.ask(CLAIM_PLACED.format(*parts))
        return
    name, _ = CLAIMING.again(connection), KEEPING.again(connection)
    sql = CLAIM.format(*parts) if name is None else f"EXECUTE {name} ({', '.join(parts)})"
    connection.opening = f"{connection.opening or ''}{sql};"


def look_txn(connection: PgConnection, keyed: Keyed) -> Kept | None:
    """
    Return what is stored under a key, as the service's own role.

    Raises:
        InvalidArgument: The key was used for another call.
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

    Deferred triggers fire before the result is stored: at COMMIT they would run as the service's role.

    Raises:
        TooLarge: The result is too large to be sent; the transaction must not commit.
    """
    value = _bytes(packed(result, claim.keyed.max_bytes))
    if connection.get_transaction_status() == TRANSACTION_STATUS_IDLE:
        connection.command("")  # sends BEGIN and the claim, as the function sent no statement
    connection.act(SERVICE)
    # COMMIT drops statements noted in `opening`, so the change of identity goes into `ending`.
    identity, connection.opening = connection.opening, None
    connection.ending = f"{SETTLE}{identity}" if identity else ""
    id, name = _bytes(claim.keyed.id), connection.planned.get(KEEPING)
    if claim.place is not None:
        connection.ending += f"{KEEP.format(value, BY_PLACE.format(claim.place))};"
    elif name:  # forgotten if statements have run since that may have deallocated it
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
    """Run a function in a transaction that has claimed a key; store and return its shaped result."""
    result = shape(function(connection, *args))
    keep_txn(connection, claim, result)
    return result


def ending_txn(connection: PgConnection, keyed: Keyed, receipt: bool) -> Kept | None:
    """
    Claim a key at the end of the open transaction, and store a receipt or nothing under it.

    Returns:
        What was stored under the key before, if it was there already.

    Raises:
        InvalidArgument: The key was used for another call; or the database has no table of keys.
        KeyInUse: The first call with it has not ended within the lock timeout.
    """
    # Deferred triggers fire as the role that ran last, before the claim is made as the service.
    connection.opening = f"{connection.opening or ''}{SETTLE}"
    connection.act(SERVICE)
    with connection.cursor() as cursor:
        try:
            # ON CONFLICT, not an error, which would abort the transaction.
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
        if kept is None:  # it was pruned meanwhile
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
    Run a function in a transaction of its own under a key; return its result, or the stored one.

    The claim travels in front of the first statement, and the result in front of COMMIT, so a key costs
    no round trip but that of COMMIT. The table is queried only if the claim finds the key there.
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
        if kept is None:  # it was pruned meanwhile
            raise KeyInUse from error
        return kept.result
    commit_txn(connection)
    return result


def keyed_outcome(error: Exception) -> Exception:
    """Return the error of a call under a key, as `PerhapsKept` if a result may be stored already."""
    for each in causes(error):
        if not isinstance(each, psycopg2.Error):
            continue
        if _is_taken(each):
            return PerhapsKept(KeyInUse())
        if isinstance(each, psycopg2.errors.InFailedSqlTransaction):
            # The claim may have failed, and a model's code may have caught that error.
            return PerhapsKept(error)
        return _claim_refusal(each) or error
    if retryable(error) or isinstance(error, CancelledError | Unavailable):
        return error
    # A validation that fails now may have passed when the call was made first.
    return PerhapsKept(error)


def prune_txn(connection: PgConnection, seconds: float, most: int) -> int:
    """Delete at most `most` keys that are older than `seconds`, the oldest first; return how many."""
    (there,) = connection.ask(f"SELECT pg_catalog.to_regclass('{TABLE}') IS NOT NULL")
    if not there:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(PRUNE, (seconds, most), clean=True)
        return int(cursor.rowcount)


def _is_taken(error: BaseException) -> bool:
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


def _bytes(value: bytes) -> str:
    """Return a `bytea` literal that means the same whatever the settings of the session are."""
    return f"E'\\\\x{value.hex()}'"
