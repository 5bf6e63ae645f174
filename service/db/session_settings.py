"""
Opening sessions: their settings, and the identities under which statements run.

On a direct connection, settings travel as `options` of the connection string, before the first
round trip. A transaction pooler refuses or drops `options`, and hands the server connection to another
client after each transaction: there the settings are SET LOCAL in every transaction.

The role and claims of a caller are set for one transaction only, by SET LOCAL statements that travel
in front of a statement. A message of several statements is a transaction by itself, so a single read
under a role is still one round trip. For a procedure, which may end its transaction, they are set for
the session, which is cleaned afterwards.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn
from twisted.logger import Logger

from service.db.connection import KEEPS_STATE, PgConnection
from service.sql.statement import quoted


def set_statements(settings: Mapping[str, str], local: bool = True) -> str:
    """
    Return the SET statements of settings.

    SET takes PostgreSQL a third less time than a SELECT of `set_config` (`bench/roles.py`).

    Args:
        settings: Values by name; the names are not quoted.
        local: Whether they hold for the transaction, rather than for the session.

    Returns:
        Statements, each with its semicolon, that contain no percent sign: psycopg2 then leaves
        them as they are, with and without parameters.
    """
    scope = "SET LOCAL" if local else "SET"
    return "".join(f"{scope} {name}={_literal(value)};" for name, value in settings.items())


def prepend_schema(schema: str, local: bool = True) -> str:
    """Return the statement that puts a schema first in the `search_path`."""
    return _set_path(
        f"{_literal(quoted(schema) + ', ')}||pg_catalog.current_setting('search_path')", local
    )


def set_search_path(path: str, local: bool = True) -> str:
    """Return the statement that sets the `search_path` to a list of quoted schemas."""
    return _set_path(_literal(path), local)


def _set_path(path: str, local: bool) -> str:
    # Not SET, which takes a list in one string for the name of a single schema.
    return f"SELECT pg_catalog.set_config('search_path',{path},{'true' if local else 'false'});"


def _literal(text: str) -> str:
    """Return a string literal; `standard_conforming_strings` is on in every session."""
    quotes = text.replace("'", "''")
    if "%" not in quotes:
        return f"'{quotes}'"
    # psycopg2 needs a percent sign doubled if there are parameters, and single if there are none.
    escaped = quotes.replace("\\", "\\\\").replace("%", "\\0025")
    return f"U&'{escaped}'"


@dataclass(frozen=True, slots=True)
class Identity:
    """
    The statements that set the role, claims and schema of a caller; empty for the service itself.

    Args:
        local: SET LOCAL statements, for the rest of the transaction.
        session: SET statements, for the session until it is cleaned.
        undo: Statements that reset what `local` sets, but for the `search_path`.
    """

    local: str = ""
    session: str = ""
    undo: str = ""


OWN_IDENTITY = Identity()
"""The identity of the service itself."""


def identity_of(role: str, claims: Mapping[str, str | None], schema: str = "") -> Identity:
    """
    Return the identity of a role.

    Args:
        role: Database role; "" for the service's own.
        claims: Claims by name, which policies read with `current_setting('rowcast.<name>', true)`;
            None is set as an empty string.
        schema: Schema to put first in the `search_path`, if any.
    """
    claimed = {f"rowcast.{name}": value or "" for name, value in claims.items()}
    settings = {"role": role, **claimed} if role else claimed

    def statements(local: bool) -> str:
        path = prepend_schema(schema, local) if schema else ""
        return set_statements(settings, local) + path

    undo = "".join(f"SET LOCAL {name} TO DEFAULT;" for name in settings)
    return Identity(statements(True), statements(False), undo)


Dsn = Callable[[], str]
"""Returns the DSN; called at every connect and every `recheck` seconds, as it may change."""

RECHECK = 2.0
"""Seconds between two checks of a session whether the DSN has changed."""
RETRY = 10.0
"""Seconds until the next attempt to use a changed DSN with which no session could be opened."""
CONNECT_ERRORS = (psycopg2.Error, OSError, ValueError)
"""Errors of an attempt to open a session; a ValueError while the DSN's file is written."""

REQUIRED = {
    "client_encoding": "UTF8",
    "timezone": "UTC",
    "datestyle": "ISO,MDY",
    "intervalstyle": "iso_8601",
    "bytea_output": "hex",
    "extra_float_digits": "1",  # 0 rounds to 15 digits
    "xmlbinary": "base64",
    "xmloption": "content",
    "array_nulls": "on",  # off: NULL in the text of an array is a string
    "transform_null_equals": "off",  # on: "= NULL" means IS NULL
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "quote_all_identifiers": "off",  # on: values of regclass and the like are quoted
    "row_security": "on",  # off: a query whose rows a policy would filter fails
    "exit_on_error": "off",  # on: any error ends the session
}
"""
Settings on which the codec and the service's statements rely.

They override those of the connection string, the environment, the role and the database.
"""

