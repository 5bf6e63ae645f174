"""
A connection of the pool: a psycopg2 connection with a lazy BEGIN, cleaning and time limits.

Sessions are in autocommit, so a single statement is one round trip. A transaction is begun
by `begin`, which only notes the words; the first statement takes them along in the same
message. Behind a transaction pooler the words carry the session's settings too.
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
from typing import TYPE_CHECKING, Any, Protocol

import psycopg2
from psycopg2 import extensions
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INTRANS
from psycopg2.sql import Composable

from service.db.guard import GUARD

if TYPE_CHECKING:
    from service.db.planned import Planned
    from service.db.session_settings import Identity
    from service.db.transaction import Actor

Words = str | bytes | Composable
Parameters = Sequence[Any] | Mapping[str, Any] | None


KEEPS_STATE = (
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_language"
    " WHERE lanname NOT IN ('internal', 'c', 'sql', 'plpgsql'))"
    " OR EXISTS (SELECT FROM pg_catalog.pg_extension"
    " WHERE extname IN ('dblink', 'orafce', 'pg_variables'))"
)
"""
Whether there is code that keeps what it likes for as long as the session lasts.

Perl, Python, Tcl and JavaScript have global variables; dblink has connections.
"""

DISCARD_SEQUENCES = "DISCARD SEQUENCES;"
"""Has `currval` and `lastval` know of nothing."""

_RANDOM = random.SystemRandom()

MAX_CODECS = 32
"""Cursors kept by one connection, one for each codec: as many roles as are in use."""


# RESET ALL leaves role and session_authorization alone, so they are reset by name.
# After a caller's setseed() the next caller's random() could be foretold.
CLEANING = (
    "SET SESSION AUTHORIZATION DEFAULT;RESET ROLE;RESET ALL;CLOSE ALL;DEALLOCATE ALL;UNLISTEN *;"
    "DISCARD TEMP;DISCARD SEQUENCES;SELECT pg_catalog.pg_advisory_unlock_all(),"
    "pg_catalog.setseed({seed});"
)
"""
What DISCARD ALL does, which has to stand alone, less the plans; and a new seed for `random()`.

It may stand inside of a transaction, too, in one that may only read, and on a standby.
"""


class Installable(Protocol):
    """What `PgConnection.wire` needs of a codec."""

    def install(self, cursor: extensions.cursor) -> None:
        """Register the codec's typecasters on a cursor."""


class PgCursor(extensions.cursor):
    """
    A cursor that takes a noted BEGIN along, refuses once the job was stopped, and is waited for.

    Cursors of other classes are given these methods, too; see `PgConnection.cursor`.
    """

    connection: PgConnection

    def execute(
        self,
        query: Words,
        vars: Parameters = None,
        clean: bool = False,
        runs: Words | None = None,
    ) -> None:
        """
        Send a statement, with the noted BEGIN before it if there is one.

        Args:
            query: The statement.
            vars: Its parameters.
            clean: Whether nothing it runs can leave anything behind in the session.
            runs: What it runs, for the log, where it is an EXECUTE.

        Raises:
            psycopg2.extensions.QueryCanceledError: The job was stopped before this statement.
        """
        connection = self.connection
        # A cancel that reaches the server between two statements stops nothing there.
        if connection.stopped:
            self._refuse_stopped()
        if not clean:
            connection.touch()
        with connection.waits(query if runs is None else runs):
            if connection.opening is None:
                super().execute(query, vars)
            else:
                self._send(query, vars)

    def _send(self, query: Words, vars: Parameters) -> None:
        connection = self.connection
        assert connection.opening is not None
        if self.name is not None:  # psycopg2 makes a DECLARE of the text, all of it
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
            # Refused by psycopg2 itself, as with a value that it cannot write, nothing was sent.
            if (
                connection.closed
                or connection.get_transaction_status() != TRANSACTION_STATUS_INTRANS
            ):
                connection.note_begun()
            raise
        connection.note_begun()

    def executemany(self, query: Words, vars_list: Any) -> None:
        """Send a statement many times, after the noted BEGIN."""
        with self._begun(query):
            super().executemany(query, vars_list)

    def callproc(self, procname: str | bytes, parameters: Parameters = ()) -> Any:
        """Call a function, after the noted BEGIN."""
        with self._begun(procname):
            return super().callproc(procname, parameters)

    def copy_expert(self, sql: Words, file: Any, size: int = 8192) -> None:
        """Send COPY, after the noted BEGIN: COPY cannot share a message."""
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
    def _begun(self, query: Words | None = None) -> Iterator[None]:
        """Send the noted BEGIN, and wait for the server in the body."""
        self._refuse_stopped()
        self.connection.touch()
        # An empty statement: what is sent is the noted BEGIN alone.
        if self.connection.opening is not None:
            self.connection.command("")
        with self.connection.waits(query):
            yield

    def _refuse_stopped(self) -> None:
        if self.connection.stopped:
            raise extensions.QueryCanceledError("stopped before this statement")


