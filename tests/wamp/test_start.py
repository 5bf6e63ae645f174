"""
Starting and stopping real processes: `python -m service run`, twistd, and each failure at start.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from tests.conftest import HEAD, ROOT, Router, crossbar, execute, free_port, wait_until
from tests.wamp.programs import Program, alive, gone, parts, port_open, program, tool
from tests.wamp.raw import refusals

STOPS_WITHIN = 5.0
QUICK = 10.0
"""Maximum CPU seconds of a start; it takes four or five."""


RUN = (sys.executable, "-m", "service", "run")
TWISTD = (tool("twistd"), "--pidfile=", "-ny", str(ROOT / "twistd.tac"))
ALEMBIC = (tool("alembic"), "-c", str(ROOT / "alembic.ini"))


@pytest.fixture(scope="module")
def home() -> Iterator[dict[str, str]]:
    """Yield an environment with its own state directory."""
    with tempfile.TemporaryDirectory(prefix="rowcast-start-") as directory:
        yield {
            "HOME": directory,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "ROWCAST_STATE": f"{directory}/state",
            "ROWCAST_CROSSBAR": crossbar(),
            **{name: os.environ[name] for name in os.environ if name.startswith("COVERAGE_")},
        }


@pytest.fixture
def environ(home: dict[str, str]) -> dict[str, str]:
    """Return the environment with a free port."""
    return home | {"PORT": str(free_port())}


@pytest.fixture(scope="module")
def migrated_home(home: dict[str, str]) -> None:
    """Migrate the embedded database with Alembic, without the service."""
    subprocess.run([*ALEMBIC, "upgrade", "head"], env=home, check=True, capture_output=True)


def run_curl(printed: str) -> dict[str, object]:
    """Run the request of the printed curl command."""
    (command,) = re.findall(r"curl .*", printed)
    _, _, body, _, header, url = shlex.split(command)
    request = Request(url, body.encode(), dict([header.split(": ")]))
    with urlopen(request, timeout=10) as answer:
        result: dict[str, object] = json.load(answer)
        return result


def test_run_command_with_nothing_set_starts_everything(environ: dict[str, str]) -> None:
    """`make run` prints each step with its time, answers calls, and stops within five seconds."""
    with program(environ, *RUN) as service:
        service.says("Ctrl-C stops everything")
        steps = re.findall(r"^ *\d+\.\d s  (\w+)", service.output, re.MULTILINE)
        assert steps == ["settings", "postgres", "schema", "router", "service", "ready"]
        assert f"ws://127.0.0.1:{environ['PORT']}/ws" in service.output
        assert "args" in run_curl(service.output)
        state, port = Path(environ["ROWCAST_STATE"]), environ["PORT"]
        assert f"(log: {state}/router-{port}.log)" in service.output
        assert (state / f"service-{port}.log").stat().st_size
        children, began = parts(service), time.monotonic()
        assert len(children) > 2
        assert service.ends(signal.SIGINT) == 0
        assert time.monotonic() - began < STOPS_WITHIN
        assert "Traceback" not in service.output
    assert not any(alive(child) for child in children)


@dataclass(frozen=True)
class RunningService:
    """
    A running service whose environment was prepared before its start.

    Args:
        service: Its process.
        environ: Its environment.
        took: Seconds until it was ready.
        used: CPU seconds until then, including its child processes.
    """

    service: Program
    environ: dict[str, str]
    took: float
    used: float


@pytest.fixture(scope="module")
def started() -> Iterator[list[RunningService]]:
    """Keep the running service for the tests of this module that do not stop it."""
    kept: list[RunningService] = []
    yield kept
    for each in kept:
        each.service.close()


@pytest.fixture
def running(
    started: list[RunningService], environ: dict[str, str], migrated_home: None
) -> RunningService:
    """Return a running service: the kept one, or a new one if a test has stopped it."""
    if not started or not started[-1].service.running():
        began = time.monotonic()
        service = Program(environ, *RUN)
        started.append(RunningService(service, environ, 0, 0))
        service.says("ready")
        took = time.monotonic() - began
        # CPU time, because other processes may delay the start
        each = [psutil.Process(service.pid), *parts(service)]
        used = sum(sum(one.cpu_times()[:4]) for one in each)
        started[-1] = RunningService(service, environ, took, used)
    return started[-1]


def test_running_service_refuses_a_second_run_with_its_pid(running: RunningService) -> None:
    """A second service exits with one message; Alembic finds the running database."""
    first, environ = running.service, running.environ
    with program(environ | {"PORT": str(free_port())}, *RUN) as second:
        assert second.ends() == 1
        assert second.output.startswith(f"Rowcast runs here already, as pid {first.pid} →")
    with program(environ, *ALEMBIC, "current") as alembic:
        assert alembic.ends() == 0
        assert "(head)" in alembic.output
    assert first.running()


def test_running_service_was_ready_in_seconds(
    running: RunningService, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a prepared environment it is ready within ten seconds on an idle machine."""
    with capsys.disabled():
        print(f"\nready after {running.took:.1f} s, {running.used:.1f} s the processor's")
    assert running.used < QUICK


