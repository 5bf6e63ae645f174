"""
Applications: modules in the working directory, served by the programs that users start.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet import reactor

from service.waiting import in_thread
from tests.conftest import ROOT, Router, execute
from tests.wamp.conftest import Join
from tests.wamp.programs import program, tool

SHOP = """
import os
import signal

from service.models.model import Model
from service.procedures.registry import ProcedureCall, procedure
from twisted.logger import Logger

log = Logger()


class Item(Model):
    TABLENAME = "items"


Item.validatesPresenceOf("title")


@procedure("items.sell", Item)
async def sell(call: ProcedureCall, key: int) -> list[object]:
    item = await Item.find(key)
    await item.delete()
    return [item.title, os.getpid()]


@procedure("items.audit")
async def audit(call: ProcedureCall) -> None:
    log.info("audit begins: {id}", id=call.id)
    async with call.database.transaction(name="audit"):
        await call.database.statement("SELECT pg_sleep(0.1), 'private'")
        log.warn("found {what}", what="nothing")
    raise KeyError("private")


@procedure("items.close")
async def close(call: ProcedureCall) -> str:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    return "closing"
"""
TWISTD = (tool("twistd"), "--pidfile=", "-ny", str(ROOT / "twistd.tac"))


@pytest.fixture
def environ(dsn: str, router: Router, tmp_path: Path) -> dict[str, str]:
    """Return an environment for programs in a directory with a module, at the shared router."""
    (tmp_path / "shop.py").write_text(SHOP)
    execute(
        dsn, "DROP TABLE IF EXISTS items; CREATE TABLE items (id serial PRIMARY KEY, title text)"
    )
    return {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "DATABASE_URL": dsn,
        "ROWCAST_ROUTER_URL": f"unix:{router.socket}",
        "ROWCAST_APP": "shop",
        **{name: os.environ[name] for name in os.environ if name.startswith("COVERAGE_")},
    }


@pytest_twisted.ensureDeferred
async def test_application_is_served_by_every_process(
    environ: dict[str, str], call_from: Join
) -> None:
    """Two services that share the calls have the same rules and procedures."""
    shared = environ | {"ROWCAST_SHARED": "true"}
    with program(shared, *TWISTD) as one, program(shared, *TWISTD) as other:
        for each in (one, other):
            await in_thread(reactor, "start", each.says, "ready")
        caller = await call_from()
        rows = await caller.call("rowcast.items.create", [{"title": "cup"}] * 4)
        sold = [await caller.call("rowcast.items.sell", row["id"]) for row in rows]
        assert {title for title, _ in sold} == {"cup"}
        assert {pid for _, pid in sold} == {one.pid, other.pid}
        for _ in range(2):
            with pytest.raises(ApplicationError) as caught:
                await caller.call("rowcast.items.create", {"title": ""})
            assert caught.value.error == "rowcast.error.invalid_row"


@pytest_twisted.ensureDeferred
async def test_sigterm_twice_in_one_turn_of_the_reactor_stops_in_order(
    environ: dict[str, str], call_from: Join
) -> None:
    """The reactor, busy meanwhile, is asked to stop once, and logs no failure."""
    with program(environ, *TWISTD) as service:
        await in_thread(reactor, "start", service.says, "ready")
        caller = await call_from()
        assert await caller.call("rowcast.items.close") == "closing"
        assert await in_thread(reactor, "end", service.ends) == -SIGTERM
        assert "Traceback" not in service.output


@pytest_twisted.ensureDeferred
async def test_log_names_the_call_and_its_transaction(
    environ: dict[str, str], call_from: Join
) -> None:
    """Everything that one call has logged is found by the id that its caller got."""
    with program(environ | {"ROWCAST_SLOW_STATEMENT": "0.05"}, *TWISTD) as service:
        await in_thread(reactor, "start", service.says, "ready")
        caller = await call_from()
        ids = []
        for _ in range(2):
            with pytest.raises(ApplicationError) as caught:
                await caller.call("rowcast.items.audit")
            ids.append(caught.value.kwargs["id"])
        lines = [line.partition(" [")[2] for line in service.output.splitlines()]
        stats = await caller.call("rowcast.stats")
    assert len(set(ids)) == 2
    slow = r"slow statement: 0\.\d+ s in items\.audit as the service: SELECT pg_sleep\(\?\), \?"
    for id in ids:
        begins, sleeps, finds, fails = [each for each in lines if id in each]
        inside = f"[call {id}, transaction audit]"
        assert begins == f"shop#info] [call {id}] audit begins: {id}"
        assert re.fullmatch(
            rf"service\.db\.worker\.Worker#warn\] {re.escape(inside)} {slow}", sleeps
        )
        assert finds == f"shop#warn] {inside} found nothing"
        assert f"#error] [call {id}] failed in rowcast.items.audit, id {id}: KeyError" in fails
    assert stats["calls"]["verbs"]["items.audit"]["errors"] == {"rowcast.error.internal": 2}
    assert stats["pool"]["slow"] >= 2


def test_description_from_another_directory_has_the_application(environ: dict[str, str]) -> None:
    """The command uses the same setting in a script of another directory."""
    done = subprocess.run(
        [tool("rowcast"), "describe"],
        cwd=environ["HOME"],
        env=environ,
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["procedures"]["items.sell"]["positional"] == ["key"]


@pytest.mark.parametrize(
    "command",
    [
        TWISTD,
        (sys.executable, "-m", "service", "run"),
        (tool("rowcast"), "describe"),
    ],
    ids=["twistd", "run", "describe"],
)
def test_broken_application_prevents_the_start(
    command: tuple[str, ...], environ: dict[str, str]
) -> None:
    """It prints one line with a remedy, before anything else is started."""
    Path(environ["HOME"], "shop.py").write_text("import shelf")
    with program(environ, *command) as started:
        assert started.ends() == 1
        (line,) = started.output.splitlines()
    assert line.startswith(
        "ROWCAST_APP: shop cannot be imported: ModuleNotFoundError: No module named 'shelf'"
    )
    assert " → pip install it for " in line
