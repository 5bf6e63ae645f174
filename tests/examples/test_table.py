"""
The table of the example: its files, copied into the project, migrate and agree.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.conftest import ROOT, execute
from tests.db.test_migrations_page import Project

EXAMPLE = ROOT / "examples" / "table"


def test_table_migrates_and_agrees_with_its_declaration(dsn: str, tmp_path: Path) -> None:
    project = Project(tmp_path, dsn)
    page = (EXAMPLE / "README.md").read_text()
    copied = re.findall(r"^cp -r (.*) \.$", page, re.M)[0].split()
    for each in copied:
        source = ROOT / each
        shutil.copytree(source, tmp_path / source.name, dirs_exist_ok=True)
    assert project.alembic("heads").split()[0] == "7c2f9d0a41be"
    project.alembic("upgrade", "head")
    project.alembic("check")
    execute(dsn, "INSERT INTO rooms (name, seats, updated_at) VALUES ('Ada', 12, '2020-01-01')")
    execute(dsn, "UPDATE rooms SET seats = 14")
    assert execute(dsn, "SELECT updated_at > '2020-01-02' FROM rooms") == [(True,)]
    project.alembic("downgrade", "0003")
    assert execute(dsn, "SELECT to_regclass('rooms')") == [(None,)]
