"""
The house stands as it was drawn: who may import whom, and how large a module may be.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 250
# Two that are one list each, of refusals and of what a database holds.
LISTS = {"service/errors.py": 480, "service/catalog.py": 320}
MODULES = sorted(
    path.relative_to(ROOT)
    for room in ("service", "schema", "migrations", "tests")
    for path in (ROOT / room).rglob("*.py")
)
ADBAPI = ("service/db/", "service/models/")


def imported(module: Path) -> set[str]:
    """Name all that a module imports, wherever in it."""
    names: set[str] = set()
    for step in ast.walk(ast.parse((ROOT / module).read_text("utf-8"))):
        if isinstance(step, ast.Import):
            names.update(name.name for name in step.names)
        elif isinstance(step, ast.ImportFrom):
            names.update(f"{step.module}.{name.name}" for name in step.names)
    return names


def test_rooms_import_downwards() -> None:
    """The contracts in setup.cfg hold."""
    linter = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run(
        [linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] != "tests"], ids=str)
def test_modules_stay_small(module: Path) -> None:
    """A module holds one idea."""
    assert len((ROOT / module).read_text("utf-8").splitlines()) <= LISTS.get(str(module), LONGEST)


def test_only_the_database_rooms_know_adbapi() -> None:
    """A part of Twisted, so the linter cannot tell it from the rest."""
    strangers = [
        str(module)
        for module in MODULES
        if str(module).startswith("service/")
        and not str(module).startswith(ADBAPI)
        and any(name.startswith("twisted.enterprise") for name in imported(module))
    ]
    assert strangers == []


def test_nobody_looks_the_reactor_up() -> None:
    """The reactor is given, except where the program begins."""
    seekers = [
        str(module)
        for module in MODULES
        if str(module).startswith("service/")
        and module.name != "__main__.py"
        and "twisted.internet.reactor" in imported(module)
    ]
    assert seekers == []


def test_nothing_of_ours_is_left_open() -> None:
    """What is to be done stands in issues, not in the code."""
    marker = "TO" + "DO"
    assert [str(module) for module in MODULES if marker in (ROOT / module).read_text("utf-8")] == []
