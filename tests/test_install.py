"""
The installer of `make run`: its messages while it works and when it fails; files of the installed package.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def checkout() -> Iterator[Path]:
    """Create a directory, readable by all users, that contains only the installer."""
    folder = Path(tempfile.mkdtemp(prefix="rowcast-install-"))
    folder.chmod(0o755)
    (folder / "requirements").mkdir()
    shutil.copy(ROOT / "requirements" / "install", folder / "requirements")
    (folder / "some.lock").write_text("nothing-of-that-name==1.0\n")
    yield folder
    shutil.rmtree(folder)


def install(
    checkout: Path, *arguments: str, user: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the installer."""
    return subprocess.run(
        ["/bin/sh", "requirements/install", *arguments],
        cwd=checkout,
        env={"PATH": os.environ["PATH"], "HOME": str(checkout), "GOAL": "run", **environ},
        capture_output=True,
        text=True,
        check=False,
        user=user,
    )


def program(folder: Path, name: str, script: str) -> str:
    """Write an executable shell script, and return its path."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the single line on stderr of a failed installation."""
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    return line


def test_install_without_network_says_so(checkout: Path) -> None:
    """The message has the way out, instead of a page of pip's output."""
    offline = {
        "PIP_INDEX_URL": "http://127.0.0.1:1",
        "PIP_RETRIES": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }
    message = refusal(install(checkout, "service", ".venv", "some.lock", **offline))
    assert message.startswith("service: install failed: the package index cannot be reached → ")


def test_install_in_read_only_folder_says_so(checkout: Path) -> None:
    """It is checked before anything else."""
    checkout.chmod(0o555)
    user = None if os.geteuid() else "nobody"  # root may write anywhere
    message = refusal(install(checkout, "able", ".venv/stamp", user=user))
    checkout.chmod(0o755)
    assert message == f"{checkout} cannot be written to → copy the checkout to a folder of yours"


def test_install_without_venv_module_says_so(checkout: Path) -> None:
    """Debian's Python does not include it."""
    bare = f'case "$2" in *ensurepip*) exit 1 ;; esac; exec {sys.executable} "$@"'
    python = program(checkout, "python", bare)
    message = refusal(install(checkout, "able", ".venv/stamp", PYTHON=python))
    assert message == f"{python} cannot make virtual environments → apt-get install python3-venv"


def test_install_with_old_python_says_so(checkout: Path) -> None:
    """The message has the required version, and how to name another Python."""
    python = program(checkout, "python", "exit 1")
    message = refusal(install(checkout, "able", ".venv/stamp", PYTHON=python))
    assert message.startswith("Rowcast needs Python 3.11 or later, and found ")
    assert message.endswith(" → PYTHON=/path/to/python3.11 make run")


def test_install_without_compiler_says_so(checkout: Path) -> None:
    """If an installation fails without a compiler, the message says that one may be needed."""
    python = program(checkout, "python", 'case "$2" in venv) exit 1 ;; esac')
    for name in ("cat", "date", "grep", "printf", "rm", "sed", "sleep", "tail"):
        (checkout / name).symlink_to(shutil.which(name) or name)
    message = refusal(
        install(checkout, "service", ".venv", "some.lock", PYTHON=python, PATH=str(checkout))
    )
    assert message.startswith(
        "service: venv failed, and a C compiler, which it may need, was not found →"
    )


def test_slow_install_reports_its_progress(checkout: Path) -> None:
    """It reports its first step at once, and progress every five seconds."""
    slow = 'case "$2" in venv) echo "Collecting snail==1.0"; sleep 5; exit 1 ;; esac'
    python = program(checkout, "python", slow)
    done = install(checkout, "service", ".venv", "some.lock", PYTHON=python)
    first, second = done.stdout.splitlines()
    # A loaded machine needs more than a second until here, so the number of seconds is not compared.
    assert first.split()[1:] == ["s", "service", "makes", "an", "environment", "in", ".venv"]
    assert second.split()[2:] == ["service", "…", "downloads", "snail==1.0"]


def test_installed_package_has_every_file_of_the_service() -> None:
    """Modules of packages are included automatically, other files by the patterns in setup.cfg."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    service = ROOT / "service"
    patterns = parser["options.package_data"]["service"].split()
    named = {path for pattern in patterns for path in service.glob(pattern)}
    files = [path for path in service.rglob("*.*") if "__pycache__" not in path.parts]
    lost = [
        path
        for path in files
        if path not in named
        and not (path.suffix == ".py" and (path.parent / "__init__.py").exists())
    ]
    assert lost == []
    assert service / "py.typed" in named
