"""Alembic on real databases: several hosts, concurrent migrations, and enums."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from psycopg2.extensions import make_dsn, parse_dsn
from sqlalchemy.dialects import postgresql

from schema.base import Base
from schema.database_url import Place, engine
from tests.conftest import HEAD, ROOT, execute, wait_until
from tests.wamp.programs import program

LOCK = 0x726F7763617374
"""What migrations hold, as migrations/env.py has it: other releases must find it the same."""
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@pytest.fixture
def moods(migrated: str) -> Iterator[sqlalchemy.Enum]:
    """Declare a table with an enum that has a label more than in the database."""
    execute(migrated, "CREATE TYPE mood AS ENUM ('sad', 'fine')")
    execute(migrated, "CREATE TABLE moods (id int PRIMARY KEY, mood mood NOT NULL)")
    mood = postgresql.ENUM("sad", "fine", "happy", name="mood")
    table = sqlalchemy.Table(
        "moods",
        Base.metadata,
        sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True, autoincrement=False),
        sqlalchemy.Column("mood", mood, nullable=False),
    )
    yield mood
    Base.metadata.remove(table)
    execute(migrated, "DROP TABLE moods; DROP TYPE mood")


def alembic(dsn: str) -> Config:
    """Return Alembic's configuration for a database."""
    attributes = {"place": Place(url=dsn), "configure_logging": False}
    return Config(ROOT / "alembic.ini", attributes=attributes)


def test_engine_for_several_hosts_connects_to_the_one_that_answers(
    dsn: str, tmp_path: Path
) -> None:
    """As libpq does."""
    parameters = parse_dsn(dsn)
    hosts, port = f"{tmp_path},{parameters['host']}", parameters.get("port", "5432")
    several = make_dsn(dsn, host=hosts, port=f"{port},{port}", target_session_attrs="read-write")
    with engine(Place(url=several).dsn()).connect() as connection:
        assert (
            connection.scalar(sqlalchemy.text("SELECT current_database()"))
            == (parameters["dbname"])
        )


