"""
Opening a session: its settings, and as whom its statements run.

Directly, settings travel as `options` of the connection string, before the first round
trip. A transaction pooler refuses those or drops them, and hands the server to another
client after each transaction: there they are SET LOCAL in every transaction.

A role and what is known of the caller are set for one transaction alone, by words that travel in
front of a statement. A message of several statements is a transaction by itself, so a single
read under a role is still one round trip. What ends its transaction itself, as a procedure can,
has them set for the session for as long as it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from service.db.connection import KEEPS_STATE, PgConnection
from service.sql.statement import quoted


def set_statements(settings: Mapping[str, str], local: bool = True) -> str:
    """
    Return the statements that set settings.

    Args:
        settings: Names, which are ours, and values.
        local: Whether they hold for the transaction, rather than for the session.

    Returns:
        Statements with their semicolons, without any percent sign, so that psycopg2 takes
        them for plain text with and without parameters. They are SET, which costs PostgreSQL
        a third less than a SELECT of `set_config` (`bench/roles.py`).
    """
    scope = "SET LOCAL" if local else "SET"
    return "".join(f"{scope} {name}={_literal(value)};" for name, value in settings.items())


def preferred(schema: str, local: bool = True) -> str:
    """Return the statement that puts a schema first in the `search_path`."""
    return _searched(
        f"{_literal(quoted(schema) + ', ')}||pg_catalog.current_setting('search_path')", local
    )


def searched(path: str, local: bool = True) -> str:
    """Return the statement that sets the `search_path`, a list of quoted schemas."""
    return _searched(_literal(path), local)


def _searched(path: str, local: bool) -> str:
    """Return the statement; SET would take a list in one string for a single name."""
    return f"SELECT pg_catalog.set_config('search_path',{path},{'true' if local else 'false'});"


def _literal(text: str) -> str:
    """Quote a text; `standard_conforming_strings` is on in every session."""
    # NUL and lone surrogates of a claim would raise in the worker, and not as psycopg2's error.
    clean = text.replace("\0", "").encode("utf-8", "replace").decode().replace("'", "''")
    if "%" not in clean:
        return f"'{clean}'"
    # psycopg2 wants a percent sign doubled where there are parameters, and as it is where not.
    escaped = clean.replace("\\", "\\\\").replace("%", "\\0025")
    return f"U&'{escaped}'"


@dataclass(frozen=True, slots=True)
class Identity:
    """
    Statements that set the role and claims of a caller; "" for the service itself.

    Args:
        words: For what follows in the transaction.
        session: For what follows in the session, until it is cleaned.
        undo: Takes `words` back for the rest of the transaction, less the `search_path`.
    """

    words: str = ""
    session: str = ""
    undo: str = ""


OWN_IDENTITY = Identity()
"""The service itself."""


def identity_of(role: str, claims: Mapping[str, str | None], schema: str = "") -> Identity:
    """
    Return the identity of a role.

    Args:
        role: Of the database; "" for the service's own.
        claims: What policies may ask for with `current_setting('rowcast.<name>', true)`;
            one that is None is set to the empty string.
        schema: Where unqualified names are looked for first, if not where the session does.
    """
    claimed = {f"rowcast.{name}": value or "" for name, value in claims.items()}
    settings = {"role": role, **claimed} if role else claimed

    def words(local: bool) -> str:
        found = set_statements(settings, local) if settings else ""
        return found + (preferred(schema, local) if schema else "")

    undo = "".join(f"SET LOCAL {name} TO DEFAULT;" for name in settings)
    return Identity(words(True), words(False), undo)


Dsn = Callable[[], str]
"""Where the database is, asked again at every connect and now and then, for credentials may change."""

REQUIRED = {
    "client_encoding": "UTF8",
    "timezone": "UTC",
    "datestyle": "ISO,MDY",
    "intervalstyle": "iso_8601",
    "bytea_output": "hex",
    "extra_float_digits": "1",  # 0 rounds to 15 digits
    "xmlbinary": "base64",
    "xmloption": "content",
    "array_nulls": "on",  # off: NULL in an array's text is the word
    "transform_null_equals": "off",  # on: "= NULL" means IS NULL
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "quote_all_identifiers": "off",  # on: regclass and the like come in quotes
    "row_security": "on",  # off: what a policy would filter is refused
    "exit_on_error": "off",  # on: any error ends the session
}
"""
What the value codec and our statements rely on.

It holds whatever the connection string, the environment, the role or the database say.
"""

CONNECT_TIMEOUT, MIN_HOST_TIMEOUT = 5, 2
"""Seconds in which a session should stand, and those that each of several hosts gets at least."""

DEFAULTS = {
    "application_name": "rowcast",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""Parameters of libpq that hold unless the connection string has its own."""


