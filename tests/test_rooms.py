"""
The house stands as it was drawn: who may import whom.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    path.relative_to(ROOT)
    for room in ("service", "schema", "migrations", "tests")
    for path in (ROOT / room).rglob("*.py")
)
REACTOR = "twisted.internet.reactor"
ADBAPI = ("service/db/", "service/models/")


def text(module: Path) -> str:
    """Read a module."""
    return (ROOT / module).read_text("utf-8")


def imported(source: str) -> set[str]:
    """Name all that a module imports, wherever in it."""
    names: set[str] = set()
    for step in ast.walk(ast.parse(source)):
        if isinstance(step, ast.Import):
            names.update(name.name for name in step.names)
        elif isinstance(step, ast.ImportFrom):
            names.update(f"{step.module}.{name.name}" for name in step.names)
    return names


def seeks_reactor(source: str) -> bool:
    """Whether a module imports the reactor, or what it could be had from."""
    if imported(source) & {REACTOR, "twisted", "twisted.internet", "twisted.internet.*"}:
        return True
    steps = list(ast.walk(ast.parse(source)))
    return any(
        (isinstance(step, ast.Attribute) and ast.unparse(step) == REACTOR)
        or (isinstance(step, ast.Constant) and step.value == REACTOR)
        for step in steps
    )


def test_rooms_import_downwards() -> None:
    """The contracts in setup.cfg hold."""
    linter = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run(
        [linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_only_the_database_rooms_know_adbapi() -> None:
    """A part of Twisted, so the linter cannot tell it from the rest."""
    strangers = [
        str(module)
        for module in MODULES
        if str(module).startswith("service/")
        and not str(module).startswith(ADBAPI)
        and any(name.startswith("twisted.enterprise") for name in imported(text(module)))
    ]
    assert strangers == []


def test_nobody_looks_the_reactor_up() -> None:
    """The reactor is given, except where the program begins."""
    seekers = [
        str(module)
        for module in MODULES
        if str(module).startswith("service/")
        and module.name != "__main__.py"
        and seeks_reactor(text(module))
    ]
    assert seekers == []


@pytest.mark.parametrize(
    ("source", "seeks"),
    [
        ("from twisted.internet import reactor", True),
        ("from twisted.internet import defer, reactor as it", True),
        ("import twisted.internet.reactor", True),
        ("from twisted import internet", True),
        ("def late():\n    from twisted.internet import reactor", True),
        ("import twisted.internet.defer\ntwisted.internet.reactor.stop()", True),
        ("import_module('twisted.internet.reactor')", True),
        ("from twisted.internet import *", True),
        ("from twisted.internet.defer import Deferred", False),
        ("from twisted.internet.interfaces import IReactorTime", False),
    ],
)
def test_every_way_to_the_reactor_is_known(source: str, seeks: bool) -> None:
    """However it is spelled."""
    assert seeks_reactor(source) is seeks


def test_nothing_of_ours_is_left_open() -> None:
    """What is to be done stands in issues, not in the code."""
    marker = "TO" + "DO"
    assert [str(module) for module in MODULES if marker in text(module)] == []


PLAIN = (
    *("service/api/", "service/describe/", "service/wamp/", "service/procedures/"),
    *("service/embedded/", "service/app.py", "service/settings.py", "service/command.py"),
    *("service/__main__.py", "schema/", "migrations/env.py"),
)
NOT_OF_THE_FIELD = {"Give", "Have", "Say", "Spell", "Take", "Tell", "Word"}


def openings(source: str) -> set[str]:
    """Return the first words of the docstrings of functions."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        ast.get_docstring(step)
        for step in ast.walk(ast.parse(source))
        if isinstance(step, functions)
    ]
    return {text.split()[0] for text in found if text}


def test_docstrings_begin_with_words_of_the_field() -> None:
    """They say what is returned, built, run or raised."""
    strange = {
        str(module): found
        for module in MODULES
        if str(module).startswith(PLAIN) and (found := openings(text(module)) & NOT_OF_THE_FIELD)
    }
    assert strange == {}


def test_openings_are_those_of_functions() -> None:
    """Methods and coroutines too; the docstrings of modules and classes begin with a noun."""
    source = '"""A."""\nclass B:\n """B."""\n def c(self):\n  """\n  Give it.\n  """\nasync def d():\n """Run it."""'
    assert openings(source) == {"Give", "Run"}


def test_modules_do_not_share_a_name() -> None:
    """A file that is open, a frame of a traceback or a line of the log names one module."""
    named: dict[str, list[str]] = {}
    for module in MODULES:
        if module.parts[0] in {"service", "schema"} and not module.name.startswith("__"):
            named.setdefault(module.name, []).append(str(module))
    assert [modules for modules in named.values() if len(modules) > 1] == []


def test_classes_do_not_share_a_name() -> None:
    """A name that is read in one room means the same in another; a typed client is a program of its own."""
    named: dict[str, list[str]] = {}
    for module in MODULES:
        if module.parts[0] in {"service", "schema"} and "templates" not in module.parts:
            for step in ast.parse(text(module)).body:
                if isinstance(step, ast.ClassDef):
                    named.setdefault(step.name, []).append(str(module))
    assert {name: modules for name, modules in named.items() if len(modules) > 1} == {}


LONGEST = 600
"""Lines: a longer module is two ideas."""


def test_modules_are_read_in_one_go() -> None:
    """Typed clients are written out of templates, which are copied whole."""
    long = {
        str(module): lines
        for module in MODULES
        if module.parts[0] in {"service", "schema"} and "templates" not in module.parts
        if (lines := text(module).count("\n")) >= LONGEST
    }
    assert long == {}


MOST_MODULES, MOST_LINES = 181, 52_700
"""
Of `service/`: what it has now, with some room. They go down with what is taken out; what is added is worth
a look at what it takes the place of.
"""


def test_service_does_not_grow_unnoticed() -> None:
    """More than these is raised here, by whoever finds that what it buys is worth it."""
    sources = [text(module) for module in MODULES if module.parts[0] == "service"]
    assert len(sources) <= MOST_MODULES
    assert sum(source.count("\n") for source in sources) <= MOST_LINES


def test_raw_arguments_are_parsed_in_request() -> None:
    """Rooms below api/ get requests; what is inside a new row is for the catalog to tell apart."""
    parsing = {
        (str(module), name.rpartition(".")[2])
        for module in MODULES
        if str(module).startswith(
            ("service/plan/", "service/sql/", "service/models/", "service/db/")
        )
        for name in imported(text(module))
        if name.startswith("service.request.")
        and name.rpartition(".")[2].startswith(("parse_", "Arguments"))
    }
    assert parsing == {("service/plan/growing.py", "parse_related")}
