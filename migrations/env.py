"""
Alembic's environment: the database and the declared tables.

A lock lets only one process migrate at a time, because a release and a second start may race. Each migration
runs in a transaction of its own. The lock is a transaction-level advisory lock, because session-level locks
do not work through a pooler; so a second connection holds it.
"""

from __future__ import annotations

import logging.config
import pkgutil
import re
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from importlib import import_module
from typing import Any

import psycopg2
import psycopg2.errors
from alembic import context
from alembic.operations.ops import MigrationScript
from alembic.util import CommandError
from alembic_postgresql_enum import TableReference  # teaches autogenerate the values of enums
from alembic_postgresql_enum.operations.sync_enum_values import SyncEnumValuesOp
from sqlalchemy import Connection, DefaultClause, text
from sqlalchemy.exc import DBAPIError

import schema
from schema.base import Base
from schema.changes import CATALOG
from schema.database_url import EmbeddedFailed, InvalidUrl, Place, engine, here, reason
from schema.revision import MARK

# Any number, as long as it stays the same: "rowcast" in ASCII.
LOCK = 0x726F7763617374

# The lock is held, and idle, as long as the migrations take; the limits of the role hold for these.
UNLIMITED = """
SELECT set_config(name, '0', true) FROM pg_settings
 WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout',
                'idle_in_transaction_session_timeout')
"""

REASONED = (psycopg2.OperationalError, psycopg2.errors.ReadOnlySqlTransaction)
EXISTS = (
    psycopg2.errors.DuplicateTable,
    psycopg2.errors.DuplicateObject,
    psycopg2.errors.DuplicateFunction,
)

PLUGINS = ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"]


def configure(**target: Any) -> None:
    """Configure Alembic with the options that online and offline runs share."""
    for module in pkgutil.iter_modules(schema.__path__, "schema."):
        import_module(module.name)
    context.configure(
        target_metadata=Base.metadata,
        compare_server_default=True,
        transaction_per_migration=True,
        autogenerate_plugins=PLUGINS,
        on_version_apply=mark,
        **target,
    )


def mark(ctx: Any, **_: Any) -> None:
    """Mark the version table as this project's, and notify running services of the changed catalog."""
    quoted = MARK.replace("'", "''")
    ctx.execute(text(f"COMMENT ON TABLE {ctx.version_table} IS '{quoted}'"))
    ctx.execute(text(f"NOTIFY {CATALOG}"))


def offline() -> None:
    """Print the migrations as SQL, without a database."""
    # psycopg2's parameter style would double every "%", also in statements without parameters.
    style = {"paramstyle": "named"}
    configure(dialect_name="postgresql", dialect_opts=style, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def without_partitions(connection: Connection) -> Callable[..., bool]:
    """Return an `include_object` that leaves out partitions, unless they are declared."""
    found = connection.scalars(text("SELECT relname FROM pg_class WHERE relispartition"))
    partitions = frozenset(found)

    def include(_: object, name: str, kind: str, reflected: bool, declared: object) -> bool:
        undeclared = kind == "table" and reflected and declared is None
        return not (undeclared and name in partitions)

    return include


def compare_single_percents() -> None:
    """
    Make autogenerate compare and write "%" undoubled.

    For psycopg2's parameters ("%s") SQLAlchemy doubles each "%", also in what Alembic compares and writes to
    migrations (`sa.text("'50%%'")`), where it would be doubled again. Executed statements are not affected:
    they are compiled for the connection's own dialect.
    """
    running = context.get_context()
    single = copy(running.dialect)
    single.paramstyle = "named"
    single.identifier_preparer = single.preparer(single)
    running.dialect = running.impl.dialect = single


def spell_defaults(_context: Any, _revision: Any, directives: list[MigrationScript]) -> None:
    """
    Write the default of a column whose enum loses a label as SQL.

    alembic-postgresql-enum 1.11 writes `DefaultClause('…')`, which migrations do not import, if the default
    changes in the same revision.
    """
    for script in directives:
        for ops in (script.upgrade_ops, script.downgrade_ops):
            for op in ops.ops if ops else ():
                if isinstance(op, SyncEnumValuesOp):
                    op.affected_columns = [
                        replace(column, existing_server_default=_spelled(op, column))
                        for column in op.affected_columns
                    ]


def _spelled(op: SyncEnumValuesOp, column: TableReference) -> str | None:
    default: Any = column.existing_server_default
    if not isinstance(default, DefaultClause):
        return default  # already SQL, from the database
    if isinstance(default.arg, str):
        sql = "'" + default.arg.replace("'", "''") + "'"
    else:
        sql = str(default.arg.compile(dialect=context.get_context().dialect))
    return sql if "::" in sql else f"{sql}::{op.name}"  # the library looks for the "::"


def online() -> None:
    """Migrate the database."""
    place: Place = context.config.attributes.get("place") or here()
    role = "?"
    try:
        with place.running() as dsn, engine(dsn).connect() as lock:
            refuse_standby(lock)
            role = lock.scalar(text("SELECT current_user")) or role
            lock.execute(text(UNLIMITED))
            lock.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
            with engine(dsn).connect() as connection:
                configure(
                    connection=connection,
                    process_revision_directives=spell_defaults,
                    # Asked elsewhere: in a transaction begun before, Alembic would commit no migration.
                    include_object=without_partitions(lock),
                )
                compare_single_percents()
                with context.begin_transaction():
                    context.run_migrations()
    except (EmbeddedFailed, InvalidUrl, OSError) as error:
        raise CommandError(str(error)) from error
    except psycopg2.OperationalError as error:
        raise CommandError(reason(error)) from error
    except DBAPIError as error:
        if isinstance(error.orig, REASONED):
            raise CommandError(reason(error.orig)) from error
        if isinstance(error.orig, psycopg2.ProgrammingError):
            raise CommandError(refusal(error.orig, role)) from error
        raise


def refusal(error: psycopg2.ProgrammingError, role: str) -> str:
    """Return why the server refused a migration, with the remedy if it is known."""
    said = str(error).strip().splitlines()[0]
    if isinstance(error, EXISTS):
        return (
            f"{said}, and no migration of ours made it → start the service without a migration,"
            " which serves the database as it is; or, if it has all that a revision makes,"
            " alembic stamp REVISION (or head)"
        )
    if isinstance(error, psycopg2.errors.InvalidSchemaName):
        return f'{said} → ALTER ROLE "{role}" SET search_path = public'
    if isinstance(error, psycopg2.errors.InsufficientPrivilege):
        home = re.search(r"(schema|database) (.+)$", said)
        if home:
            return f'{said} → GRANT CREATE ON {home[1].upper()} {home[2]} TO "{role}"'
        return f'{said} → migrate as the owner, or grant "{role}" the right'
    return said


def refuse_standby(connection: Connection) -> None:
    """Raise an error if the server is a standby, which accepts no writes."""
    if connection.scalar(text("SELECT pg_is_in_recovery()")):
        raise CommandError("the database is a standby: migrate its primary")


if context.config.config_file_name and context.config.attributes.get("configure_logging", True):
    logging.config.fileConfig(context.config.config_file_name, disable_existing_loggers=False)

if context.is_offline_mode():
    offline()
else:
    online()
