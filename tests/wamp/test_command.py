"""
`rowcast call` against a running service: what it prints, and its exit status.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib import metadata

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue

from service.app import Serving
from tests.conftest import ROOT, Router, execute, free_port
from tests.wamp.programs import program, tool
from tests.wamp.service import served

ROWS = """
INSERT INTO drivers (name) VALUES ('Ada'), ('Bob');
CREATE FUNCTION wait() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(60)';
CREATE VIEW endless AS SELECT generate_series(1, 1000000000) AS n, repeat('x', 200) AS text;
"""

INTERRUPTED = """
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
runpy.run_module("service", run_name="__main__", alter_sys=True)
"""


@pytest_twisted.async_yield_fixture(scope="module", autouse=True)
async def service(migrated: str, router: Router) -> AsyncIterator[Serving]:
    """Serve a database with two drivers."""
    execute(migrated, ROWS)
    async with served(migrated, router) as serving:
        yield serving


def environ(router: Router) -> dict[str, str]:
    """Return an environment that names the router."""
    return {
        "HOME": "/",
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "ROWCAST_ROUTER_URL": router.websocket,
        "ROWCAST_REALM": router.realm,
        "ROWCAST_PREFIX": router.prefix,
        **{name: os.environ[name] for name in os.environ if name.startswith("COVERAGE_")},
    }


async def rowcast(router: Router, *words: str, **more: str) -> tuple[str, str, int]:
    """Run the command, and return its output, its errors and its status."""
    output, errors, status = await getProcessOutputAndValue(
        sys.executable,
        ["-m", "service", *words],
        env={**environ(router), **more},
        path=str(ROOT),
        reactor=reactor,
    )
    return output.decode(), errors.decode(), status


@pytest_twisted.ensureDeferred
async def test_call_prints_the_result_as_json(router: Router) -> None:
    """Outside of a terminal, it is printed in full."""
    output, _, status = await rowcast(
        router, "call", "drivers.find", "where: {name: Ada}, select: [id, name]"
    )
    assert (json.loads(output), status) == ({"rows": [{"id": 1, "name": "Ada"}], "next": None}, 0)


@pytest_twisted.ensureDeferred
async def test_call_with_other_forms_of_integers_finds_what_postgresql_reads(
    router: Router,
) -> None:
    for word in ("0x2", "0_2"):
        output, _, _ = await rowcast(router, "call", "drivers.find", f"where: {{id: {word}}}")
        assert [row["name"] for row in json.loads(output)["rows"]] == ["Bob"]


@pytest_twisted.ensureDeferred
async def test_call_prints_rows_as_table(router: Router) -> None:
    """If a table is requested."""
    output, _, _ = await rowcast(
        router, "call", "drivers.find", "select=[id, name]", "--output", "table"
    )
    assert [line.split() for line in output.splitlines()][2:] == [["1", "Ada"], ["2", "Bob"]]


@pytest_twisted.ensureDeferred
async def test_call_in_parts_prints_them(router: Router) -> None:
    """Parts of an export as they are, rows of a stream on one line each."""
    output, errors, status = await rowcast(
        router, "call", "drivers.export", "select=[id, name]", "format=csv"
    )
    assert (output, status) == ("id,name\n1,Ada\n2,Bob\n", 0)
    assert json.loads(errors) == {"rows": 2, "bytes": len(output)}
    output, _, _ = await rowcast(router, "call", "drivers.stream", "select=[id]")
    assert output.startswith('{"id": 1}\n{"id": 2}\n{')


@pytest_twisted.ensureDeferred
async def test_call_with_a_receipt_prints_the_keywords_too(router: Router) -> None:
    output, _, status = await rowcast(
        router, "call", "drivers.update", "where={id: 0}", "changes={}", "receipt=true"
    )
    answer = {"rows": [], "affected": 0}
    assert (json.loads(output), status) == ({"args": [answer], "kwargs": {"tx": None}}, 0)


@pytest_twisted.ensureDeferred
async def test_why_prints_a_line_for_each_check(router: Router, migrated: str) -> None:
    """Of the database, then of the router and the service; a test write is optional."""

    def why(*words: str) -> tuple[str, str, int]:
        done = subprocess.run(
            [sys.executable, "-m", "service", "why", *words],
            env={**environ(router), "DATABASE_URL": migrated},
            cwd=ROOT,
            input="y\n",
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        return done.stdout, done.stderr, done.returncode

    output, errors, status = await deferToThread(why, "drivers", "--try")
    assert status == 0, output + errors
    assert "[+] a write was read from the log within " in output
    assert output.splitlines()[-2:] == [
        "[+] a service answers, and is well",
        f"[+] the router lets you subscribe to {router.prefix}.drivers.changed.",
    ]
    execute(migrated, "SELECT rowcast.untrack('drivers')")
    output, _, status = await deferToThread(why, "drivers")
    assert status == 1
    assert "[-] it is not tracked → rowcast track public.drivers" in output.splitlines()
    execute(migrated, "SELECT rowcast.track('drivers')")
    away = f"ws://127.0.0.1:{free_port()}/ws"
    output, _, status = await deferToThread(why, "drivers", "--url", away)
    assert f"[-] no session at the router {away}" in output.splitlines()[-1]
    _, errors, status = await deferToThread(why, "driver")
    assert (status, "did you mean" in errors) == (1, True)


@pytest_twisted.ensureDeferred
async def test_why_is_answered_to_callers_of_the_service(router: Router) -> None:
    output, _, status = await rowcast(router, "call", "why", "drivers")
    assert status == 0
    found = json.loads(output)
    assert found["ok"] is True, found
    texts = [check["text"] for check in found["checks"]]
    assert "the service reads the log, or waits to take over from another one" in texts
    assert "the router takes its events" in texts


@pytest_twisted.ensureDeferred
async def test_call_refused_prints_the_error_with_status_1(router: Router) -> None:
    """URI, message and details, on standard error."""
    output, errors, status = await rowcast(router, "call", "drivers.fnd")
    assert (output, status) == ("", 1)
    lines = errors.splitlines()
    assert lines[0] == 'wamp.error.no_such_procedure: "drivers" has no verb "fnd"'
    assert '  hint: did you mean "find"?' in lines


@pytest_twisted.ensureDeferred
async def test_call_refused_with_a_colon_without_blank_says_so(router: Router) -> None:
    """Only with the refusal, because a text key may contain colons."""
    _, errors, status = await rowcast(router, "call", "drivers.get", "id:1")
    assert status == 1
    assert '  note: "id:1" was sent as a string; an argument by name is "id: 1"' in errors
    _, errors, _ = await rowcast(router, "call", "drivers.get", "http://a")
    assert "note" not in errors


@pytest_twisted.ensureDeferred
async def test_version_is_printed(router: Router) -> None:
    """It is that of the installed package."""
    expected = f"rowcast {metadata.version('rowcast')}\n"
    assert await rowcast(router, "--version") == (expected, "", 0)


@pytest_twisted.ensureDeferred
async def test_call_misspelled_has_status_2(router: Router) -> None:
    """Before a connection is opened."""
    output, errors, status = await rowcast(router, "call", "drivers.find", "{limit:2}")
    assert (output, status) == ("", 2)
    assert 'a blank is missing after the colon in "limit:2"' in errors


@pytest_twisted.ensureDeferred
async def test_call_without_router_has_status_3(router: Router) -> None:
    """The message says what to check."""
    away = f"ws://127.0.0.1:{free_port()}/ws"
    output, errors, status = await rowcast(router, "call", "drivers.count", "--url", away)
    assert (output, status) == ("", 3)
    assert errors.startswith("no session at the router: ")
    assert "→ is it running (make run)?" in errors


@pytest_twisted.ensureDeferred
async def test_call_with_wrong_ticket_has_status_1(router: Router) -> None:
    """The router's message is printed, without the ticket."""
    output, errors, status = await rowcast(
        router, "call", "drivers.count", "--authid", "nobody", WAMP_TICKET="s3cret"
    )
    assert (output, status) == ("", 1)
    assert errors.startswith("no session at the router: wamp.error.")
    assert "→ check --realm, --authid and its ticket or key" in errors
    assert "s3cret" not in errors


