"""
The settings: the environment, read once into one frozen value.

No other module reads the environment. Names without the prefix `ROWCAST_` are those of hosting platforms. The
message of a `ValueError` here is appended to the setting's name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from schema.database_url import PROJECT, InvalidUrl, Place, parse
from service.errors import clip

PORTS = {"rs": 8080, "rss": 8443, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """
    One address of a router.

    Args:
        url: The URL as it was set, for the log.
        scheme: "rs", "rss", "ws", "wss" or "unix".
        host: The host; "" for "unix".
        port: The TCP port; 0 for "unix".
        path: The path of the socket; "" for the other schemes.
    """

    url: str
    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def from_url(cls, url: str) -> Self:
        """
        Parse `ws://host:port/path`, `wss://`, `rs://host:port`, `rss://` or `unix:path`.

        Raises:
            ValueError: The URL has none of these forms.
        """
        scheme, _, rest = url.partition(":")
        path = rest.removeprefix("//")
        if scheme == "unix" and path:
            return cls(url, scheme, path=path)
        host, port = _place(url)
        if scheme not in PORTS or not host:
            raise ValueError("should be ws://, wss://, rs://, rss:// and a host, or unix:path")
        if "@" in url.partition("?")[0]:  # the log would show it, and it is not used to log in
            raise ValueError(
                "should have no user or password: set ROWCAST_AUTHID with ROWCAST_TICKET,"
                " or ROWCAST_KEY_FILE"
            )
        port = PORTS[scheme] if port is None else port
        if not 0 < port < 65536:
            raise ValueError("should have a port from 1 to 65535")
        return cls(url, scheme, host, port)


def _place(url: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "", None
    try:
        # urlsplit parses the port only at this access, and raises if it is wrong.
        return host, parts.port
    except ValueError:  # not a number, or too large
        return host, 0


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _is_database(value: SecretStr) -> SecretStr:
    try:
        parse(value.get_secret_value())
    except InvalidUrl as error:
        raise ValueError(str(error)) from None
    return value


def _is_file(path: Path) -> Path:
    try:
        if not path.is_file():
            raise ValueError("should be the path of a file that exists")
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"should be the path of a file: {error.strerror}") from None
    return path


def _is_router(urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        Address.from_url(url)
    return urls


def _is_uri(value: str) -> str:
    # WAMP's strict URI rules, which a router may be configured to enforce.
    if not re.fullmatch(r"[0-9a-z_]+(\.[0-9a-z_]+)*", value):
        raise ValueError("should be lower-case letters, digits and _, joined by dots")
    if value.split(".")[0] in ("wamp", "crossbar"):
        raise ValueError("is reserved by WAMP or Crossbar")
    return value


def _is_mapping(pairs: tuple[str, ...]) -> tuple[str, ...]:
    for pair in pairs:
        authrole, equals, role = pair.partition("=")
        if not (authrole.strip() and equals and role.strip()):
            raise ValueError("should be authrole=role, and more of them after commas")
    if len({pair.partition("=")[0].strip() for pair in pairs}) < len(pairs):
        raise ValueError("names an authrole twice")
    return pairs


Uri = Annotated[str, AfterValidator(_is_uri)]
# NoDecode, because pydantic-settings would parse the text of a tuple as JSON.
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
RouterUrls = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_is_router)
]
ReadFile = Annotated[Path, AfterValidator(_is_file)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_is_database)]
Pairs = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_is_mapping)]
# PostgreSQL takes limits in milliseconds, up to 2^31 - 1, and 0 means none.
Seconds = Annotated[float, Field(ge=0.001, le=2_147_483)]
Kept = Annotated[float, Field(ge=0.001, le=10**9)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Weight = Annotated[int, Field(ge=2**20, le=2**50)]


PREFIX = "ROWCAST_"
BARE = {"database_url": "DATABASE_URL", "port": "PORT"}
"""Environment variables without the prefix, by field."""
UNSHOWN = {"DATABASE_URL", "DATABASE_URL_FILE", "DIRECT_URL", "ROUTER_URL", "TICKET", "KEY_FILE"}
"""Fields whose values may be secrets, also those that were meant for another setting: no message has them."""
EXCLUSIVE = {"database_url_file": "database_url", "key_file": "ticket"}
"""Pairs of settings of which only one may be set."""


OTHER_NAMES = {
    "database_url": "URL DSN DB DBURL DATABASE POSTGRES POSTGRESURL POSTGRESQLURL PGURL DATABASEURI"
    " SQLALCHEMYURL SQLALCHEMYDATABASEURI",
    "database_url_file": "URLFILE DSNFILE DBURLFILE SECRETFILE",
    "direct_url": "DIRECTDATABASEURL MIGRATIONURL LISTENURL UNPOOLEDURL",
    "port": "HTTPPORT LISTENPORT WSPORT ROUTERPORT",
    "router_url": "ROUTER ROUTERS WAMP WAMPURL CROSSBARURL WSURL WEBSOCKETURL BROKERURL",
    "authid": "USER USERNAME LOGIN AUTHUSER PRINCIPAL",
    "ticket": "PASSWORD SECRET TOKEN AUTHTICKET",
    "key_file": "KEY PRIVATEKEY PRIVKEY CRYPTOSIGN KEYPATH",
    "roles": "ROLEMAP ROLEMAPPING AUTHROLES DBROLES",
    "anonymous": "ANONROLE DBANONROLE ANON ANONYMOUSROLE GUEST",
    "prefix": "URIPREFIX NAMESPACE TOPICPREFIX",
    "schemas": "SCHEMA DBSCHEMA DBSCHEMAS SEARCHPATH",
    "app": "APPS MODULE MODULES IMPORT IMPORTS INCLUDE PLUGINS EXTENSIONS PROCEDURES MODELS",
    "pool_max": "POOLSIZE POOL MAXCONNECTIONS CONNECTIONS DBPOOL MAXPOOL",
    "pool_timeout": "ACQUIRETIMEOUT CONNECTIONTIMEOUT DBPOOLACQUISITIONTIMEOUT WAIT",
    "statement_timeout": "TIMEOUT QUERYTIMEOUT CALLTIMEOUT",
    "slow_statement": "SLOW SLOWQUERY SLOWQUERIES SLOWLOG LOGMINDURATION LOGMINDURATIONSTATEMENT",
    "tx_idle_timeout": "IDLETIMEOUT",
    "changes_keep": "RETENTION CHANGESRETENTION LOGKEEP LOGRETENTION",
    "changes_poll": "POLL POLLINTERVAL INTERVAL",
    "max_rows": "LIMIT MAXLIMIT PAGESIZE DBMAXROWS ROWLIMIT",
    "max_watches_per_session": "MAXWATCHES WATCHES MAXSUBSCRIPTIONS SUBSCRIPTIONS LIVEQUERIES",
    "max_watch_rows": "WATCHROWS MAXWATCHED MAXLIVEROWS",
    "max_bytes": "MAXSIZE BYTELIMIT",
    "publish": "PUBLISHER PUBLISHING EVENTS TOPICS BROADCAST",
    "shared": "REPLICAS CLUSTER SCALE",
    "drain_timeout": "SHUTDOWNTIMEOUT STOPTIMEOUT GRACE GRACEPERIOD",
    "log_level": "LOG LOGGING VERBOSITY DEBUG",
    "state": "DATA DATADIR STATEDIR DATAPATH",
}
"""Names of settings in other programs, for hints; without the prefix and "_"."""


class InvalidSettings(ValueError):
    """
    The environment is invalid; the message has all problems, one on each line.

    Args:
        problems: A sentence for each problem.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Settings(BaseSettings):
    """All settings; `docs/settings.md` has a table of them."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix=PREFIX,
        env_ignore_empty=True,  # compose files and platforms pass unset variables as empty ones
        validate_by_name=True,
        hide_input_in_errors=True,  # the input may be a password
    )

    database_url: DatabaseUrl | None = Field(
        default=None,
        validation_alias="DATABASE_URL",
        description="URL of the database; unset: the embedded one",
    )
    database_url_file: ReadFile | None = Field(
        default=None,
        description="file with the URL of the database, read again at each new connection",
    )
    direct_url: DatabaseUrl | None = Field(
        default=None,
        description="URL of the database that bypasses a pooler, for LISTEN and migrations",
    )
    port: int = Field(
        default=8080,
        ge=1,
        le=65535,
        validation_alias="PORT",
        description="port of the embedded router",
    )
    router_url: RouterUrls = Field(
        default=(), description="URLs of your routers, comma separated; unset: the embedded router"
    )
    router_links: Names = Field(
        default=(),
        description="authroles of router links that are trusted to name the caller, comma separated",
    )
    realm: str = Field(default="realm1", min_length=1, description="the WAMP realm")
    authid: str | None = Field(
        default=None, description="authid with which the service logs in at the router"
    )
    ticket: SecretStr | None = Field(default=None, description="secret for ticket authentication")
    key_file: ReadFile | None = Field(
        default=None, description="file with the private key for cryptosign authentication"
    )
    roles: Pairs = Field(
        default=(),
        description="database roles of callers, as authrole=role, comma separated",
    )
    anonymous: str | None = Field(
        default=None, description="database role of callers whose authrole is not in ROLES"
    )
    prefix: Uri = Field(
        default="rowcast", description="prefix of the URIs of procedures and topics"
    )
    schemas: Names = Field(default=("public",), description="served schemas, comma separated")
    app: Names = Field(
        default=(),
        description="your modules with models and procedures, comma separated",
    )
    pool_max: Count = Field(
        default=5,
        description="connections for calls; four more, and half as many again, are for changes",
    )
    pool_timeout: Seconds = Field(default=5, description="seconds a call waits for a connection")
    statement_timeout: Seconds = Field(default=15, description="seconds a statement may run")
    slow_statement: Seconds = Field(
        default=1, description="seconds after which a statement is logged as slow"
    )
    lock_timeout: Seconds = Field(default=5, description="seconds a statement may wait for a lock")
    tx_idle_timeout: Seconds = Field(default=10, description="seconds a transaction may be idle")
    transaction_timeout: Seconds = Field(
        default=60, description="seconds that a transaction held open by a caller may last"
    )
    max_transactions: Count | None = Field(
        default=None, description="transactions held open by callers; unset: POOL_MAX less two"
    )
    max_transactions_per_session: Count = Field(
        default=2, description="transactions held open by one session"
    )
    idempotency_keep: Kept = Field(default=86_400, description="seconds an idempotency key is kept")
    changes_keep: Kept = Field(default=86_400, description="seconds the log of changes is kept")
    changes_keep_bytes: Weight = Field(
        default=2 * 2**30,
        description="approximate size in bytes up to which the log of changes is kept",
    )
    changes_max: Count = Field(
        default=10_000,
        description="rows in the log above which a transaction is published as a reset",
    )
    changes_poll: Seconds | None = Field(
        default=None,
        description="seconds between two polls for changes; unset: writers notify",
    )
    max_rows: Count = Field(default=1000, description="rows of a page")
    max_watches_per_session: Count = Field(
        default=100, description="queries that one session may watch"
    )
    max_watch_rows: Count = Field(default=10_000, description="rows of a query that is watched")
    # A message of RawSocket has at most 16 MiB, and a call whose result is larger is never answered.
    max_bytes: Annotated[int, Field(gt=0, le=15 * 1024 * 1024)] = Field(
        default=8 * 1024 * 1024, description="bytes in one result"
    )
    publish: Literal["subscribed", "always"] = Field(
        default="subscribed",
        description="which changes are published: those of relations with a subscriber, or all",
    )
    session_calls: Count = Field(default=10_000, description="calls of one session in flight")
    total_calls: Count = Field(default=50_000, description="calls of all sessions in flight")
    session_bytes: Weight = Field(
        default=32 * 2**20,
        description="bytes of arguments in flight of one session; and as many of results not taken",
    )
    total_bytes: Weight = Field(
        default=256 * 2**20, description="the same for all sessions together"
    )
    max_embed_depth: Count = Field(
        default=8, description="levels of embedded relations in one call"
    )
    max_filter_depth: Count = Field(default=16, description="levels of and, or, not in one filter")
    shared: bool = Field(default=False, description="whether several services share the procedures")
    drain_timeout: Seconds = Field(
        default=20, description="seconds that running calls get to end when the service stops"
    )
    explain: bool = Field(
        default=False,
        description="whether callers may call explain, whose plans show more than rows do",
    )
    log_level: Literal["debug", "info", "warn", "error", "critical"] = Field(
        default="info", description="lowest level that is logged"
    )
    demo: bool | None = Field(
        default=None,
        description="whether make run creates the demo tables in an empty database of yours",
    )
    state: Path = Field(
        default=PROJECT / ".rowcast",
        description="directory of the data and logs of the embedded parts",
    )
    crossbar: Path = Field(
        default=PROJECT / ".venv-router" / "bin" / "crossbar",
        description="program of the embedded router",
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, level: object) -> object:
        return level.strip().lower() if isinstance(level, str) else level

    @field_validator("schemas")
    @classmethod
    def _served(cls, schemas: tuple[str, ...]) -> tuple[str, ...]:
        if not schemas:
            raise ValueError("should name at least one schema")
        if "rowcast" in schemas:
            raise ValueError("may not name rowcast: the schema of the service's own tables")
        return schemas

    @field_validator("state", "crossbar")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.absolute()

    @field_validator("ticket")
    @classmethod
    def _named(cls, ticket: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if ticket is not None and not info.data.get("authid"):
            raise ValueError("needs ROWCAST_AUTHID, the name that goes with it")
        return ticket

    @field_validator("database_url_file", "key_file")
    @classmethod
    def _alone(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        other = EXCLUSIVE[str(info.field_name)]
        if file is not None and info.data.get(other) is not None:
            raise ValueError(f"and {variable(other)} are two answers to one question: unset one")
        return file

    @property
    def place(self) -> Place:
        """The address of the database."""
        return Place(
            url=_secret(self.database_url),
            file=self.database_url_file,
            direct=_secret(self.direct_url),
            state=self.state,
        )

    @property
    def database_roles(self) -> dict[str, str]:
        """The database roles by authrole."""
        pairs = (pair.partition("=") for pair in self.roles)
        return {authrole.strip(): role.strip() for authrole, _, role in pairs}

    @property
    def embedded_router(self) -> bool:
        """Return whether the router is the embedded one."""
        return not self.router_url

    def lines(self) -> Iterator[tuple[str, str, str]]:
        """Yield the name, value and source of each setting; secrets are hidden."""
        for field, value in self:
            given = field in self.model_fields_set
            yield variable(field), _shown(value), "environment" if given else "default"


def variable(field: str) -> str:
    """Return the environment variable of a field."""
    return BARE.get(field, PREFIX + field.upper())


KNOWN = {variable(field): field.upper() for field in Settings.model_fields}
"""The fields in upper case, by environment variable."""


def load() -> Settings:
    """
    Read the settings from the environment.

    Raises:
        InvalidSettings: With all problems.
    """
    # An unknown name is an error too, since the setting that was meant would silently keep its default.
    problems = list(_unknown())
    try:
        settings = Settings()
    except ValidationError as error:
        problems += [_sentence(dict(item)) for item in error.errors(include_url=False)]
    else:
        if settings.authid and settings.ticket is None and settings.key_file is None:
            # The router would be asked for an anonymous session, perhaps with fewer rights.
            problems.append("ROWCAST_AUTHID needs ROWCAST_TICKET or ROWCAST_KEY_FILE")
    if problems:
        raise InvalidSettings(problems)
    return settings


def _unknown() -> Iterator[str]:
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in KNOWN:
            meant = _meant(name)
            yield f"{name} is not a setting" + (f": did you mean {meant}?" if meant else "")


def _meant(name: str) -> str | None:
    """Return the setting that an unknown name probably means: a known synonym, or the nearest name."""
    words = name.removeprefix(PREFIX).replace("_", "")
    for field, others in OTHER_NAMES.items():
        if words in others.split():
            return variable(field)
    near = get_close_matches(words, [known.replace("_", "") for known in KNOWN.values()], 1)
    named = {known.replace("_", ""): name for name, known in KNOWN.items()}
    return named[near[0]] if near else None


def _sentence(error: dict[str, Any]) -> str:
    name = str(error["loc"][0])
    field = name if name.startswith(PREFIX) or name in BARE.values() else variable(name)
    words = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    sentence = f"{field} {words.split(', unable')[0]}"
    shown = KNOWN[field] not in UNSHOWN and field in os.environ
    return f"{sentence} (it is {clip(os.environ[field], 40)!r})" if shown else sentence


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()


def _shown(value: object) -> str:
    if value in (None, (), ""):
        return "-"
    return ",".join(value) if isinstance(value, tuple) else str(value)
