"""
A connection of the pool: a psycopg2 connection with a lazy BEGIN, cleaning and time limits.

Sessions are in autocommit, so a single statement takes one round trip. `begin` only notes the BEGIN of a
transaction, in `opening`; it travels with the first statement, in the same message. Behind a transaction
pooler `opening` sets the session's settings too.
"""

from __future__ import annotations

import math
import os
import random
import select
import socket
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INTRANS
from psycopg2.sql import Composable

if TYPE_CHECKING:
    from service.db.codec import Codec
    from service.db.planned import PreparedStatement
    from service.db.session_settings import Identity
    from service.db.transaction import Actor

Sql = str | bytes | Composable
Parameters = Sequence[Any] | Mapping[str, Any] | None


KEEPS_STATE = (
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_language"
    " WHERE lanname NOT IN ('internal', 'c', 'sql', 'plpgsql'))"
    " OR EXISTS (SELECT FROM pg_catalog.pg_extension"
    " WHERE extname IN ('dblink', 'orafce', 'pg_variables'))"
)
"""
Query whether the database has code whose state no statement resets; only closing the session does.

Procedural languages such as Perl, Python, Tcl and JavaScript have global variables; dblink has connections.
"""

DISCARD_SEQUENCES = "DISCARD SEQUENCES;"
"""Makes `currval` and `lastval` forget the values of earlier rows."""

_RANDOM = random.SystemRandom()

MAX_CODECS = 32
"""Maximum number of cursors kept by a connection: one for each codec, and so for each role."""


# RESET ALL does not reset role and session_authorization, so they are reset by name.
# After a caller's setseed() that caller could predict the random() of the next.
CLEANING = (
    "SET SESSION AUTHORIZATION DEFAULT;RESET ROLE;RESET ALL;CLOSE ALL;DEALLOCATE ALL;UNLISTEN *;"
    "DISCARD TEMP;DISCARD SEQUENCES;SELECT pg_catalog.pg_advisory_unlock_all(),"
    "pg_catalog.setseed({seed});"
)
"""
What DISCARD ALL does, except DISCARD PLANS, and a new seed for `random()`.

DISCARD ALL cannot run in a transaction; these statements can, in a read-only one and on a standby too.
"""


class PgCursor(extensions.cursor):
    """
    A cursor that sends the noted BEGIN, refuses statements of a stopped job, and measures its waits.

    `PgConnection.cursor` adds these methods to cursors of other classes too.
    """

    connection: PgConnection

    def execute(
        self,
        query: Sql,
        vars: Parameters = None,
        clean: bool = False,
        runs: Sql | None = None,
    ) -> None:
        """
        Send a statement, behind the noted BEGIN if there is one.

        Args:
            query: The statement.
            vars: Its parameters.
            clean: Whether nothing that it runs can leave any state in the session.
            runs: For the log, the prepared statement that an EXECUTE runs.

        Raises:
            psycopg2.extensions.QueryCanceledError: The job was stopped before this statement.
        """
        connection = self.connection
        # A cancel that reached the server between two statements has had no effect there.
        if connection.stopped:
            self._refuse_stopped()
        if not clean:
            connection.touch()
        with connection.waits(query if runs is None else runs):
            if connection.opening is None:
                super().execute(query, vars)
            else:
                self._send(query, vars)

    def _send(self, query: Sql, vars: Parameters) -> None:
        connection = self.connection
        assert connection.opening is not None
        if self.name is not None:  # psycopg2 puts DECLARE in front of the text, so BEGIN goes first
            connection.command("")
            super().execute(query, vars)
            return
        if isinstance(query, Composable):
            query = query.as_string(self)
        try:
            if isinstance(query, bytes):
                super().execute(connection.opening.encode() + query, vars)
            else:
                super().execute(connection.opening + query, vars)
        except BaseException:
            # An open transaction that has not failed means that psycopg2 refused the statement, for a
            # value that it cannot adapt, say: nothing was sent, and `opening` stays.
            if (
                connection.closed
                or connection.get_transaction_status() != TRANSACTION_STATUS_INTRANS
            ):
                connection.note_begun()
            raise
        connection.note_begun()

    def executemany(self, query: Sql, vars_list: Any) -> None:
        """Send a statement many times, after the noted BEGIN."""
        with self._begun(query):
            super().executemany(query, vars_list)

    def callproc(self, procname: str | bytes, parameters: Parameters = ()) -> Any:
        """Call a function, after the noted BEGIN."""
        with self._begun(procname):
            return super().callproc(procname, parameters)

    def copy_expert(self, sql: Sql, file: Any, size: int = 8192) -> None:
        """Send COPY after the noted BEGIN, because COPY needs a message of its own."""
        with self._begun():
            super().copy_expert(sql, file, size)

    def copy_from(self, *args: Any, **options: Any) -> None:
        """Send COPY … FROM, after the noted BEGIN."""
        with self._begun():
            super().copy_from(*args, **options)

    def copy_to(self, *args: Any, **options: Any) -> None:
        """Send COPY … TO, after the noted BEGIN."""
        with self._begun():
            super().copy_to(*args, **options)

    @contextmanager
    def _begun(self, query: Sql | None = None) -> Iterator[None]:
        """Send the noted BEGIN, and wait for the server in the body."""
        self._refuse_stopped()
        self.connection.touch()
        # An empty command sends the noted BEGIN alone.
        if self.connection.opening is not None:
            self.connection.command("")
        with self.connection.waits(query):
            yield

    def _refuse_stopped(self) -> None:
        if self.connection.stopped:
            raise extensions.QueryCanceledError("stopped before this statement")


