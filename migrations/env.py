"""
How Alembic finds the database and the declared relations.

One migration at a time holds a lock, for a release and a second start may race; each runs
in a transaction of its own. The lock is one of a transaction, since a pooler in between
breaks those of a session, and so is held on a second connection.
"""

from __future__ import annotations

import logging.config
import pkgutil
from importlib import import_module
from typing import Any

import alembic_postgresql_enum  # noqa: F401  (teaches autogenerate the values of enums)
import psycopg2
from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

import schema
from schema.base import Base
from schema.database import EmbeddedFailed, InvalidUrl, Place, engine, here, reason
from schema.revision import MARK

# Any number, as long as it stays the same: "rowcast" in ASCII.
LOCK = 0x726F7763617374

# What a service hears when its catalog is to be read again, once the migration is committed.
CHANGED = "rowcast_schema"

PLUGINS = ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"]


def configure(**target: Any) -> None:
    """Tell Alembic what all its runs have in common."""
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
    """Mark the version table as ours, and tell running services that the catalog has changed."""
    quoted = MARK.replace("'", "''")
    ctx.execute(text(f"COMMENT ON TABLE {ctx.version_table} IS '{quoted}'"))
    ctx.execute(text(f"NOTIFY {CHANGED}"))


def offline() -> None:
    """Write the migrations as SQL; needs no database."""
    configure(dialect_name="postgresql", literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def online() -> None:
    """Migrate the database."""
    place: Place = context.config.attributes.get("place") or here()
    try:
        with place.running() as dsn, engine(dsn).connect() as lock:
            refuse_standby(lock)
            lock.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
            with engine(dsn).connect() as connection:
                configure(connection=connection)
                with context.begin_transaction():
                    context.run_migrations()
    except (EmbeddedFailed, InvalidUrl, OSError) as error:
        raise CommandError(str(error)) from error
    except psycopg2.OperationalError as error:
        raise CommandError(reason(error)) from error
    except DBAPIError as error:
        if isinstance(error.orig, psycopg2.OperationalError | psycopg2.ProgrammingError):
            raise CommandError(reason(error.orig)) from error
        raise


def refuse_standby(connection: Connection) -> None:
    """Refuse a server that takes no writes."""
    if connection.scalar(text("SELECT pg_is_in_recovery()")):
        raise CommandError("the database is a standby: migrate its primary")


if context.config.config_file_name and context.config.attributes.get("configure_logging", True):
    logging.config.fileConfig(context.config.config_file_name, disable_existing_loggers=False)

if context.is_offline_mode():
    offline()
else:
    online()