def test_concurrent_migrations_are_serialized(dsn: str, tmp_path: Path) -> None:
    """The second one waits for the first, and then has nothing to do."""
    environ = {"DATABASE_URL": dsn, "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    upgrade = (sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), "upgrade", "head")
    holder = psycopg2.connect(dsn)
    try:
        with holder.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        with program(environ, *upgrade) as one, program(environ, *upgrade) as other:
            wait_until(
                lambda: execute(dsn, WAITING) == [(2,)] or not (one.running() and other.running()),
                60,
            )
            assert one.running()
            assert other.running()
            assert execute(dsn, "SELECT to_regclass('actions')") == [(None,)]
            holder.rollback()
            assert (one.ends(), other.ends()) == (0, 0), one.output + other.output
            assert (one.output + other.output).count("Running upgrade  -> 0001") == 1
    finally:
        holder.close()
    assert execute(dsn, "SELECT version_num FROM alembic_version") == [(HEAD,)]


WAITS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock'
   AND state_change < clock_timestamp() - interval '1 s'
"""


@pytest.mark.parametrize(
    ("limit", "lock"),
    [
        ("lock_timeout", f"SELECT pg_advisory_xact_lock({LOCK})"),
        ("statement_timeout", f"SELECT pg_advisory_xact_lock({LOCK})"),
        ("idle_in_transaction_session_timeout", "LOCK TABLE alembic_version"),
    ],
)
def test_limits_of_the_role_do_not_end_the_lock_of_migrations(
    migrated: str, tmp_path: Path, limit: str, lock: str
) -> None:
    """A migration waits for the lock, and holds it while it waits for something else, for longer."""
    environ = {"DATABASE_URL": make_dsn(migrated, options=f"-c {limit}=300ms")}
    upgrade = (sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), "upgrade", "head")
    with closing(psycopg2.connect(migrated)) as holder:
        with holder.cursor() as cursor:
            cursor.execute(lock)
        with program({**environ, "HOME": str(tmp_path)}, *upgrade) as migration:
            wait_until(
                lambda: execute(migrated, WAITS) == [(1,)] or not migration.running(),
                60,
                lambda: migration.output,
            )
            holder.rollback()
            assert migration.ends() == 0, migration.output


@pytest.mark.parametrize(
    ("encoding", "client"), [("LATIN1", ""), ("SQL_ASCII", ""), ("UTF8", "LATIN1")]
)
def test_database_of_any_encoding_is_migrated(
    dsn: str, monkeypatch: pytest.MonkeyPatch, encoding: str, client: str
) -> None:
    """Whatever encoding the environment has clients use."""
    if client:
        monkeypatch.setenv("PGCLIENTENCODING", client)
    elsewhere = make_dsn(dsn, dbname="postgres")
    execute(
        elsewhere,
        f"CREATE DATABASE encoded ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0",
    )
    try:
        encoded = make_dsn(dsn, dbname="encoded")
        command.upgrade(alembic(encoded), "head")
        command.check(alembic(encoded))
        assert execute(encoded, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    finally:
        execute(elsewhere, "DROP DATABASE encoded WITH (FORCE)")


@pytest.mark.usefixtures("moods")
def test_label_missing_from_an_enum_is_found_by_autogenerate(migrated: str) -> None:
    with pytest.raises(CommandError, match="happy"):
        command.check(alembic(migrated))
    execute(migrated, "ALTER TYPE mood ADD VALUE 'happy'")
    command.check(alembic(migrated))


def test_offline_sql_writes_a_percent_sign_once(dsn: str) -> None:
    """The SQL for psql has the text of the migration."""
    written = io.StringIO()
    config = alembic(dsn)
    config.output_buffer = written
    command.upgrade(config, "head", sql=True)
    assert "CHECK (path LIKE '/%')" in written.getvalue()
    assert "%%" not in written.getvalue()


MOODY = """
from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapped, mapped_column

from schema.base import Base


class Moody(Base):
    __tablename__ = "moodies"

    id: Mapped[int] = mapped_column(primary_key=True)
    mood: Mapped[str] = mapped_column(
        postgresql.ENUM({labels}, name="mood"), server_default={default}
    )
    share: Mapped[str] = mapped_column(sa.Text, server_default=sa.text("to_char(1, '9%')"))
    __table_args__ = (
        sa.CheckConstraint("share LIKE '%x'", name="share"),
        sa.Index("ix_moodies_e", sa.text("(share || '%')")),
        sa.Index("ix_moodies_w", "share", postgresql_where=sa.text("share LIKE '5%'")),
    )
"""
STEPS = [
    ("'sad', 'fine', 'happy'", "'happy'"),
    ("'sad', 'fine'", "'fine'"),
    ("'sad'", "sa.text(\"'sad'\")"),
]


def test_generated_revisions_run_up_and_down(dsn: str, tmp_path: Path) -> None:
    """With "%" in SQL texts, and labels of an enum that are dropped with the default that used them."""
    project = tmp_path / "project"
    for folder in ("schema", "migrations"):
        shutil.copytree(ROOT / folder, project / folder)
    shutil.copy(ROOT / "alembic.ini", project)
    environ = {"DATABASE_URL": dsn, "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    environ["PYTHONPATH"] = str(project)

    def run(*words: str) -> None:
        done = subprocess.run(
            (sys.executable, "-m", "alembic", *words),
            cwd=project,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("upgrade", "head")
    for number, (labels, default) in enumerate(STEPS):
        module = MOODY.format(labels=labels, default=default)
        (project / "schema" / "moody.py").write_text(module)
        run("revision", "--autogenerate", "-m", f"step {number}")
        run("upgrade", "head")
        run("check")
    assert execute(dsn, "SELECT enum_range(NULL::mood)::text") == [("{sad}",)]
    run("downgrade", "0001")
    run("upgrade", "head")
    run("check")