@pytest.mark.parametrize("which", ["controller", "worker"])
def test_running_service_restarts_a_killed_router(which: str, running: RunningService) -> None:
    """A killed router is restarted; callers receive a retryable error until the service has joined."""
    service, again = running.service, "the embedded router again in "
    before = service.output.count(again)
    [controller] = [
        process
        for process in psutil.Process(service.pid).children()
        if "crossbar" in " ".join(process.cmdline())
    ]
    [worker] = controller.children()
    (controller if which == "controller" else worker).kill()
    gone([controller, worker])
    wait_until(lambda: service.output.count(again) > before, 120, lambda: service.output)
    errors = refusals(int(running.environ["PORT"]), "rowcast.actions.count")
    assert set(errors) <= {"rowcast.error.unavailable"}


def test_running_service_that_is_killed_leaves_no_process(running: RunningService) -> None:
    """A killed service ends its router and PostgreSQL, and can be started again."""
    children = parts(running.service)
    running.service.ends(signal.SIGKILL)
    gone(children)
    with program(running.environ, *RUN) as service:
        service.says("ready")
        assert service.ends(signal.SIGINT) == 0


def test_missing_schema_is_logged_at_start(
    environ: dict[str, str], migrated: str, router: Router
) -> None:
    """The service starts, and logs the schema that does not exist."""
    own = {"DATABASE_URL": migrated, "ROWCAST_ROUTER_URL": f"unix:{router.socket}"}
    with program(environ | own | {"ROWCAST_SCHEMAS": "publik,public"}, *RUN) as service:
        service.says("procedures as rowcast.*; nothing of publik")
        service.says("ready")
        assert service.ends(signal.SIGINT) == 0