class NamedCursor(PgCursor):
    """A server-side cursor: each fetch waits for the server."""

    def fetchone(self) -> Any:
        """Fetch a row."""
        with self.connection.waits():
            return super().fetchone()

    def fetchmany(self, *size: Any, **how: Any) -> Any:
        """Fetch rows."""
        with self.connection.waits(self.query):
            return super().fetchmany(*size, **how)

    def fetchall(self) -> Any:
        """Fetch all remaining rows."""
        with self.connection.waits(self.query):
            return super().fetchall()

    def __next__(self) -> Any:
        """Return the next row; `itersize` rows are fetched at a time."""
        with self.connection.waits():
            return super().__next__()

    def scroll(self, *value: Any, **how: Any) -> None:
        """Move the cursor."""
        with self.connection.waits():
            super().scroll(*value, **how)

    def close(self) -> None:
        """Close the cursor here and on the server."""
        with self.connection.waits():
            super().close()


@cache
def _waiting(kind: type[extensions.cursor], named: bool) -> type[extensions.cursor]:
    """Return a subclass of a cursor class, with the methods of `PgCursor` or `NamedCursor`."""
    base = NamedCursor if named else PgCursor
    if issubclass(kind, base):
        return kind
    # `base` comes first in the MRO, so that its execute runs, and calls that of `kind` by super().
    return base if issubclass(base, kind) else type(kind.__name__, (base, kind), {})


INTERVAL = 0.25
"""Seconds between two checks of the sessions by the guard."""


