"""docs/twistar.md names an existing test for each defect."""

from __future__ import annotations

import ast
import inspect
import re

import pytest
from autobahn.twisted.wamp import ApplicationSession
from twistar.dbconfig.postgres import PostgreSQLDBConfig
from twistar.dbobject import DBObject
from twistar.validation import Errors
from twisted.enterprise.adbapi import ConnectionPool

from tests.conftest import ROOT
from tests.libraries import test_defects


def test_defect_of_the_page_has_its_proof() -> None:
    """Each row has a unique number and names existing tests."""
    rows = re.findall(
        r"^\| (\d+) \|(.*)\|(.*)\|(.*)\|$", (ROOT / "docs/twistar.md").read_text(), re.M
    )
    assert [int(number) for number, *_ in rows] == list(range(1, 67))
    tests = "".join(path.read_text() for path in (ROOT / "tests/db").glob("test_*.py"))
    for number, _, stock, ours in rows:
        shown = re.findall(r"`(\w+)`", stock)
        for name in shown:
            assert test_defects.DEFECTS[int(number)].__name__ == name
        assert shown or stock.strip().startswith("–"), number
        for name in re.findall(r"`(test_\w+)`", ours):
            assert f"def {name}(" in tests, name
    assert test_defects.DEFECTS.keys() <= {int(number) for number, *_ in rows}


def private_names(source: str) -> set[str]:
    """Return the private names that are read, set or defined as attributes and methods."""
    steps = list(ast.walk(ast.parse(source)))
    names = {step.attr for step in steps if isinstance(step, ast.Attribute)}
    for step in steps:
        if isinstance(step, ast.ClassDef):
            names |= {
                each.name
                for each in step.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize(
    ("stock", "ours"),
    [
        (DBObject, "service/models"),
        (PostgreSQLDBConfig, "service/models"),
        (Errors, "service/models"),
        (ConnectionPool, "service/db/pool.py"),
        (ApplicationSession, "service/wamp/session.py"),
    ],
)
def test_private_names_of_a_base_class_are_on_the_page(stock: type, ours: str) -> None:
    """Also names that a subclass shares with its base class by chance."""
    known = set().union(
        *(
            private_names(inspect.getsource(each))
            for each in stock.mro()
            if each.__module__[:4] in {"twis", "auto"}
        )
    )
    path = ROOT / ours
    used = set().union(
        *(
            private_names(each.read_text())
            for each in (path.glob("*.py") if path.is_dir() else [path])
        )
    )
    (table,) = re.findall(
        r"^\| private name (.*)\Z", (ROOT / "docs/twistar.md").read_text(), re.M | re.S
    )
    assert known & used == known & set(re.findall(r"\b_\w+", table))
