"""The snippets of docs/migrations.md run as the page says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, execute
from tests.test_docs import DOCS, code

BY_HAND, FIELD, TABLE, TRIGGER, APART = code(DOCS / "migrations.md", "python")
(TRIGGER_BY_NAME,) = code(DOCS / "migrations.md", "sql")

EVENTS = """
import enum

from sqlalchemy.orm import Mapped, mapped_column

from schema.base import Base


class Kind(enum.Enum):
    begun = "begun"
    ended = "ended"


class Event(Base):
    __tablename__ = "events"
    __table_args__ = {"postgresql_partition_by": "RANGE (year)"}

    year: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[Kind]
"""
PARTITIONS = """
def upgrade() -> None:
    op.execute("CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM (2026) TO (2027)")
    op.execute("CREATE TABLE events_rest PARTITION OF events DEFAULT")


def downgrade() -> None:
    op.execute("DROP TABLE events_2026, events_rest")
"""


class Project:
    """A copy of the files for migrations, with a database of its own."""

    def __init__(self, home: Path, dsn: str) -> None:
        self.home = home
        self._dsn = dsn
        kept = shutil.ignore_patterns("__pycache__")
        for name in ("schema", "migrations"):
            shutil.copytree(ROOT / name, home / name, ignore=kept)
        shutil.copy(ROOT / "alembic.ini", home)

    def alembic(self, *words: str) -> str:
        """Run alembic; return its output."""
        environ = {"DATABASE_URL": self._dsn, "HOME": str(self.home), "PATH": os.environ["PATH"]}
        found = subprocess.run(
            [sys.executable, "-m", "alembic", *words],
            cwd=self.home,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout + found.stderr

    def revise(self, *words: str) -> Path:
        """Generate a revision; return its file."""
        before = set((self.home / "migrations/versions").glob("*.py"))
        self.alembic("revision", *words)
        (made,) = set((self.home / "migrations/versions").glob("*.py")) - before
        return made

    def write(self, revision: Path, snippet: str) -> None:
        """Replace the functions of an empty revision with a snippet."""
        head, mark, _ = revision.read_text().partition("def upgrade")
        assert mark
        imports, _, functions = snippet.partition("def upgrade")
        assert set(imports.split("\n")) <= set(head.split("\n")), "a revision imports these"
        revision.write_text(f"{head}def upgrade{functions}")


def test_migrations_page_snippets_migrate_and_agree_with_the_declarations(
    dsn: str, tmp_path: Path
) -> None:
    project = Project(tmp_path, dsn)
    project.alembic("upgrade", "head")

    by_hand = project.revise("-m", "add a due date to actions")
    project.write(by_hand, BY_HAND)
    project.alembic("upgrade", "head")
    declared = project.home / "schema/action.py"
    imports, _, rest = FIELD.partition("class Action")
    field = rest.partition("...  # the existing columns\n")[2]
    text = declared.read_text().replace("\nfrom sqlalchemy", f"\n{imports}\nfrom sqlalchemy", 1)
    declared.write_text(text + field)
    project.alembic("check")

    (project.home / "schema/depot.py").write_text(TABLE)
    generated = project.revise("--autogenerate", "-m", "add depots")
    imported, _, trigger = TRIGGER.partition("\n\n")
    text = generated.read_text()
    assert imported in text
    head, mark, tail = text.partition("\n\n\ndef downgrade")
    step = "".join(f"\n    {line}" for line in trigger.strip().splitlines())
    generated.write_text(f"{head}{step}{mark}{tail}")
    project.alembic("upgrade", "head")
    project.alembic("check")
    execute(dsn, "INSERT INTO depots (name, updated_at) VALUES ('north', '2020-01-01')")
    execute(dsn, "UPDATE depots SET name = 'south'")
    assert execute(dsn, "SELECT updated_at > '2020-01-02' FROM depots") == [(True,)]

    generated = "DROP TRIGGER touch ON depots; ALTER TABLE depots ADD places int"
    execute(dsn, f"{generated}, ADD label text GENERATED ALWAYS AS (upper(name)) STORED")
    execute(dsn, TRIGGER_BY_NAME)
    execute(dsn, "UPDATE depots SET updated_at = '2020-01-01'")
    assert execute(dsn, "SELECT updated_at < '2020-01-02' FROM depots") == [(True,)]
    execute(dsn, "UPDATE depots SET places = 3")
    assert execute(dsn, "SELECT updated_at > '2020-01-02' FROM depots") == [(True,)]

    apart = project.revise("-m", "index the status")
    project.write(apart, APART)
    project.alembic("upgrade", "head")
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_actions_status'::regclass"
    assert execute(dsn, valid) == [(True,)]

    project.alembic("downgrade", "0003")
    left = "SELECT to_regclass('depots'), to_regclass('ix_actions_status')"
    assert execute(dsn, left) == [(None, None)]
    due = (
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'actions'::regclass AND attname = 'due'"
    )
    assert execute(dsn, due) == [(0,)]
    project.alembic("upgrade", "head")


def test_partitions_written_by_hand_are_ignored_by_autogenerate(dsn: str, tmp_path: Path) -> None:
    """A partition with a class is compared. The type of an enum is dropped by what autogenerate writes."""
    execute(dsn, "DROP SCHEMA IF EXISTS public, rowcast CASCADE; CREATE SCHEMA public")
    project = Project(tmp_path, dsn)
    project.alembic("upgrade", "head")
    declared = project.home / "schema/event.py"
    declared.write_text(EVENTS)
    project.revise("--autogenerate", "-m", "add events")
    project.alembic("upgrade", "head")
    project.write(project.revise("-m", "add partitions"), PARTITIONS)
    project.alembic("upgrade", "head")
    project.alembic("check")

    rest = (
        EVENTS[EVENTS.index("class Event") :]
        .replace("Event", "Rest")
        .replace("events", "events_rest")
    )
    rest = rest.replace("__table_args__", "_no_args")
    declared.write_text(f"{EVENTS}\n\n{rest}")
    project.alembic("check")

    project.alembic("downgrade", "0003")
    assert execute(dsn, "SELECT to_regclass('events'), to_regtype('kind')") == [(None, None)]
