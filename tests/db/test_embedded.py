"""
The embedded PostgreSQL: started for a command, and left as it was before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from schema.database_url import Cluster, EmbeddedFailed, Place
from schema.embedded import Claim
from tests.conftest import execute, wait_until

VISIT = """
import sys
from pathlib import Path
from schema.database_url import Place
with Place(state=Path(sys.argv[1])).running():
    print("here", flush=True)
    input()
"""


@pytest.fixture
def state() -> Iterator[Path]:
    """Yield a directory; pytest's own temporary directories are not accessible to other users."""
    with tempfile.TemporaryDirectory(prefix="rowcast-state-") as directory:
        yield Path(directory)


def test_server_of_a_finished_command_is_stopped_and_keeps_its_data(state: Path) -> None:
    """It runs while it is needed, keeps its data, and is stopped afterwards."""
    place = Place(state=state)
    assert place.cluster.fresh
    with place.running() as dsn:
        execute(dsn, "CREATE TABLE kept AS SELECT 1 AS one")
    with pytest.raises(psycopg2.OperationalError):
        execute(dsn, "SELECT 1")
    assert not place.cluster.fresh
    with place.running() as dsn:
        assert execute(dsn, "SELECT one FROM kept") == [(1,)]


def test_server_with_too_long_a_socket_path_gets_a_short_one(state: Path) -> None:
    place = Place(state=state / ("x" * 120))
    with place.running() as dsn:
        assert execute(dsn, "SELECT 1") == [(1,)]
    place.cluster.sockets.rmdir()


def test_incomplete_data_directory_is_created_again(state: Path) -> None:
    """An interrupted start does not prevent the next one."""
    (state / "pg.new").mkdir()
    (state / "pg.new" / "PG_VERSION").write_text("18")
    with Place(state=state).running() as dsn:
        assert execute(dsn, "SELECT 1") == [(1,)]


def test_server_in_any_locale_has_utf8(state: Path) -> None:
    """In any locale of the machine, the encoding is UTF-8, and upper() works."""
    with Place(state=state).running() as dsn:
        assert execute(dsn, "SELECT upper('é'), current_setting('server_encoding')") == [
            ("É", "UTF8")
        ]


def test_concurrent_commands_take_turns(state: Path) -> None:
    """A second command waits until the first one has stopped its server."""
    place = Place(state=state)
    command = [sys.executable, "-c", VISIT, str(state)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "here\n"
        assert place.cluster.claim.held() == f"a command (pid {first.pid})"
        first.stdin.write("\n")
        first.stdin.flush()
        with place.running() as dsn:
            assert execute(dsn, "SELECT 1") == [(1,)]
            assert first.poll() == 0 or first.wait(5) == 0


def test_server_of_a_killed_command_is_stopped_by_the_next(state: Path) -> None:
    """The server of a killed command does not block the next command."""
    command = [sys.executable, "-c", VISIT, str(state)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "here\n"
        first.kill()
    with Place(state=state).running() as dsn:
        assert execute(dsn, "SELECT 1") == [(1,)]


def test_server_without_users_is_stopped_and_restarted(state: Path) -> None:
    """A server that no process uses is stopped, and started by the next process that needs it."""
    cluster = Cluster(state)
    cluster.prepare()
    command = cluster.command()
    with cluster.log.open("ab") as log:
        orphan = subprocess.Popen(command, stdout=log, stderr=log)
    wait_until(lambda: cluster.ready(orphan.pid), 10, cluster.why)
    with Place(state=state).running() as dsn:
        assert execute(dsn, "SELECT 1") == [(1,)]
        assert orphan.wait(5) == 0


def test_server_that_is_shutting_down_is_waited_for(state: Path) -> None:
    """A server that no longer listens but still holds its data directory is waited for."""
    cluster = Cluster(state)
    cluster.prepare()
    lock = cluster.data / "postmaster.pid"
    with subprocess.Popen(
        ["sh", "-c", 'echo $$ > "$0"; echo; sleep 0.5; rm "$0"', lock], stdout=subprocess.PIPE
    ) as leaving:
        assert leaving.stdout is not None
        leaving.stdout.readline()
        cluster.prepare()
        assert not lock.exists()


def test_server_that_cannot_start_is_reported_with_its_last_log_lines(state: Path) -> None:
    cluster = Cluster(state)
    cluster.prepare()
    with (cluster.data / "postgresql.conf").open("a") as settings:
        settings.write("shared_buffers = 'lots'\n")
    with pytest.raises(EmbeddedFailed, match=r"did not start: .*shared_buffers"), cluster.visit():
        pass


def test_server_of_a_service_is_shared_and_left_running(state: Path) -> None:
    """While a service uses the server, a command shares it and leaves it running."""
    cluster = Cluster(state)
    assert cluster.claim.take("the service")
    cluster.prepare()
    with cluster.log.open("ab") as log:
        server = subprocess.Popen(cluster.command(), stdout=log, stderr=log)
    wait_until(lambda: cluster.ready(server.pid), 10, cluster.why)
    assert Claim(state / "pg.lock").held() == f"the service (pid {os.getpid()})"
    with Place(state=state).running() as dsn:
        assert execute(dsn, "SELECT 1") == [(1,)]
    assert server.poll() is None
    server.send_signal(signal.SIGINT)
    assert server.wait(5) == 0
    cluster.claim.release()
