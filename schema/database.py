"""
Where the database is.

`DATABASE_URL`, or a file that holds such a URL and is read again at every connection, or
else the embedded server. libpq alone parses a URL: it knows every form that PostgreSQL
takes, which SQLAlchemy does not. SQLAlchemy is given a function that connects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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

# Added when a URL says nothing: a dead peer must not hold a connection for minutes.
DEFAULTS = {
    "fallback_application_name": "rowcast",
    "connect_timeout": "5",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}


class InvalidUrl(ValueError):
    """A URL that libpq does not take; its message quotes nothing that may be secret."""


@dataclass(frozen=True)
class Place:
    """
    Where the database is, as the settings say it.

    Args:
        url: A URL or libpq connection string.
        file: A file that holds one; read at each use.
        direct: A second URL past a pooler, for what needs a session of its own.
        state: Where the embedded server lives when neither `url` nor `file` is given.
    """

    url: str | None = None
    file: Path | None = None
    direct: str | None = None
    state: Path = STATE

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Place:
        """Read the place from an environment, for programs other than the service."""
        file = environ.get("ROWCAST_DATABASE_URL_FILE")
        return cls(
            url=environ.get("DATABASE_URL") or None,
            file=Path(file) if file else None,
            direct=environ.get("ROWCAST_DIRECT_URL") or None,
            state=Path(environ.get("ROWCAST_STATE") or STATE).absolute(),
        )

    @property
    def embedded(self) -> bool:
        """Whether the database is the embedded one."""
        return self.url is None and self.file is None

    @property
    def cluster(self) -> Cluster:
        """The embedded server, running or not."""
        return Cluster(self.state)

    def dsn(self) -> str:
        """Say where to connect, as libpq's connection string; secret, and to be asked for anew."""
        if self.file is not None:
            return _string(parse(self.file.read_text().strip()))
        if self.url is not None:
            return _string(parse(self.url))
        return _string(self.cluster.parameters)

    def direct_dsn(self) -> str:
        """Say where to connect past a pooler: for LISTEN and for migrations."""
        return self.dsn() if self.direct is None else _string(parse(self.direct))

    @contextmanager
    def running(self) -> Iterator[str]:
        """
        Have the database there for a while; gives the direct connection string.

        Starts the embedded server if nobody runs it, and stops it again. Blocks.
        """
        if not self.embedded:
            yield self.direct_dsn()
            return
        with self.cluster.visit():
            yield self.direct_dsn()


def parse(url: str) -> dict[str, str]:
    """
    Take a database URL or connection string apart, with libpq's own parser.

    Raises:
        InvalidUrl: libpq does not take it.
    """
    plain = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url)
    try:
        parameters: dict[str, str] = parse_dsn(plain)
    except psycopg2.ProgrammingError as error:
        raise InvalidUrl(_complaint(str(error))) from None
    if not parameters:
        raise InvalidUrl("is empty")
    return parameters


def engine(dsn: str) -> Engine:
    """Give SQLAlchemy's side an engine without a pool, over a libpq connection string."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    return create_engine(
        "postgresql+psycopg2://", creator=lambda: psycopg2.connect(dsn), poolclass=NullPool
    )


def reason(error: psycopg2.Error) -> str:
    """Say in one sentence why a connection failed, and what may help."""
    said = str(error).strip().splitlines()
    first = re.sub(
        r"^connection to server (at|on) (.*?) failed: ", r"the database \1 \2: ", (said or ["?"])[0]
    )
    if "does not support SSL" in first:
        return f"{first} → add ?sslmode=prefer to the URL, if the way to it is private"
    if "SSL" in first or "no encryption" in str(error):
        return f"{first} → add ?sslmode=require to the URL"
    return first


def _string(parameters: Mapping[str, str]) -> str:
    return str(make_dsn(**{**DEFAULTS, **parameters}))


def _complaint(said: str) -> str:
    # Any other message of libpq's may quote the URL, and with it the password.
    named = re.search(r'invalid (?:URI query parameter|connection option)[^"]*"(\w+)"', said)
    if named:
        return f'has the parameter "{named[1]}", which PostgreSQL does not know: remove it'
    return "is not a PostgreSQL URL (postgresql://user:password@host:5432/database)"


def here() -> Place:
    """Give the place that this process's environment names."""
    return Place.of(os.environ)