@dataclass(frozen=True)
class SessionSettings:
    """
    What the server keeps for every session of ours.

    Args:
        statement_timeout: Seconds that a statement may take; 0 means no limit. What the connection
            string says counts if it is less.
        lock_timeout: Seconds that a statement may wait for a lock.
        idle_in_transaction_session_timeout: Seconds that a transaction may lie idle.
        schemas: Where unqualified names inside of functions, triggers and policies are looked
            for, before the places that the database itself has for our role.
        grace: Seconds that a server gets beyond its limits, and then again to heed a cancel.
        slow_statement: Seconds from which on a statement is logged.
    """

    statement_timeout: float = 30.0
    lock_timeout: float = 10.0
    idle_in_transaction_session_timeout: float = 60.0
    schemas: tuple[str, ...] = ()
    grace: float = 3.0
    slow_statement: float = math.inf

    def limits(self) -> dict[str, str]:
        """Return the limits as the server takes them, in milliseconds."""
        limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        return {name: str(round(getattr(self, name) * 1000)) for name in limits}

    def path(self, given: str) -> str:
        """Return a `search_path` with our schemas before those that are given."""
        return ", ".join([*map(quoted, self.schemas), *([given] if given else [])])

    def cap_words(self, limit: float) -> str:
        """Return the statement for our timeout in a session that has a longer one, or none; else ""."""
        longer = self.statement_timeout and not 0 < limit <= self.statement_timeout
        ours = {"statement_timeout": self.limits()["statement_timeout"]}
        return set_statements(ours, local=False) if longer else ""

    def options(self, given: str = "") -> str:
        """Return all settings for `options`, around those that the connection string has."""
        # Of two flags for one setting the last one counts: the URL has its way with limits alone.
        parts = [_flags(self.limits()), given, _flags(REQUIRED)]
        return " ".join(part for part in parts if part)

    def words(self) -> str:
        """Return the statements for all settings, for the beginning of a transaction."""
        every = self.limits() | REQUIRED
        return set_statements(every)


class Sessions:
    """
    Where the sessions of a pool come from; for threads that may wait.

    Args:
        dsn: Asked at every connect, and now and then in between.
        settings: Of every session.
    """

    def __init__(self, dsn: str | Dsn, settings: SessionSettings) -> None:
        self._dsn: Dsn = dsn if callable(dsn) else lambda: dsn
        self._settings = settings

    def open(self) -> PgConnection:
        """
        Connect.

        Raises:
            psycopg2.Error, OSError, ValueError: No session can be opened now, or the DSN
                cannot be read, as while a file is being written.
        """
        dsn = self._dsn()
        connection = open_session(dsn, self._settings)
        connection.address = dsn
        return connection

    def outdated(self, connection: PgConnection) -> bool:
        """Return whether the DSN has changed since the session was opened."""
        try:
            return self._dsn() != connection.address
        except Exception:  # its file is being written: keep the session
            return False


def open_session(dsn: str, settings: SessionSettings) -> PgConnection:
    """
    Connect, in a thread that may wait.

    Raises:
        psycopg2.Error: No session can be opened there now.
    """
    # As a parameter: one in the URL, or PGCLIENTENCODING, would go over that in `options`.
    given = parse_dsn(dsn) | {"client_encoding": REQUIRED["client_encoding"]}
    options = settings.options(given.pop("options", ""))
    try:
        connection = _connect(given | {"options": options})
    except psycopg2.OperationalError as error:
        # What PgBouncer says of `options`, unless it is configured to ignore them.
        if "unsupported startup parameter" not in str(error):
            raise
        connection = _connect(given)
    try:
        connection.grace = settings.grace
        connection.slow_after = settings.slow_statement
        connection.autocommit = True
        backend, connection.single_use, path, limit, *found = connection.ask(SESSION_QUERY)
        # a pooler makes up the process id that libpq has
        pooled = backend != connection.info.backend_pid
        capped = "" if pooled else settings.cap_words(limit)
        connection.time_limit = settings.statement_timeout if pooled or capped else limit
        connection.idle_limit = settings.idle_in_transaction_session_timeout
        path = settings.path(path)
        connection.path_words = searched(path)
        words = searched(path, local=pooled) if settings.schemas else ""
        if pooled:
            connection.prepare(settings.words() + words)
        else:
            connection.own_settings = _corrections(found) + capped + words
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
    if timeout.startswith(("0", "-")):  # to libpq, for ever
        # libpq counts it for each host anew: silent ones before the one that answers add up.
        hosts = chosen.get("host", chosen.get("hostaddr", "")).count(",") + 1
        chosen["connect_timeout"] = str(max(MIN_HOST_TIMEOUT, CONNECT_TIMEOUT // hosts))
    return psycopg2.connect(make_dsn(**chosen), connection_factory=PgConnection)


SESSION_QUERY = (
    f"SELECT pg_catalog.pg_backend_pid(), ({KEEPS_STATE}), pg_catalog.current_setting('search_path'),"
    " EXTRACT(epoch FROM pg_catalog.current_setting('statement_timeout')"
    "::pg_catalog.interval)::pg_catalog.float8,"
    + ", ".join(f"pg_catalog.current_setting('{name}')" for name in REQUIRED)
)
"""Asked of a new session; the fourth column is its `statement_timeout` in seconds."""


def _corrections(found: list[str]) -> str:
    """
    Return statements for required settings that differ: libpq sends PGTZ and the like last.

    Args:
        found: The values of the settings of `REQUIRED`.
    """
    # The server tells "ISO, MDY" where it was given "ISO,MDY".
    given = (value.replace(" ", "") for value in found)
    wanted = zip(REQUIRED.items(), given, strict=True)
    changed = {name: value for (name, value), now in wanted if now != value}
    return set_statements(changed, local=False)


def _flags(values: dict[str, str]) -> str:
    return " ".join(f"-c {name}={value}" for name, value in values.items())