CORRECTED = REQUIRED | {
    "idle_session_timeout": "0",  # else sessions end that wait, such as the listener's
}
"""Settings that are corrected in a new session: PostgreSQL 13 refuses `options` with one that it does not have."""

CONNECT_TIMEOUT, MIN_HOST_TIMEOUT = 5, 2
"""Seconds to connect in, and the minimum for each of several hosts."""

DEFAULTS = {
    "application_name": "rowcast",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""Parameters of libpq that the connection string may override."""


@dataclass(frozen=True)
class SessionSettings:
    """
    Settings and limits of every session.

    Args:
        statement_timeout: Maximum seconds of a statement; 0 means no limit. A lower limit of the
            connection string takes precedence.
        lock_timeout: Maximum seconds that a statement waits for a lock.
        idle_in_transaction_session_timeout: Maximum seconds that a transaction may be idle.
        schemas: Schemas in front of the `search_path` of the service's role, for unqualified
            names inside functions, triggers and policies.
        grace: Seconds beyond a limit until a cancel is sent, and from then until the connection
            is given up.
        slow_statement: Seconds from which a statement is logged as slow.
    """

    statement_timeout: float = 30.0
    lock_timeout: float = 10.0
    idle_in_transaction_session_timeout: float = 60.0
    schemas: tuple[str, ...] = ()
    grace: float = 3.0
    slow_statement: float = math.inf

    def limits(self) -> dict[str, str]:
        """Return the limits as server settings, in milliseconds."""
        limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        return {name: str(round(getattr(self, name) * 1000)) for name in limits}

    def path(self, given: str) -> str:
        """Return a `search_path` with `schemas` in front of the given one."""
        return ", ".join([*map(quoted, self.schemas), *([given] if given else [])])

    def cap(self, limit: float) -> str:
        """Return the SET of `statement_timeout` for a session whose own is longer or none, else ""."""
        longer = self.statement_timeout and not 0 < limit <= self.statement_timeout
        own = {"statement_timeout": self.limits()["statement_timeout"]}
        return set_statements(own, local=False) if longer else ""

    def options(self, given: str = "") -> str:
        """Return the `options` of the connection, around those of the connection string."""
        # Of two flags for one setting the last one counts: the string can override limits only.
        parts = [_flags(self.limits()), given, _flags(REQUIRED)]
        return " ".join(part for part in parts if part)

    def statements(self) -> str:
        """Return the SET LOCAL statements of all settings, for the beginning of a transaction."""
        return set_statements(self.limits() | REQUIRED)


LOG_AGAIN = 60.0
"""Seconds after which the cause of an outage is logged again."""


class Outage:
    """Decides which of the failures of repeated attempts are logged; for any thread."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}
        self._lock = threading.Lock()

    def is_news(self, cause: str, now: float) -> bool:
        """Return whether to log a failure: the first of its cause, and one every `LOG_AGAIN` seconds."""
        with self._lock:  # all workers of a pool fail at the same time
            if now < self._logged.get(cause, -math.inf) + LOG_AGAIN:
                return False
            self._logged[cause] = now
            return True

    def end(self) -> bool:
        """Forget the failures, because an attempt has succeeded; return whether any was logged."""
        with self._lock:
            logged, self._logged = bool(self._logged), {}
        return logged


class Sessions:
    """
    Opens sessions with the same settings; for threads that may block.

    Args:
        dsn: The DSN, or a function that returns it.
        settings: Settings of every session.
        recheck: Seconds between two checks of a session whether the DSN has changed.
    """

    log = Logger()

    def __init__(self, dsn: str | Dsn, settings: SessionSettings, recheck: float = RECHECK) -> None:
        self._dsn: Dsn = dsn if callable(dsn) else lambda: dsn
        self._settings = settings
        self._recheck = recheck
        self._newest = ""

    def open(self) -> PgConnection:
        """
        Open a session.

        Raises:
            psycopg2.Error, OSError, ValueError: No session can be opened now, or the DSN cannot be
                read, for instance while its file is being written.
        """
        dsn = self._dsn()
        connection = open_session(dsn, self._settings)
        connection.address = self._newest = dsn
        return connection

    def due(self, connection: PgConnection) -> bool:
        """Return whether `outdated` would compare the DSN now; does not block."""
        recent = time.monotonic() < connection.checked_at + self._recheck
        return not recent or connection.address != self._newest

    def outdated(self, connection: PgConnection) -> bool:
        """
        Return whether the DSN has changed since a session was opened, and the new one can be used.

        It is compared every `recheck` seconds, and at once if another session has the new one already:
        otherwise a caller might not find at the old server what it has just written at the new one.
        """
        if not self.due(connection):
            return False
        connection.checked_at = now = time.monotonic()
        try:
            dsn = self._dsn()
        except Exception:  # its file is being written: keep the session
            return False
        if dsn == connection.address:
            self._newest = dsn
        elif dsn != self._newest:
            try:
                # Before the old session is closed: while a password is changed, that still works.
                self.open().close()
            except CONNECT_ERRORS as error:
                cause = str(error).strip()
                self.log.warn("cannot use the new DATABASE_URL yet: {error}", error=cause)
                connection.checked_at = now + RETRY
                return False
        return dsn != connection.address


def open_session(dsn: str, settings: SessionSettings) -> PgConnection:
    """
    Open a session, in a thread that may block.

    Raises:
        psycopg2.Error: No session can be opened now.
    """
    # A parameter, because `client_encoding` of the URL or PGCLIENTENCODING overrides `options`.
    given = parse_dsn(dsn) | {"client_encoding": REQUIRED["client_encoding"]}
    options = settings.options(given.pop("options", ""))
    try:
        connection = _connect(given | {"options": options})
    except psycopg2.OperationalError as error:
        # PgBouncer's error for `options`, unless `ignore_startup_parameters` has it.
        if "unsupported startup parameter" not in str(error):
            raise
        connection = _connect(given)
    try:
        connection.grace = settings.grace
        connection.slow_after = settings.slow_statement
        # Without it psycopg2 would send BEGIN before a statement, in a round trip of its own.
        connection.autocommit = True
        backend, connection.single_use, path, limit, *found = connection.ask(SESSION_QUERY)
        # The process id that libpq knows is made up by a pooler.
        pooled = backend != connection.info.backend_pid
        capped = "" if pooled else settings.cap(limit)
        connection.time_limit = settings.statement_timeout if pooled or capped else limit
        connection.idle_limit = settings.idle_in_transaction_session_timeout
        path = settings.path(path)
        connection.path_statement = set_search_path(path)
        schemas = set_search_path(path, local=pooled) if settings.schemas else ""
        if pooled:
            connection.prepare(settings.statements() + schemas)
        else:
            connection.own_settings = _corrections(found) + capped + schemas
            if connection.own_settings:
                connection.command(connection.own_settings)
            connection.prepare()
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(parameters: dict[str, str]) -> PgConnection:
    chosen = DEFAULTS | parameters
    timeout = chosen.get("connect_timeout", "0")
    if timeout.startswith(("0", "-")):  # for libpq: no limit
        # libpq applies it to each host, so the timeouts of silent hosts add up.
        hosts = chosen.get("host", chosen.get("hostaddr", "")).count(",") + 1
        chosen["connect_timeout"] = str(max(MIN_HOST_TIMEOUT, CONNECT_TIMEOUT // hosts))
    return psycopg2.connect(make_dsn(**chosen), connection_factory=PgConnection)


SESSION_QUERY = (
    f"SELECT pg_catalog.pg_backend_pid(), ({KEEPS_STATE}), pg_catalog.current_setting('search_path'),"
    " EXTRACT(epoch FROM pg_catalog.current_setting('statement_timeout')"
    "::pg_catalog.interval)::pg_catalog.float8,"
    + ", ".join(
        f"coalesce(pg_catalog.current_setting('{name}', true), '{value}')"
        for name, value in CORRECTED.items()
    )
)
"""Run in each new session; the fourth column is its `statement_timeout` in seconds."""


def _corrections(found: list[str]) -> str:
    """
    Return the SET statements of required settings that differ.

    They can differ although `options` has them, because libpq sends PGTZ, PGDATESTYLE and the like last.

    Args:
        found: The session's values of the settings of `CORRECTED`, in their order.
    """
    # The server returns "ISO, MDY" for "ISO,MDY".
    given = (value.replace(" ", "") for value in found)
    wanted = zip(CORRECTED.items(), given, strict=True)
    changed = {name: value for (name, value), now in wanted if now != value}
    return set_statements(changed, local=False)


def _flags(values: dict[str, str]) -> str:
    return " ".join(f"-c {name}={value}" for name, value in values.items())