@pytest_twisted.ensureDeferred
async def test_call_with_authid_alone_has_status_2(router: Router) -> None:
    """Whether it is an option or a variable: this router would serve an anonymous caller."""
    for words, variables in (("--authid", "ann"), {}), ((), {"WAMP_AUTHID": "ann"}):
        output, errors, status = await rowcast(router, "call", "drivers.count", *words, **variables)
        assert (output, status) == ("", 2)
        assert "--authid needs --ticket (or WAMP_TICKET) or --key" in errors


@pytest_twisted.ensureDeferred
async def test_call_into_full_disk_has_status_1(router: Router) -> None:
    """With one line."""
    shell = f"{sys.executable} -m service call drivers.find > /dev/full"
    _, errors, status = await getProcessOutputAndValue(
        "/bin/sh", ["-c", shell], env=environ(router), path=str(ROOT), reactor=reactor
    )
    assert status == 1
    assert errors.decode().splitlines() == ["[Errno 28] No space left on device"]


def read_one_line(environ: dict[str, str], *words: str) -> tuple[bytes, bytes, int]:
    """Run the command, and read only a line of its output; return it, its errors and its status."""
    with subprocess.Popen(
        [sys.executable, "-m", "service", *words],
        env=environ,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        line = command.stdout.readline()
        command.stdout.close()
        try:
            return line, command.stderr.read(), command.wait(60)
        finally:
            command.kill()


@pytest.mark.parametrize("verb", ["stream", "export"])
@pytest_twisted.ensureDeferred
async def test_call_whose_reader_ends_is_cancelled_with_status_141(
    router: Router, migrated: str, verb: str
) -> None:
    """Nothing is printed to standard error."""
    words = ("call", f"endless.{verb}")
    line, errors, status = await deferToThread(read_one_line, environ(router), *words)
    assert line.startswith((b'{"n": 1', b'{"n":1', b"n,text"))
    assert (errors.decode(), status) == ("", 141)
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%endless%' AND state <> 'idle' AND pid <> pg_backend_pid()"
    for _ in range(400):
        if await deferToThread(execute, migrated, running) == [(0,)]:
            return
        await deferLater(reactor, 0.05)
    pytest.fail("the call still runs")


@pytest.mark.parametrize(
    "words",
    [
        ("call", "drivers.find", "limit=1"),
        ("settings",),
        ("describe",),
        ("types", "--lang", "ts"),
    ],
    ids=lambda words: words[0],
)
@pytest_twisted.ensureDeferred
async def test_output_without_a_reader_has_status_141(
    router: Router, migrated: str, words: tuple[str, ...]
) -> None:
    """Whether the command's output is longer than the buffer or not."""
    read, write = os.pipe()
    os.close(read)
    command = await deferToThread(
        subprocess.run,
        [sys.executable, "-m", "service", *words],
        env={**environ(router), "DATABASE_URL": migrated},
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (command.stderr.decode(), command.returncode) == ("", 141)


@pytest.mark.parametrize("word", ["call", "run", "describe"])
def test_interrupt_during_the_imports_ends_quietly(router: Router, word: str) -> None:
    """A module that sends the signal stands for click, the first package that is imported."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, word, "drivers.count"],
        env=environ(router),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", -signal.SIGINT)


def test_interrupt_of_another_command_has_status_130(router: Router) -> None:
    """Here while it waits for a database that accepts connections and does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/db"
        with program(environ(router) | {"DATABASE_URL": url}, tool("rowcast"), "seed") as command:
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)
                assert command.ends(signal.SIGINT) == 130
            assert command.output == ""


@pytest_twisted.ensureDeferred
async def test_call_that_exceeds_its_timeout_prints_the_error(router: Router) -> None:
    """It is the service's error."""
    _, errors, status = await rowcast(router, "call", "fn.wait", "--timeout", "0.2")
    assert errors.startswith("rowcast.error.timeout: ")
    assert status in (1, 3)


@pytest_twisted.ensureDeferred
async def test_call_interrupted_has_status_130(router: Router, migrated: str) -> None:
    """Ctrl-C cancels the call on the server."""

    async def waits(many: int) -> None:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%\"wait\"(%' AND state = 'active' AND pid <> pg_backend_pid()"
        for _ in range(400):
            if await deferToThread(execute, migrated, sql) == [(many,)]:
                return
            await deferLater(reactor, 0.05)
        pytest.fail(f"{many} calls do not wait")

    with program(environ(router), tool("rowcast"), "call", "fn.wait") as command:
        await waits(1)
        os.kill(command.pid, signal.SIGINT)
        await waits(0)
        assert await deferToThread(command.ends) == 130


@pytest_twisted.ensureDeferred
async def test_completion_names_procedures_of_the_running_service(router: Router) -> None:
    """The shell runs the command."""
    asked = {
        "_ROWCAST_COMPLETE": "bash_complete",
        "COMP_WORDS": "rowcast call drivers.e",
        "COMP_CWORD": "2",
    }
    output, _, _ = await getProcessOutputAndValue(
        tool("rowcast"), [], env=environ(router) | asked, path=str(ROOT), reactor=reactor
    )
    assert output.decode().split() == ["plain,drivers.exists", "plain,drivers.export"]
