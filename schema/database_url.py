"""
The address of the database.

It comes from `DATABASE_URL`, or from a file with such a URL, which is read again for every connection;
without either, it is the embedded server's. Only libpq parses URLs, because it knows all forms that
PostgreSQL accepts, which SQLAlchemy does not. SQLAlchemy gets a function that connects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from schema.embedded import Cluster, EmbeddedFailed

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = [
    "PROJECT",
    "Cluster",
    "EmbeddedFailed",
    "InvalidUrl",
    "Place",
    "engine",
    "here",
    "parse",
    "reason",
]

PROJECT = Path(__file__).resolve().parent.parent
STATE = PROJECT / ".rowcast"

# Defaults for what a URL does not set: with libpq's own, a dead server would be noticed after minutes.
DEFAULTS = {
    "fallback_application_name": "rowcast",
    "connect_timeout": "5",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}


SCHEME = re.compile(r"postgres(?:ql)?://")
HOST = re.compile(r"(\[[^\]@]*\]|[^:@#\[\]\s]*)(:\d*)?")
"""One host of a URL, with its port."""


CHECK = "check DATABASE_URL; psql with the same URL may say more"
CURES = [
    ("does not support SSL", "add ?sslmode=prefer to the URL, if the way to it is private"),
    ("certificate verify failed", "name its authority by ?sslrootcert=FILE (or =system)"),
    ("root certificate file|sslrootcert", "name the file of the authority by ?sslrootcert=FILE"),
    ("server certificate for|does not match host", "use the host name of the certificate"),
    ("certificate", "check sslmode, sslrootcert, sslcert and sslkey in the URL"),
    (
        # By default, libpq connects with SSL first, and says why that was refused.
        "pg_hba.conf.* SSL encryption",
        "allow this user, database and address in the server's pg_hba.conf",
    ),
    ("SSL|no encryption", "add ?sslmode=require to the URL"),
    ("pg_hba.conf", "allow this user, database and address in the server's pg_hba.conf"),
    ("could not translate host name", "check the host in DATABASE_URL"),
    ("Connection refused|No such file", "start the server, or check host and port"),
    ("due to lock timeout", "end the transactions that hold the lock, or raise lock_timeout"),
    ("due to statement timeout", "raise the role's statement_timeout"),
    ("deadlock detected|could not serialize", "try again"),
    ("No space left", "free space on the server"),
    ("timeout expired|timed out", "check host, port and firewall"),
    ("no password supplied", "add the password to the URL: postgresql://user:password@host/db"),
    ("authentication failed", "check user and password in DATABASE_URL"),
    (r'role "[^"]*" does not exist', "create the role, or check the user in DATABASE_URL"),
    (r'database "[^"]*" does not exist', "createdb it, or check the database in DATABASE_URL"),
    ("permission denied for database", "GRANT CONNECT ON DATABASE … to this user"),
    ("permission denied for schema", "GRANT CREATE, USAGE ON SCHEMA … to this user"),
    (
        "too many (connections|clients)|connection slots|connection limit",
        "lower ROWCAST_POOL_MAX, close other connections, or raise the server's limit",
    ),
    ("starting up|shutting down|recovery mode", "wait, and try again"),
    ("not accepting connections", "allow connections to this database, or use another"),
    ("read-only|hot standby", "use the primary's host, or target_session_attrs=read-write"),
    ("closed the connection|Connection reset", "check that PostgreSQL answers at host and port"),
]
"""Remedies for error messages of libpq or the server, by pattern; the first match counts."""


class InvalidUrl(ValueError):
    """A URL that libpq refuses; the message quotes nothing that may be secret."""


@dataclass(frozen=True)
class Place:
    """
    The settings that say where the database is.

    Args:
        url: URL or libpq connection string.
        file: File with a URL or connection string; read at each use.
        direct: Second URL, not through a pooler, for what needs a session of its own.
        state: Directory of the embedded server, which is used if neither `url` nor `file` is given.
    """

    url: str | None = field(default=None, repr=False)
    file: Path | None = None
    direct: str | None = field(default=None, repr=False)
    state: Path = STATE

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Place:
        """Read the settings from an environment, for programs other than the service."""
        file = environ.get("ROWCAST_DATABASE_URL_FILE")
        return cls(
            url=environ.get("DATABASE_URL") or None,
            file=Path(file) if file else None,
            direct=environ.get("ROWCAST_DIRECT_URL") or None,
            state=Path(environ.get("ROWCAST_STATE") or STATE).absolute(),
        )

    @property
    def embedded(self) -> bool:
        """Return whether the database is the embedded server's."""
        return self.url is None and self.file is None

    @property
    def cluster(self) -> Cluster:
        """The embedded server, running or not."""
        return Cluster(self.state)

    def dsn(self) -> str:
        """Return the libpq connection string, which is secret; call this for each connection."""
        if self.file is not None:
            try:
                url = self.file.read_text("utf-8")
            except UnicodeDecodeError:
                raise InvalidUrl("ROWCAST_DATABASE_URL_FILE is not a text in UTF-8") from None
            return _parsed("ROWCAST_DATABASE_URL_FILE", url)
        if self.url is not None:
            return _parsed("DATABASE_URL", self.url)
        return _string(self.cluster.parameters)

    def direct_dsn(self) -> str:
        """Return the connection string that avoids a pooler, for LISTEN and for migrations."""
        return self.dsn() if self.direct is None else _parsed("ROWCAST_DIRECT_URL", self.direct)

    @contextmanager
    def running(self) -> Iterator[str]:
        """
        Yield the direct connection string, with the database running until the body ends.

        If the embedded server is not running, it is started, and stopped at the end. Blocks.
        """
        if not self.embedded:
            yield self.direct_dsn()
            return
        with self.cluster.visit():
            yield self.direct_dsn()