class NamedCursor(PgCursor):
    """A cursor of the server's: each fetch asks the server."""

    def fetchone(self) -> Any:
        """Fetch a row."""
        with self.connection.waits():
            return super().fetchone()

    def fetchmany(self, *size: Any, **how: Any) -> Any:
        """Fetch rows."""
        with self.connection.waits(self.query):
            return super().fetchmany(*size, **how)

    def fetchall(self) -> Any:
        """Fetch all rows that are left."""
        with self.connection.waits(self.query):
            return super().fetchall()

    def __next__(self) -> Any:
        """Fetch a row, and `itersize` ahead."""
        with self.connection.waits():
            return super().__next__()

    def scroll(self, *value: Any, **how: Any) -> None:
        """Move the cursor."""
        with self.connection.waits():
            super().scroll(*value, **how)

    def close(self) -> None:
        """Close the cursor, in the server, too."""
        with self.connection.waits():
            super().close()


@cache
def _waiting(kind: type[extensions.cursor], named: bool) -> type[extensions.cursor]:
    """Build a class of cursors like another one, whose statements are sent and waited for as ours."""
    ours = NamedCursor if named else PgCursor
    if issubclass(kind, ours):
        return kind
    # Ours stands first, so that its execute is the one met, and reaches the other by super().
    return ours if issubclass(ours, kind) else type(kind.__name__, (ours, kind), {})


