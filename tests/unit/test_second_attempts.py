"""
A failed test that pytest-rerunfailures runs a second time, as in CI.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONFTEST = """
import pytest
from tests.conftest import pytest_runtest_setup

def fixture(scope):
    @pytest.fixture(scope=scope)
    def numbered():
        fixture.made[scope] = fixture.made.get(scope, 0) + 1
        yield fixture.made[scope]
        print(f"({scope} {fixture.made[scope]} torn down)")
    return numbered

fixture.made = {}
of_session, of_module = fixture("session"), fixture("module")
"""
TESTS = """
def test_first(of_session, of_module):
    assert (of_session, of_module) == (1, 1)

def test_second(of_session, of_module):
    assert (of_session, of_module) == (1, 2), "the first attempt fails"

def test_third(of_session, of_module):
    assert (of_session, of_module) == (1, 2)
"""


def test_second_attempt_has_new_fixtures_of_its_module(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_numbers.py").write_text(TESTS)
    options = ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path), "-s"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--reruns", "1", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed, 1 rerun" in ran.stdout
    downs = [
        ran.stdout.count(f"({scope} torn down)") for scope in ("module 1", "module 2", "session 1")
    ]
    assert downs == [1, 1, 1], ran.stdout