class SessionGuard:
    """
    A thread that ends the wait for servers that are silent for too long, as long as there are sessions.

    libpq waits for ever for a server whose host acknowledges TCP segments but which never answers, as
    behind a proxy that hangs. If another thread shuts the socket down, the wait ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: set[PgConnection] = set()
        self._thread: threading.Thread | None = None

    def add(self, session: PgConnection) -> None:
        """Start to watch a session."""
        with self._lock:
            self._sessions.add(session)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="pg-guard", daemon=True)
                self._thread.start()

    def remove(self, session: PgConnection) -> None:
        """Stop watching a session; after this returns, the guard does not touch its socket."""
        with self._lock:
            self._sessions.discard(session)

    def give_up(self, session: PgConnection) -> None:
        """Shut the socket of a session down, if it is still watched."""
        with self._lock:
            if session in self._sessions:
                session.shut()

    def _watch(self) -> None:
        while True:
            time.sleep(INTERVAL)
            now = time.monotonic()
            with self._lock:
                # Under the lock, so that a concurrent `add` starts the next thread.
                if not self._sessions:
                    self._thread = None
                    return
                for session in self._sessions:
                    if session.overdue(now):
                        session.shut()


GUARD = SessionGuard()
"""The guard of all sessions of the process."""


class PgConnection(extensions.connection):
    """
    A connection that belongs to one worker thread.

    Attributes:
        lock: Held while the connection is closed, and while libpq copies the address for a cancel.
        opening: Statements that are sent in front of the next one: the BEGIN of a transaction and
            the identity; in autocommit, the identity, in front of each statement. None if nothing.
        ending: Statements that are sent in front of COMMIT.
        stopped: When a canceler stopped the job that runs on it, by `time.monotonic`; 0 otherwise.
        waiting: Since when its thread waits for the server; None if it does not.
        time_limit: Maximum seconds of a statement on the server; 0 if there is none.
        extra_time: Seconds added to `time_limit` until the next transaction begins.
        grace: Seconds beyond these until a cancel is sent, and from then until it is given up.
        slow_after: Seconds from which a statement is slow.
        slow: Slow statements with their seconds, until the worker reports them.
        idle_limit: Maximum seconds that a transaction may be idle; 0 if there is no limit.
        idle: The same for the open transaction.
        given_up: Whether its socket was shut down because the server was silent for too long.
        address: The DSN with which it was opened.
        checked_at: When the DSN was last compared with the current one.
        pooled: Whether the server is reached through a transaction pooler.
        settings: SET LOCAL statements for every transaction behind a pooler; "" without one.
        own_settings: Statements that restore the session's settings after `RESET ALL`.
        touched: Whether a statement has run that may have left state in the session.
        counted: Whether a row may have been inserted whose number `lastval` would return.
        single_use: Whether the database has code whose state only closing the session removes.
        path_statement: Statement that sets the session's own `search_path` for a transaction.
        actor: Actor of the open transaction's last statement; None if its identity is not certain.
        alone: Whether statements run in autocommit, each under its own identity.
        planned: Names of the service's own prepared statements, until a statement runs that may
            have deallocated or replaced them.
        settled: Names of prepared statements of calls, by role and text, the most recently used
            last; "" for a statement that cannot be prepared.
        runs: How often statements that are not prepared yet have run.
    """

    opening: str | None = None
    alone = False
    ending = ""
    stopped = 0.0
    waiting: float | None = None
    time_limit = 5.0
    extra_time = 0.0
    slow_after = math.inf
    grace = 3.0
    idle_limit = idle = 0.0
    given_up = False
    pooled = False
    settings = ""
    own_settings = ""
    touched = False
    counted = False
    single_use = False
    path_statement = ""
    actor: Actor | None = None
    _undo = ""
    _identity_uncertain = False
    _identity: Identity | None = None
    epoch = 0
    opened_at = 0.0
    address = ""
    checked_at = 0.0

    def __init__(self, dsn: str, **options: Any) -> None:
        self.lock = threading.Lock()
        self._socket = -1
        self._connected_at: float | None = None
        # Guarded before it connects, because psycopg2 may wait for the server there without a timeout.
        GUARD.add(self)
        try:
            super().__init__(dsn, **options)
        except BaseException:
            GUARD.remove(self)
            raise
        self.cursor_factory = PgCursor
        self._wires: dict[Codec, PgCursor] = {}
        self.planned: dict[PreparedStatement, str] = {}
        self.settled: dict[Hashable, str] = {}
        self.runs: dict[Hashable, int] = {}
        self.slow: list[tuple[Sql, float]] = []
        # Not select(), which refuses descriptors from 1024 on.
        self._idle = select.poll()
        # A duplicate for `shut`: libpq closes its own descriptor when it likes, and another file may
        # get that number.
        self._socket = os.dup(self.fileno())

    def close(self) -> None:
        """Close; sending the Terminate message may block if the server is silent."""
        with self.lock, self.waits():
            super().close()
        GUARD.remove(self)
        # Closed after the guard has let go of it, which might shut down another file of that number.
        if self._socket >= 0:
            os.close(self._socket)
            self._socket = -1

    @contextmanager
    def waits(self, query: Sql | None = None) -> Iterator[None]:
        """
        Wait for the server in the body.

        Args:
            query: The statement to log if it is slow; None for one whose pace is the caller's.

        Raises:
            psycopg2.OperationalError: The connection was lost; in COPY psycopg2 raises the base class.
        """
        self.waiting = began = time.monotonic()
        try:
            yield
        except psycopg2.DatabaseError as error:
            # psycopg2 reports a connection lost in COPY as DatabaseError itself, without an SQLSTATE,
            # and `closed` may still be 0 then.
            if type(error) is psycopg2.DatabaseError and error.pgcode is None:
                raise psycopg2.OperationalError(str(error)) from error
            raise
        finally:
            self.waiting = None
            if query is not None and (took := time.monotonic() - began) >= self.slow_after:
                self.slow.append((query, took))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Wait in the body for something other than the server, without a time limit."""
        self.waiting = None
        try:
            yield
        finally:
            # The server's time starts again: it is not charged for the other wait.
            self.waiting = time.monotonic()

    def late(self, now: float) -> bool:
        """Return whether the server should have answered by now, so that a cancel is due."""
        since = self.waiting
        if since is None or not self.time_limit:
            return False
        return now > since + self.time_limit + self.extra_time + self.grace

    def overdue(self, now: float) -> bool:
        """Return whether the server is to be given up."""
        # Without the duplicate, psycopg2 is still setting the session up.
        if self._socket < 0:
            return self._stuck(now)
        # Read once: the worker's thread may change both while the guard's thread compares them.
        since, stopped = self.waiting, self.stopped
        if since is None:
            return False
        if stopped:
            return now > max(since, stopped) + self.grace
        # One `grace` later than `late`, when the scheduler has sent a cancel without effect.
        return self.late(now - self.grace)

    def shut(self) -> None:
        """Shut the socket down, so that the thread that waits for the server gets an error."""
        self.given_up = True
        with suppress(OSError, psycopg2.Error):
            number = self.fileno() if self._socket < 0 else self._socket
            # The socket object closes its descriptor, hence another duplicate; shutdown() ends the
            # connection, which all duplicates share.
            with socket.socket(fileno=os.dup(number)) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)

    def _stuck(self, now: float) -> bool:
        """
        Return whether psycopg2 has taken too long to set the session up.

        `connect_timeout` ends when libpq has connected; after that psycopg2 may run statements.
        """
        try:
            connected = self.fileno() >= 0
        except psycopg2.Error:
            return False
        if connected and self._connected_at is None:
            self._connected_at = now
        return connected and now > (self._connected_at or now) + 2 * self.grace

    def prepare(self, settings: str = "") -> None:
        """Prepare a new session for the pool."""
        self.settings, self.pooled = settings, bool(settings)
        self.opened_at = self.checked_at = time.monotonic()
        self._idle.register(self.fileno(), select.POLLIN)

    def cursor(self, *args: Any, **options: Any) -> Any:
        """
        Return a cursor, as psycopg2 does, with the methods of `PgCursor`.

        Args:
            args: Arguments of psycopg2's `cursor`: name, class and so on.
            options: The same by name.
        """
        if not args and not options:
            return super().cursor()
        name, kind, *rest = (*args, None, None)[: max(2, len(args))]
        name, kind = options.pop("name", name), options.pop("cursor_factory", kind)
        kind = _waiting(kind or self.cursor_factory, name is not None)
        return super().cursor(name, kind, *rest, **options)

    def touch(self) -> None:
        """
        Record that a statement follows which may leave state in the session.

        The statement must not see the `lastval` of another caller's row.
        """
        self.touched = self._identity_uncertain = True
        self._forget()
        # In a transaction, `lastval` is of the caller's own rows: `begin` discards that of others.
        if self.counted and self.get_transaction_status() == TRANSACTION_STATUS_IDLE:
            if self.opening is None:
                self.command(DISCARD_SEQUENCES)
                self.counted = False
            elif DISCARD_SEQUENCES not in self.opening:
                self.opening += DISCARD_SEQUENCES

    def _forget(self) -> None:
        """Forget the session's prepared statements, which may be deallocated or replaced now."""
        self.planned.clear()
        self.settled.clear()

    def cleaning(self) -> str:
        """Return the statements that remove all state from the session."""
        self._forget()
        return CLEANING.format(seed=_RANDOM.random()) + self.own_settings

    def clean(self) -> None:
        """
        Roll back an open transaction, and remove the state that statements left in the session.

        Raises:
            psycopg2.Error: That failed; the session must not be used again.
        """
        open = self.get_transaction_status() != TRANSACTION_STATUS_IDLE
        # As SQL, because psycopg2's rollback() does nothing in autocommit.
        sql = "ROLLBACK;" if open else ""
        # Behind a pooler the server connection belongs to other clients after the transaction.
        if self.touched and (open or not self.pooled):
            sql += self.cleaning()
            self.counted = False
        if sql:
            self.command(sql)
        if self.touched and self.single_use:
            self.close()
        self.touched = False

    def renew(self, epoch: int) -> None:
        """Clean the session for a new epoch, and check again whether it can be cleaned entirely."""
        self.epoch = epoch
        self.touched = True
        self.clean()
        if not self.closed:
            self.single_use = self.ask(KEEPS_STATE)[0]

    def ask(self, sql: str, **values: object) -> Any:
        """Run a query of the service's own and return its one row; None if it has none."""
        with self.cursor() as cursor:
            cursor.execute(sql, values or None, clean=True)
            return cursor.fetchone()

    def alive(self) -> bool:
        """
        Return whether the session is alive, as far as its socket shows.

        The socket of an idle session is readable only after a notice, or once the server has closed it.
        """
        if self.closed:
            return False
        while not self.closed and self._idle.poll(0):
            try:  # reads the notice; at the end of file it raises
                self.poll()
            except psycopg2.Error:
                return False
        return not self.closed

    def wire(self, codec: Codec) -> PgCursor:
        """
        Return the cursor of this connection whose typecasters are those of a codec.

        It is kept, because there are few codecs: one for each role.
        """
        found = self._wires.get(codec)
        if found is None or found.closed:
            if len(self._wires) >= MAX_CODECS:  # most of them are of earlier catalogs
                self._wires.clear()
            found = self._wires[codec] = self.cursor()
            codec.install(found)
        return found

    def begin(self, begin: str, identity: str = "") -> None:
        """
        Note the BEGIN, and the identity, that the next statement is sent with.

        Behind a pooler, another client may have used the server connection and left state in it.
        """
        self.extra_time, self.ending, self.alone = 0.0, "", False
        self.idle = self.idle_limit
        self.actor, self._undo, self._identity_uncertain = None, "", False
        if self.pooled:
            # Cleaned in a transaction before, because BEGIN reads defaults (such as
            # `default_transaction_isolation`) that the cleaning resets.
            sql = f"BEGIN;{self.cleaning()}COMMIT;{begin};{self.settings}"
        else:
            sql = f"{begin};{DISCARD_SEQUENCES if self.counted else ''}"
        self.opening = sql + identity

    def allow_idle(self, seconds: float) -> None:
        """Set the seconds that the transaction whose BEGIN is noted may be idle."""
        self.idle = seconds
        limit = f"SET LOCAL idle_in_transaction_session_timeout={round(seconds * 1000)};"
        self.opening = f"{self.opening}{limit}"

    def act(self, actor: Actor) -> None:
        """
        Note the identity of the statements of the open transaction from now on.

        It travels with the next statement, and is not sent again for the actor of the last one. For
        another actor it is sent even if the identity is equal, once code has run that may have set
        a role or claims itself: a function or trigger must not choose the identity of others'
        statements.
        """
        if actor is self.actor:
            return
        begun = self.get_transaction_status() != TRANSACTION_STATUS_IDLE
        before, identity = self._identity, actor.identity
        if not begun and self.actor is None:
            self.opening = f"{self.opening or ''}{identity.local}"
        elif (
            self.actor is None
            or identity != before
            or (self._identity_uncertain and identity.local)
        ):
            # If the same settings are set again, the old ones need no reset first.
            undo = "" if self._undo == identity.undo else self._undo
            self.opening = f"{self.opening or ''}{self.path_statement}{undo}{identity.local}"
        if identity.undo not in self._undo:
            self._undo += identity.undo
        self.actor, self._identity, self._identity_uncertain = actor, identity, False

    def assume(self, identity: str) -> None:
        """Note that statements from now on run in autocommit, each under an identity."""
        self.extra_time, self.alone = 0.0, True
        self.opening = identity or None

    def note_begun(self) -> None:
        """
        Forget the noted BEGIN if the server has run it.

        A message with a syntax error begins no transaction. In autocommit no message does, and
        `opening` stays for the next statement.
        """
        if self.closed or self.get_transaction_status() != TRANSACTION_STATUS_IDLE:
            self.opening = None
            self.counted = False

    def command(self, sql: str) -> str:
        """Run statements of the service's own that return no rows; return the last command tag."""
        with self.cursor() as cursor:
            cursor.execute(sql, clean=True)
            return cursor.statusmessage or ""
