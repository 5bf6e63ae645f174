"""
Rules that hold for all modules: imports, names, docstrings and sizes.
"""

from __future__ import annotations

import ast
import builtins
import functools
import io
import subprocess
import sys
import tokenize
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
    """Return the source of a module."""
    return (ROOT / module).read_text("utf-8")


@functools.cache
def imported(source: str) -> set[str]:
    """Return the names that a module imports, at any depth."""
    names: set[str] = set()
    for step in ast.walk(ast.parse(source)):
        if isinstance(step, ast.Import):
            names.update(name.name for name in step.names)
        elif isinstance(step, ast.ImportFrom):
            names.update(f"{step.module}.{name.name}" for name in step.names)
    return names


def seeks_reactor(source: str) -> bool:
    """Return whether a module imports the reactor, or a package through which it can be reached."""
    if imported(source) & {REACTOR, "twisted", "twisted.internet", "twisted.internet.*"}:
        return True
    return any(
        (
            isinstance(step, ast.Attribute)
            and step.attr == "reactor"
            and ast.unparse(step) == REACTOR
        )
        or (isinstance(step, ast.Constant) and step.value == REACTOR)
        for step in ast.walk(ast.parse(source))
    )


def test_import_contracts_of_setup_cfg_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run(
        [linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_adbapi_is_imported_by_db_and_models_alone() -> None:
    """import-linter cannot check it: adbapi is a part of Twisted, which all packages may import."""
    strangers = [
        str(module)
        for module in MODULES
        if str(module).startswith("service/")
        and not str(module).startswith(ADBAPI)
        and any(name.startswith("twisted.enterprise") for name in imported(text(module)))
    ]
    assert strangers == []


def test_reactor_is_imported_by_main_alone() -> None:
    """All other modules take the reactor as an argument."""
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
def test_import_of_reactor_in_any_spelling_is_found(source: str, seeks: bool) -> None:
    assert seeks_reactor(source) is seeks


def test_no_module_contains_a_todo() -> None:
    """Open work belongs in issues."""
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


def test_docstrings_of_functions_do_not_begin_with_vague_verbs() -> None:
    """They begin with Return, Build, Run, Raise and the like."""
    strange = {
        str(module): found
        for module in MODULES
        if str(module).startswith(PLAIN) and (found := openings(text(module)) & NOT_OF_THE_FIELD)
    }
    assert strange == {}


def test_openings_include_methods_and_coroutines_but_not_classes() -> None:
    """The docstrings of modules and classes begin with a noun."""
    source = '"""A."""\nclass B:\n """B."""\n def c(self):\n  """\n  Give it.\n  """\nasync def d():\n """Run it."""'
    assert openings(source) == {"Give", "Run"}


def entries(docstring: str, section: str) -> list[str]:
    """Return the names that a section of a docstring, such as Args, explains."""
    found: list[str] = []
    inside = False
    for line in docstring.splitlines():
        if line and not line.startswith(" "):
            inside = line == f"{section}:"
        elif inside and line[4:5] not in ("", " "):
            found += [name.strip(" *") for name in line.partition(":")[0].split(",")]
    return found


NAMED_BY: dict[type[ast.AST], str] = {
    ast.Name: "id",
    ast.Attribute: "attr",
    ast.arg: "arg",
    ast.alias: "name",
    ast.ClassDef: "name",
    ast.FunctionDef: "name",
    ast.AsyncFunctionDef: "name",
}
"""The attribute with the name, of each kind of code that has one."""


def identifiers(step: ast.AST) -> set[str]:
    """Return the names of variables, attributes, parameters, functions and classes in a piece of code."""
    return {
        getattr(each, NAMED_BY[type(each)]) for each in ast.walk(step) if type(each) in NAMED_BY
    }


def unknown_entries(tree: ast.Module) -> tuple[list[str], list[str]]:
    """Return the entries of docstrings that name no parameter or attribute, and all that name an exception."""
    unknown, raised = [], []
    for step in ast.walk(tree):
        if not isinstance(step, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        text = ast.get_docstring(step) or ""
        explained = entries(text, "Args") + entries(text, "Attributes")
        # A subclass may explain what it inherits.
        if explained and not (isinstance(step, ast.ClassDef) and step.bases):
            known = identifiers(step)
            unknown += [f"{step.name}: {name}" for name in explained if name not in known]
        raised += [name.rpartition(".")[2] for name in entries(text, "Raises")]
    return unknown, raised


def test_docstrings_explain_what_exists() -> None:
    """A renamed parameter or exception is easily left behind in the docstrings that explain it."""
    strange, raised, known = {}, dict[str, str](), set(dir(builtins))
    # One tree at a time: with all of them in memory, garbage collection takes twice as long as the rest.
    for module in map(str, MODULES):
        tree = ast.parse(text(Path(module)))
        known |= identifiers(tree)
        unknown, exceptions = unknown_entries(tree)
        if unknown:
            strange[module] = unknown
        raised |= dict.fromkeys(exceptions, module)
    assert strange == {}
    assert {name: module for name, module in raised.items() if name not in known} == {}


def test_unknown_entries_are_those_of_renamed_parameters() -> None:
    source = (
        'def f(new, more):\n    """\n    Do.\n\n    Args:\n        old: A.\n            b: c\n'
        '        new, more: B.\n\n    Raises:\n        Gone: It.\n        a.Known: It.\n    """\n'
    )
    assert unknown_entries(ast.parse(source)) == (["f: old"], ["Gone", "Known"])


def test_modules_do_not_share_a_name() -> None:
    """Editors, tracebacks and logs often show the basename alone."""
    named: dict[str, list[str]] = {}
    for module in MODULES:
        if module.parts[0] in {"service", "schema"} and not module.name.startswith("__"):
            named.setdefault(module.name, []).append(str(module))
    assert [modules for modules in named.values() if len(modules) > 1] == []


def test_classes_do_not_share_a_name() -> None:
    """A class name means the same in each package. Templates are excluded: a typed client is a separate program."""
    named: dict[str, list[str]] = {}
    for module in MODULES:
        if module.parts[0] in {"service", "schema"} and "templates" not in module.parts:
            for step in ast.parse(text(module)).body:
                if isinstance(step, ast.ClassDef):
                    named.setdefault(step.name, []).append(str(module))
    assert {name: modules for name, modules in named.items() if len(modules) > 1} == {}


LONGEST = 500
"""Lines of code: a longer module usually holds two ideas."""


def test_modules_are_shorter_than_500_lines_of_code() -> None:
    """Templates are excluded: each is copied as one file into the typed clients."""
    long = {
        str(module): lines
        for module in MODULES
        if module.parts[0] in {"service", "schema"} and "templates" not in module.parts
        if (lines := lines_of_code(text(module))) >= LONGEST
    }
    assert long == {}


MOST_MODULES, MOST_CODE = 137, 31_130
"""
Limits of `service/`, a little above its present size: modules, and lines of code without blank lines, comments,
docstrings and imports. Lower them when code is removed; before raising them, check what the new code could
replace.
"""


@functools.cache
def lines_of_code(source: str) -> int:
    """Return the number of lines that have code other than imports and docstrings."""
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        string = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if string or isinstance(node, ast.Import | ast.ImportFrom):
            assert node.end_lineno is not None
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def test_service_does_not_grow_unnoticed() -> None:
    """A change that needs more modules or code raises the limits, and says in its commit why."""
    sources = [text(module) for module in MODULES if module.parts[0] == "service"]
    assert len(sources) <= MOST_MODULES
    assert sum(map(lines_of_code, sources)) <= MOST_CODE


def test_lines_of_code_leave_out_what_explains() -> None:
    """Docstrings, comments, imports and blank lines are free."""
    source = '"""A module."""\n\nimport io\n\nX = (\n    1,  # one\n)\n"""A value."""\n# why\n'
    assert lines_of_code(source) == 3


def test_raw_arguments_are_parsed_in_request() -> None:
    """
    Packages below api/ get requests. The exception is `parse_related`: only the catalog can tell the
    related rows inside a new row from its columns.
    """
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
    assert parsing == {("service/plan/nested_rows.py", "parse_related")}