def test_taken_port_is_reported_with_a_remedy(environ: dict[str, str]) -> None:
    """The message names the port, and the command that chooses another one."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", int(environ["PORT"])))
        holder.listen()
        for command in (RUN, TWISTD):
            with program(environ, *command) as service:
                assert service.ends() == 1
                port = int(environ["PORT"])
                assert f"port {port} is taken → PORT={port + 1} make run" in service.output


def test_invalid_settings_are_all_reported_at_once(environ: dict[str, str]) -> None:
    """Neither command starts, and both report all invalid settings."""
    bad = environ | {"ROWCAST_POOL_MAX": "none", "DATABASE_URL": "mysql://u:s3cret@h/d"}
    for command in (RUN, TWISTD):
        with program(bad, *command) as service:
            assert service.ends() == 1
            first, second = service.output.strip().splitlines()
            assert first.startswith("DATABASE_URL is not a PostgreSQL URL")
            assert second == "ROWCAST_POOL_MAX should be a valid integer (it is 'none')"


def test_missing_database_is_reported_without_the_password(environ: dict[str, str]) -> None:
    """The message is one line."""
    away = environ | {"DATABASE_URL": f"postgresql://u:s3cret@127.0.0.1:{free_port()}/d"}
    for command in (RUN, TWISTD):
        with program(away, *command) as service:
            assert service.ends() == 1
            assert "Connection refused" in service.output
            assert "s3cret" not in service.output


def test_missing_router_is_reported_with_a_remedy(environ: dict[str, str]) -> None:
    """The message has both ways to get a router."""
    with program(environ | {"ROWCAST_CROSSBAR": "/nowhere/crossbar"}, *RUN) as service:
        assert service.ends() == 1
        assert "make .venv-router" in service.output
        assert "ROWCAST_ROUTER_URL" in service.output


@pytest.mark.usefixtures("migrated_home")
def test_twistd_with_everything_embedded_is_ready(environ: dict[str, str]) -> None:
    """After `alembic upgrade head`, twistd runs in the foreground without further steps."""
    with program(environ, *TWISTD) as service:
        service.says("ready")
        wait_until(lambda: port_open(environ["PORT"]), 5)
        children, began = parts(service), time.monotonic()
        assert service.ends(signal.SIGTERM) in (0, -signal.SIGTERM)
        assert time.monotonic() - began < STOPS_WITHIN
    assert not any(alive(child) for child in children)


@pytest.mark.parametrize(("level", "all_of_it"), [("warn", False), ("info", True)])
def test_twistd_logs_at_the_configured_level(
    environ: dict[str, str], migrated: str, level: str, all_of_it: bool
) -> None:
    """ROWCAST_LOG_LEVEL also applies under twistd, for each destination of its log."""
    log = Path(environ["HOME"]) / f"{level}.log"
    command = ("--pidfile=", "-n", f"--logfile={log}", "-y", str(ROOT / "twistd.tac"))
    own = {"DATABASE_URL": migrated, "ROWCAST_ROUTER_URL": "unix:/nowhere.sock"}
    with program(environ | own | {"ROWCAST_LOG_LEVEL": level}, tool("twistd"), *command) as service:
        wait_until(lambda: log.exists() and "no session at" in log.read_text(), 30, log.read_text)
        assert service.ends(signal.SIGTERM) in (0, -signal.SIGTERM)
    assert ("#info]" in log.read_text()) is all_of_it
    assert "#debug]" not in log.read_text()


@pytest.mark.usefixtures("migrated_home")
def test_twistd_as_a_daemon_stops_with_its_parts(environ: dict[str, str]) -> None:
    """Without -n it daemonizes; its child processes start in the daemon and stop with it."""
    pidfile, log = Path(environ["HOME"]) / "twistd.pid", Path(environ["HOME"]) / "twistd.log"
    options = (f"--pidfile={pidfile}", f"--logfile={log}", "-y", str(ROOT / "twistd.tac"))
    with program(environ, tool("twistd"), *options) as starter:
        assert starter.ends() == 0
    wait_until(lambda: log.exists() and "ready" in log.read_text(), 60)
    daemon = psutil.Process(int(pidfile.read_text()))
    children = daemon.children(recursive=True)
    assert len(daemon.children()) == 2
    daemon.terminate()
    gone([daemon, *children])
    assert not pidfile.exists()


def test_twistd_with_an_empty_database_names_the_command_to_run(environ: dict[str, str]) -> None:
    """On a new embedded database, twistd prints the command to run first."""
    with tempfile.TemporaryDirectory() as fresh:
        with program(environ | {"ROWCAST_STATE": fresh}, *TWISTD) as service:
            assert service.ends() == 1
            assert service.output == "the embedded database is empty → alembic upgrade head\n"
        assert not Path(fresh, "pg", "postmaster.pid").exists()


def test_service_with_own_database_and_router_starts_nothing_embedded(
    environ: dict[str, str], migrated: str, router: Router
) -> None:
    """With an external database and router, no embedded part starts."""
    own = environ | {"DATABASE_URL": migrated, "ROWCAST_ROUTER_URL": f"unix:{router.socket}"}
    for command in (TWISTD, RUN):
        with program(own, *command) as service:
            service.says("ready")
            assert psutil.Process(service.pid).children() == []
            assert service.ends(signal.SIGINT) in (0, -signal.SIGINT)


@pytest.mark.usefixtures("migrated_home")
def test_run_with_own_router_and_roles_prints_what_works(
    environ: dict[str, str], router: Router
) -> None:
    """Programs that exist, here without any beside the interpreter, and a call with a login."""
    own = {"ROWCAST_ROUTER_URL": f"unix:{router.socket}", "ROWCAST_ROLES": "clerk=pg_monitor"}
    python = Path(environ["HOME"], "bin", "python")
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    with program(environ | own | {"PYTHONPATH": path}, str(python), *RUN[1:]) as service:
        service.says("Ctrl-C stops everything")
        psql, call = (shlex.split(each) for each in service.output.splitlines()[-3:-1])
        assert (psql[0], call[0]) == ("psql", "Try")
        assert subprocess.check_output([*psql[1:], "-Atc", "SELECT 1"], text=True) == "1\n"
        assert call[1:7] == ["bin/python", "-m", "service", "call", "describe", "--url"]
        assert call[8:] == ["--authid", "…", "with", "WAMP_TICKET", "or", "--key"]
        assert service.ends(signal.SIGINT) == 0


@pytest.mark.usefixtures("migrated_home")
def test_run_with_a_role_without_rights_prints_no_call_on_the_demo(
    environ: dict[str, str],
) -> None:
    """The number of relations is that of what is served."""
    with program(environ | {"ROWCAST_ANONYMOUS": "pg_monitor"}, *RUN) as service:
        service.says("Ctrl-C stops everything")
        assert "actions" not in service.output
        assert re.findall(r"\d+ relations?", service.output) == ["0 relations"]
        assert run_curl(service.output)
        assert service.ends(signal.SIGINT) == 0
    with program(environ | {"ROWCAST_ROLES": "clerk=pg_monitor"}, *RUN) as service:
        service.says("Ctrl-C stops everything")
        assert "Try" not in service.output
        assert "curl" not in service.output
        assert service.ends(signal.SIGINT) == 0


@pytest.mark.parametrize("command", [RUN, TWISTD], ids=["run", "twistd"])
def test_hangup_stops_the_service_in_order(
    environ: dict[str, str], migrated: str, router: Router, command: tuple[str, ...]
) -> None:
    """As SIGTERM does, when the terminal is closed, or by a script that expects a daemon to reload."""
    own = environ | {"DATABASE_URL": migrated, "ROWCAST_ROUTER_URL": f"unix:{router.socket}"}
    log = Path(environ["ROWCAST_STATE"], f"service-{environ['PORT']}.log")
    with program(own, *command) as service:
        service.says("ready")
        assert service.ends(signal.SIGHUP) in (0, -signal.SIGHUP)
        logged = service.output + (log.read_text() if command is RUN else "")
        assert "Main loop terminated" in logged or "shutting down" in logged, logged


SEED, CURRENT = (sys.executable, "-m", "service", "seed"), (*ALEMBIC, "current")


@pytest.mark.parametrize(
    ("state", "commands"),
    [
        (__file__, (RUN, TWISTD, SEED, CURRENT)),
        # They all make the directory with one function, so one command shows the other reasons.
        (f"{__file__}/below", (RUN,)),
        ("/proc/absent", (RUN,)),
    ],
    ids=["file", "below a file", "read-only"],
)
def test_state_that_cannot_be_a_directory_is_refused(
    environ: dict[str, str], state: str, commands: tuple[tuple[str, ...], ...]
) -> None:
    """In one line that names the setting, by whatever uses the directory."""
    for command in commands:
        with program(environ | {"ROWCAST_STATE": state}, *command) as service:
            assert service.ends() != 0
            (line,) = (each for each in service.output.splitlines() if not each.startswith("  "))
            assert line.removeprefix("FAILED: ").startswith(f"ROWCAST_STATE {state} cannot hold")
            assert line.endswith("→ name a directory that you may write to")


LOCKED = Ed25519PrivateKey.generate().private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"s3cret")
)


@pytest.mark.parametrize(
    ("content", "cure"),
    [(b"0123456789\n", "ssh-keygen -t ed25519"), (LOCKED, "ssh-keygen -p -N ''")],
    ids=["none", "locked"],
)
def test_unreadable_key_ends_the_start(
    environ: dict[str, str], migrated: str, content: bytes, cure: str
) -> None:
    """An unreadable key ends the start with a message, instead of being retried for ever."""
    key = Path(environ["HOME"], "key")
    key.write_bytes(content)
    own = {"DATABASE_URL": migrated, "ROWCAST_ROUTER_URL": "ws://127.0.0.1:1/ws"}
    for command in (RUN, TWISTD):
        with program(environ | own | {"ROWCAST_KEY_FILE": str(key)}, *command) as service:
            assert service.ends() == 1
            assert service.output.startswith(f"ROWCAST_KEY_FILE {key}: ")
            assert f"→ {cure}" in service.output
            assert len(service.output.splitlines()) == 1


def test_database_of_another_revision_is_refused_by_twistd(
    environ: dict[str, str], migrated: str
) -> None:
    """The command fails if the database is not at the code's revision."""
    execute(migrated, "UPDATE alembic_version SET version_num = 'f00'")
    try:
        with program(environ | {"DATABASE_URL": migrated}, *TWISTD) as service:
            assert service.ends() == 1
            assert "is at revision f00, which this code does not know" in service.output
    finally:
        execute(migrated, f"UPDATE alembic_version SET version_num = '{HEAD}'")


def test_settings_command_prints_sources_and_no_secret(environ: dict[str, str]) -> None:
    """`python -m service settings` prints names, values and sources, and no secret."""
    own = environ | {"DATABASE_URL": "postgres://u:s3cret@h/d"}
    with program(own, sys.executable, "-m", "service", "settings") as command:
        assert command.ends() == 0
        assert re.search(r"^DATABASE_URL +\*+ +environment$", command.output, re.MULTILINE)
        assert re.search(r"^ROWCAST_REALM +realm1 +default$", command.output, re.MULTILINE)
        assert "s3cret" not in command.output