class PgConnection(extensions.connection):
    """
    A connection that belongs to one worker thread.

    Attributes:
        lock: Held while it is closed, and while libpq reads from it where to send a cancel.
        opening: The BEGIN that the next statement takes along, or None; or, for statements
            that stand alone, what each of them takes along.
        ending: Statements that COMMIT takes along.
        stopped: When a canceler has asked the job that has the connection to end; 0 before.
        waiting: Since when its thread waits for the server, if it does.
        time_limit: Seconds that the server may let it wait, the limit of a statement; 0 if there is
            none.
        extra_time: Seconds that it gets beyond `time_limit` until the next transaction.
        slow_after: Seconds from which on a statement is slow.
        slow: Statements that were, with their seconds, until the worker has reported them.
        grace: Seconds that it gets beyond that, and then again, to heed a cancel.
        idle_limit: Seconds that a transaction may lie idle; 0 if there is no limit.
        idle: The same, of the transaction that is open.
        given_up: Whether its socket was shut down, since the server was silent for too long.
        address: The DSN that it was opened with.
        checked_at: When it was last asked whether that DSN is still the one.
        pooled: Whether a transaction pooler stands between us and the server.
        settings: SET LOCAL statements that every transaction needs, or "" if the session
            has its settings for good.
        own_settings: Statements that set again what `RESET ALL` resets.
        touched: Whether something may have run that left things behind in the session.
        counted: Whether a row may have been created, whose number `lastval` would give.
        single_use: Whether there is code that leaves behind what no statement takes away.
        path_words: The statement that sets the session's own `search_path` for a transaction.
        actor: As whom statements of the open transaction run now; None if that is not known.
        alone: Whether each statement stands alone, in no transaction of several.
        planned: Names of statements that the session has planned, and nobody else can have replaced.
        settled: The same of statements of calls, by what tells them apart, "" of those that cannot be;
            the one that ran last is the last.
        runs: How often others of them have run.
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
    path_words = ""
    actor: Actor | None = None
    _undo = ""
    _strayed = False
    _identity: Identity | None = None
    epoch = 0
    opened_at = 0.0
    address = ""
    checked_at = 0.0

    def __init__(self, dsn: str, **options: Any) -> None:
        self.lock = threading.Lock()
        self._socket = -1
        self._connected_at: float | None = None
        # Watched from before the connect: psycopg2 may wait in it for the server, without a clock.
        GUARD.add(self)
        try:
            super().__init__(dsn, **options)
        except BaseException:
            GUARD.remove(self)
            raise
        self.cursor_factory = PgCursor
        self._wires: dict[Installable, PgCursor] = {}
        self.planned: dict[Planned, str] = {}
        self.settled: dict[Hashable, str] = {}
        self.runs: dict[Hashable, int] = {}
        self.slow: list[tuple[Words, float]] = []
        # Not select(), which refuses descriptors from 1024 on.
        self._idle = select.poll()
        # libpq closes its own by itself, and another file may have the number then.
        self._socket = os.dup(self.fileno())

    def close(self) -> None:
        """Close, after a goodbye that a silent server may keep us waiting with."""
        with self.lock, self.waits():
            super().close()
        GUARD.remove(self)
        # Unwatched first: the guard would shut down whatever has the number next.
        if self._socket >= 0:
            os.close(self._socket)
            self._socket = -1

    @contextmanager
    def waits(self, query: Words | None = None) -> Iterator[None]:
        """
        Wait for the server in the body.

        Args:
            query: What it runs, if that is to be noted where it is slow: not what goes at the
                pace of a caller.

        Raises:
            psycopg2.OperationalError: The connection was lost; psycopg2 has no word for it in COPY.
        """
        self.waiting = began = time.monotonic()
        try:
            yield
        except psycopg2.DatabaseError as error:
            # The class itself, without a code: so psycopg2 tells of a connection that was lost, and
            # `closed` may still be 0 then.
            if type(error) is psycopg2.DatabaseError and error.pgcode is None:
                raise psycopg2.OperationalError(str(error)) from error
            raise
        finally:
            self.waiting = None
            if query is not None and (took := time.monotonic() - began) >= self.slow_after:
                self.slow.append((query, took))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Wait for another party than the server in the body, without a limit."""
        self.waiting = None
        try:
            yield
        finally:
            # From now on: what the other party took is not the server's.
            self.waiting = time.monotonic()

    def late(self, now: float) -> bool:
        """Return whether the server should have answered by now."""
        since = self.waiting
        if since is None or not self.time_limit:
            return False
        return now > since + self.time_limit + self.extra_time + self.grace

    def overdue(self, now: float) -> bool:
        """Return whether the server will not be waited for any more."""
        # No duplicate yet: psycopg2 is still setting the session up.
        if self._socket < 0:
            return self._stuck(now)
        # Read once: the worker's thread changes both while the guard's looks.
        since, stopped = self.waiting, self.stopped
        if since is None:
            return False
        if stopped:
            return now > max(since, stopped) + self.grace
        # One grace more than `late`, within which the scheduler has had a cancel sent, in vain.
        return self.late(now - self.grace)

    def shut(self) -> None:
        """Shut the socket down: whoever waits for the server gets an error."""
        self.given_up = True
        with suppress(OSError, psycopg2.Error):
            number = self.fileno() if self._socket < 0 else self._socket
            # The object closes the descriptor that it is given; shutdown() ends the connection that
            # all duplicates share.
            with socket.socket(fileno=os.dup(number)) as ours:
                ours.shutdown(socket.SHUT_RDWR)

    def _stuck(self, now: float) -> bool:
        """
        Return whether psycopg2 has waited for too long to set the session up.

        It may send a statement of its own once libpq, which has a clock, has connected.
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
        # A BEGIN of psycopg2's own would be a round trip more before each statement.
        self.autocommit = True
        self.settings, self.pooled = settings, bool(settings)
        self.opened_at = self.checked_at = time.monotonic()
        self._idle.register(self.fileno(), select.POLLIN)

    def cursor(self, *args: Any, **options: Any) -> Any:
        """
        Return a cursor, as psycopg2 does.

        Args:
            args: The name of a cursor of the server's, the class of the cursor, and so on.
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
        Note that a statement follows which may leave things behind in the session.

        It must not see the `lastval` of another caller's row.
        """
        self.touched = self._strayed = True
        self._forget()
        # In a transaction they are numbers of the caller's own rows: BEGIN drops those of others.
        if self.counted and self.get_transaction_status() == TRANSACTION_STATUS_IDLE:
            if self.opening is None:
                self.command(DISCARD_SEQUENCES)
                self.counted = False
            elif DISCARD_SEQUENCES not in self.opening:
                self.opening += DISCARD_SEQUENCES

    def _forget(self) -> None:
        """Forget what the session has planned."""
        self.planned.clear()
        self.settled.clear()

    def cleaning(self) -> str:
        """Return the statements after which nothing is left of what ran in the session."""
        self._forget()
        return CLEANING.format(seed=_RANDOM.random()) + self.own_settings

    def clean(self) -> None:
        """
        Clean the session of all that ran in it, an open transaction included.

        Raises:
            psycopg2.Error: Something is left; the session must not be used again.
        """
        open = self.get_transaction_status() != TRANSACTION_STATUS_IDLE
        # As text: in autocommit psycopg2's own rollback() does nothing.
        words = "ROLLBACK;" if open else ""
        if self.touched and (open or not self.pooled):  # behind a pooler, COMMIT has given it away
            words += self.cleaning()
            self.counted = False
        if words:
            self.command(words)
        if self.touched and self.single_use:
            self.close()
        self.touched = False

    def renew(self, epoch: int) -> None:
        """Clean the session, and ask again what cannot be cleaned in this database."""
        self.epoch = epoch
        self.touched = True
        self.clean()
        if not self.closed:
            self.single_use = self.ask(KEEPS_STATE)[0]

    def ask(self, words: str) -> tuple[Any, ...]:
        """Run a query of our own and return its one row."""
        with self.cursor() as cursor:
            cursor.execute(words, clean=True)
            row: tuple[Any, ...] = cursor.fetchone()
            return row

    def alive(self) -> bool:
        """
        Return whether the session is alive, as far as is known here.

        The socket of an idle session has nothing to read, unless the server said goodbye.
        """
        if self.closed:
            return False
        while not self.closed and self._idle.poll(0):
            try:  # a notice is read and gone; after a goodbye there is an end of file to read
                self.poll()
            except psycopg2.Error:
                return False
        return not self.closed

    def wire(self, codec: Installable) -> PgCursor:
        """
        Return the cursor of this connection whose rows hold wire values.

        It is kept, with the codec's typecasters; there is a codec for each role.
        """
        found = self._wires.get(codec)
        if found is None or found.closed:
            if len(self._wires) >= MAX_CODECS:  # of catalogs that are gone
                self._wires.clear()
            found = self._wires[codec] = self.cursor()
            codec.install(found)
        return found

    def begin(self, words: str, identity: str = "") -> None:
        """
        Note that the next statement begins a transaction, and as whom.

        A pooler may have given the session to others since, whose defaults would be BEGIN's.
        """
        self.extra_time, self.ending, self.alone = 0.0, "", False
        self.idle = self.idle_limit
        self.actor, self._undo, self._strayed = None, "", False
        if self.pooled:
            # The cleaning ends before BEGIN, which reads the defaults that it has reset.
            words = f"BEGIN;{self.cleaning()}COMMIT;{words};{self.settings}"
        else:
            words += f";{DISCARD_SEQUENCES if self.counted else ''}"
        self.opening = words + identity

    def allow_idle(self, seconds: float) -> None:
        """Set the time that the transaction may lie idle whose BEGIN is noted, past the session's."""
        self.idle = seconds
        limit = f"SET LOCAL idle_in_transaction_session_timeout={round(seconds * 1000)};"
        self.opening = f"{self.opening}{limit}"

    def act(self, actor: Actor) -> None:
        """
        Note as whom the statements of the open transaction run from now on.

        Nothing is sent, as the next statement takes it along; nothing at all for the actor of the
        statement before. Another actor of the same identity sets it anew where what ran since may
        have set something itself: a function can, and neither it nor a trigger may say as whom
        another one's statement runs.
        """
        if actor is self.actor:
            return
        begun = self.get_transaction_status() != TRANSACTION_STATUS_IDLE
        before, identity = self._identity, actor.identity
        if not begun and self.actor is None:
            self.opening = f"{self.opening or ''}{identity.words}"
        elif self.actor is None or identity != before or (self._strayed and identity.words):
            # Where the same settings are set anew, nothing needs to be taken back first.
            undo = "" if self._undo == identity.undo else self._undo
            self.opening = f"{self.opening or ''}{self.path_words}{undo}{identity.words}"
        if identity.undo not in self._undo:
            self._undo += identity.undo
        self.actor, self._identity, self._strayed = actor, identity, False

    def assume(self, identity: str) -> None:
        """Record that each statement from now on stands alone, and under which identity."""
        self.extra_time, self.alone = 0.0, True
        self.opening = identity or None

    def note_begun(self) -> None:
        """
        Forget the noted BEGIN if the server has seen it.

        A message that does not parse begins nothing; nor does one that stands alone under an
        identity, which the next one has in front, too.
        """
        if self.closed or self.get_transaction_status() != TRANSACTION_STATUS_IDLE:
            self.opening = None
            self.counted = False

    def command(self, words: str) -> str:
        """Run a command of our own that returns no rows; return its status message."""
        with self.cursor() as cursor:
            cursor.execute(words, clean=True)
            return cursor.statusmessage or ""
