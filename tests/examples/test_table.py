"""
The table of the example: its files, copied into the project, migrate and agree.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, execute
from tests.db.test_migrations_page import Project

EXAMPLE = ROOT / "examples" / "table"


def copy(home: Path) -> str:
    """Copy the files into a project, as the README says; return the README."""
    page = (EXAMPLE / "README.md").read_text()
    copied = re.findall(r"^cp -r (.*) \.$", page, re.M)[0].split()
    for each in copied:
        source = ROOT / each
        shutil.copytree(source, home / source.name, dirs_exist_ok=True)
    return page


def test_table_migrates_and_agrees_with_its_declaration(dsn: str, tmp_path: Path) -> None:
    project = Project(tmp_path, dsn)
    copy(tmp_path)
    assert project.alembic("heads").split()[0] == "7c2f9d0a41be"
    project.alembic("upgrade", "head")
    project.alembic("check")
    execute(dsn, "INSERT INTO rooms (name, seats, updated_at) VALUES ('Ada', 12, '2020-01-01')")
    execute(dsn, "UPDATE rooms SET seats = 14")
    assert execute(dsn, "SELECT updated_at > '2020-01-02' FROM rooms") == [(True,)]
    project.alembic("downgrade", "0003")
    assert execute(dsn, "SELECT to_regclass('rooms')") == [(None,)]


def test_table_beside_a_migration_of_ones_own_migrates_as_the_readme_says(
    dsn: str, tmp_path: Path
) -> None:
    project = Project(tmp_path, dsn)
    page = copy(tmp_path)
    (name,) = re.findall(r"`down_revision` in the copied `(.*?)`", page)
    rooms = tmp_path / "migrations" / "versions" / name
    late = rooms.read_text()
    rooms.unlink()
    own = project.revise("-m", "own")
    rooms.write_text(late)
    (refusal,) = re.findall("`(Multiple .*?)`", page)
    with pytest.raises(AssertionError, match=refusal):
        project.alembic("upgrade", "head")
    revision = own.name.partition("_")[0]
    assert revision in project.alembic("heads")
    rooms.write_text(late.replace('down_revision = "0005"', f'down_revision = "{revision}"'))
    project.alembic("upgrade", "head")
    assert project.alembic("heads").split()[0] == "7c2f9d0a41be"