def parse(url: str) -> dict[str, str]:
    """
    Parse a database URL or connection string, with libpq's own parser.

    Raises:
        InvalidUrl: libpq refuses it.
    """
    plain = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url.strip())
    if not plain:
        raise InvalidUrl("is empty")
    _refuse_stray_password(plain)
    try:
        parameters: dict[str, str] = parse_dsn(plain)
    except psycopg2.ProgrammingError as error:
        raise InvalidUrl(_complaint(str(error), plain)) from None
    if not parameters:
        raise InvalidUrl("is empty")
    return parameters


def _refuse_stray_password(url: str) -> None:
    """
    Raise InvalidUrl if libpq would read a part of the password as a host, port or database.

    libpq ends the password at the first "@", and finds no user if a "/" comes before that. Its messages would
    then quote the rest of the password ("could not translate host name …", "invalid port number: …").
    """
    scheme = SCHEME.match(url)
    if scheme is None:
        return
    rest = url[scheme.end() :]
    user, at, tail = rest.partition("@")
    if not at or "/" in user:
        tail = rest
    hosts, _, database = tail.partition("?")[0].partition("/")
    if "@" in database or not all(HOST.fullmatch(host) for host in hosts.split(",")):
        raise InvalidUrl(
            "has no host and port where they should be → percent-encode @ : / # in the password"
            " (%40 %3A %2F %23)"
        )


def engine(dsn: str) -> Engine:
    """Return an SQLAlchemy engine without a pool, over a libpq connection string."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    return create_engine(
        "postgresql+psycopg2://", creator=lambda: psycopg2.connect(dsn), poolclass=NullPool
    )


def reason(error: psycopg2.Error) -> str:
    """Return why the database could not be used, as one line that ends with the remedy."""
    said = str(error).strip().splitlines()
    first = re.sub(
        r"^connection to server (at|on) (.*?) failed: ", r"the database \1 \2: ", (said or ["?"])[0]
    )
    first = re.sub(r": (FATAL|ERROR):\s+", ": ", first)
    cure = next((cure for words, cure in CURES if re.search(words, str(error))), CHECK)
    return f"{first} → {cure}"


def _parsed(variable: str, url: str) -> str:
    """Return a URL as libpq's connection string; error messages name the variable."""
    try:
        return _string(parse(url))
    except InvalidUrl as error:
        raise InvalidUrl(f"{variable} {error}") from None


def _string(parameters: Mapping[str, str]) -> str:
    # Statements hold any character, and the encoding of the database or of PGCLIENTENCODING may not.
    return str(make_dsn(**{**DEFAULTS, **parameters, "client_encoding": "UTF8"}))


def _complaint(said: str, url: str) -> str:
    # libpq's other messages may quote the URL with its password, so they are not passed on. What libpq
    # takes as the name of a parameter may also be a part of a password.
    named = re.search(r'invalid (?:URI query parameter|connection option)[^"]*"(\w+)"', said)
    secret = "@" in url.partition("?")[2] if SCHEME.match(url) else "password" in url
    if named and not secret:
        return f'has the parameter "{named[1]}", which PostgreSQL does not know: remove it'
    return "is not a PostgreSQL URL (postgresql://user:password@host:5432/database)"


def here() -> Place:
    """Return the settings of this process's environment."""
    return Place.of(os.environ)
