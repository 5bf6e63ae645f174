"""
The revision of a database compared with the code's, and the upgrade to it.

This module is also a program: `python -m schema.revision` reads a request as JSON from its input, and writes
a report to its output. The service runs it as a child process, so that Alembic and SQLAlchemy take no memory
of the service.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg2
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from schema.database_url import PROJECT, EmbeddedFailed, InvalidUrl, Place, reason
from schema.seed import SeedRefused, sow

# Comment on Alembic's version table that marks it as this project's, and hides it from callers.
MARK = "Revision of rowcast's migrations\n@hidden"

FACTS = """
SELECT current_setting('server_version'), current_user::text,
       array_remove(ARRAY[
           CASE WHEN coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) THEN NULL
                ELSE 'SCHEMA public' END,
           CASE WHEN to_regnamespace('rowcast') IS NOT NULL
                  OR has_database_privilege(current_database(), 'CREATE') THEN NULL
                ELSE 'DATABASE ' || quote_ident(current_database()) END], NULL),
       least(
           current_setting('max_connections')::int
               - current_setting('superuser_reserved_connections')::int,
           (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
           (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database())
       ),
       (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname <> 'alembic_version'
           AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'rowcast')),
       to_regclass('alembic_version') IS NOT NULL,
       obj_description(to_regclass('alembic_version'))
"""


@dataclass(frozen=True)
class Facts:
    """
    Facts about a database.

    Args:
        server: Version of PostgreSQL.
        role: Role of the connection.
        closed: Schema and database in which migrations create objects and the role may not, as in GRANT.
        limit: Maximum number of connections of the role.
        relations: Number of relations, without Alembic's version table.
        versions: Revisions that the database is at.
        ours: Whether they are revisions of this project.
    """

    server: str
    role: str
    closed: tuple[str, ...]
    limit: int
    relations: int
    versions: tuple[str, ...]
    ours: bool

    @property
    def empty(self) -> bool:
        """Return whether the database has neither relations nor revisions."""
        return not self.relations and not self.versions


@dataclass(frozen=True)
class Report:
    """
    What the service needs to know of a database before it serves it.

    Args:
        problem: Why the database cannot be served, with the remedy; None if it can be.
        server: Version of PostgreSQL.
        limit: Maximum number of connections of the role.
        revision: Present revision; None for a database without this project's migrations.
        title: Title of that revision.
    """

    problem: str | None
    server: str = ""
    limit: int = 0
    revision: str | None = None
    title: str = ""


def inspect(
    place: Place, upgrade: bool = False, connections: int = 1, demo: bool | None = None
) -> Report:
    """
    Report on a database; upgrade it to the code's revision if asked.

    Args:
        place: Address of the database; the embedded server is started meanwhile if need be.
        upgrade: Whether to upgrade a database of this project to the code's revision.
        connections: Number of connections that the service needs.
        demo: Whether to migrate an empty database, and add demo rows; always so for the embedded one.
            None reports an empty database as a problem, so that the operator decides.
    """
    demo = True if place.embedded else demo
    config = Config(PROJECT / "alembic.ini", attributes={"configure_logging": False})
    scripts = ScriptDirectory.from_config(config)
    try:
        with place.running() as dsn:
            found = look(dsn, (script.revision for script in scripts.walk_revisions()))
            problem = _objection(found, scripts, upgrade, connections, place.embedded, demo)
            if problem is None and upgrade and (found.ours or (found.empty and demo)):
                config.attributes["place"] = Place(url=dsn)
                command.upgrade(config, "head")
                if found.empty:
                    sow(dsn)
                found = look(dsn, scripts.get_heads())
    except (EmbeddedFailed, InvalidUrl, CommandError, SeedRefused, OSError) as error:
        return Report(str(error))
    except psycopg2.OperationalError as error:
        return Report(reason(error))
    if not found.ours:
        return Report(problem, found.server, found.limit)
    revision = ", ".join(found.versions) or None
    script = scripts.get_revision(revision) if revision and problem is None else None
    title = script.doc.rstrip(".") if script else ""
    return Report(problem, found.server, found.limit, revision, title)


def look(dsn: str, known: Iterable[str]) -> Facts:
    """Read the facts about a database; `known` are this project's revisions."""
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute(FACTS)
            server, role, closed, limit, relations, versioned, mark = cursor.fetchone() or ()
            versions: tuple[str, ...] = ()
            if versioned:
                cursor.execute("SELECT version_num FROM alembic_version ORDER BY 1")
                versions = tuple(row[0] for row in cursor.fetchall())
    finally:
        connection.close()
    ours = mark == MARK or not set(versions).isdisjoint(known)
    return Facts(server.split()[0], role, tuple(closed), limit, relations, versions, ours)


def _objection(
    found: Facts,
    scripts: ScriptDirectory,
    upgrade: bool,
    connections: int,
    embedded: bool,
    demo: bool | None,
) -> str | None:
    heads = scripts.get_heads()
    at = ", ".join(found.versions) or "none"
    if len(heads) > 1:
        return f"the migrations have several heads ({', '.join(heads)}) → alembic merge heads"
    if connections > found.limit:
        return (
            f"{found.role} may open {found.limit} connections, {connections} are wanted"
            f" → ROWCAST_POOL_MAX={max(1, found.limit - 1)}"
        )
    if found.empty and embedded and not upgrade:
        return "the embedded database is empty → alembic upgrade head"
    if found.empty and upgrade and demo is None:
        return (
            "the database is empty → ROWCAST_DEMO=true for the tables of this project's migrations"
            " with some rows, ROWCAST_DEMO=false to serve it as it is"
        )
    if not found.ours and not (upgrade and found.empty and demo):
        return None  # without this project's migrations, it is served as it is
    if set(found.versions) - {script.revision for script in scripts.walk_revisions()}:
        return f"the database is at revision {at}, which this code does not know → update the code"
    if found.versions == tuple(heads):
        return None
    if not upgrade:
        return f"the database is at revision {at}, the code at {heads[0]} → alembic upgrade head"
    if found.closed:
        grants = "; ".join(f'GRANT CREATE ON {where} TO "{found.role}"' for where in found.closed)
        return f"{found.role} may not create tables → {grants}"
    return None


def answer(question: dict[str, Any]) -> Report:
    """Answer a request of the service: the fields of a Place, and the arguments of `inspect`."""
    file = question["file"]
    place = Place(
        url=question["url"],
        file=Path(file) if file else None,
        direct=question["direct"],
        state=Path(question["state"]),
    )
    return inspect(place, question["upgrade"], question["connections"], question["demo"])


if __name__ == "__main__":
    json.dump(asdict(answer(json.load(sys.stdin))), sys.stdout)
