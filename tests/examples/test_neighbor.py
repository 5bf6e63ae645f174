"""The Flask application of the examples: the service serves its writes, and it reads those of callers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet import reactor

from service.waiting import in_thread
from tests.conftest import ROOT, Router, free_port, wait_until
from tests.deferreds import until
from tests.kits import kit
from tests.wamp.callers import join
from tests.wamp.programs import port_open, program, tool
from tests.wamp.service import served


@pytest.fixture
def neighbor(migrated: str, tmp_path: Path) -> Iterator[str]:
    """Run the application as its README says; return its URL."""
    port = str(free_port())
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "DATABASE_URL": migrated}
    app = str(ROOT / "examples" / "neighbor" / "neighbor.py")
    with program(environ, tool("flask"), "--app", app, "run", "--port", port) as started:
        wait_until(lambda: port_open(port), 60, lambda: started.output)
        yield f"http://127.0.0.1:{port}"


def http(url: str, values: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Get a page, or post values as JSON; return the status and the body."""
    body = None if values is None else json.dumps(values).encode()
    request = Request(url, body, {"content-type": "application/json"})
    try:
        with urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest_twisted.ensureDeferred
async def test_neighbor_and_callers_share_rows(
    neighbor: str, migrated: str, router: Router
) -> None:
    async with served(migrated, router, app=("app",)):
        caller = await join(router, "rawsocket cbor")
        van = {"plate": "B-RC 77", "model": "van"}
        status, made = await in_thread(reactor, "http", http, f"{neighbor}/vehicles", van)
        assert status == 201
        found = await caller.call("rowcast.vehicles.get", {"plate": "B-RC 77"})
        assert (found["id"], found["seats"]) == (made["id"], 4)
        ada = await caller.call("rowcast.drivers.create", {"name": "Ada"})
        await caller.call("rowcast.vehicles.update", made["id"], {"driver_id": ada["id"]})
        answer = await in_thread(reactor, "http", http, f"{neighbor}/drivers/{ada['id']}")
        assert answer == (200, {"id": ada["id"], "name": "Ada", "plates": ["B-RC 77"]})
        (row,) = (await in_thread(reactor, "http", http, f"{neighbor}/vehicles"))[1]
        assert row["driver_id"] == ada["id"]
        await caller.close()


@pytest_twisted.ensureDeferred
async def test_writes_of_flask_and_psql_reach_watchers(
    neighbor: str, migrated: str, router: Router
) -> None:
    async with served(migrated, router, app=("app",)):
        db = kit().Rowcast(prefix=router.prefix)
        caller = await join(router, "websocket json")
        db.joined(caller)
        live = db.live("vehicles", select=["plate"], order=["plate"])
        there = [row["plate"] for row in await live.ready()]
        lists: list[list[str]] = []
        live.subscribe(lambda rows, _: lists.append([row["plate"] for row in rows]))
        bus = {"plate": "B-RC 80", "model": "bus"}
        status, _ = await in_thread(reactor, "http", http, f"{neighbor}/vehicles", bus)
        assert status == 201
        await until(lambda: lists[-1:] == [sorted([*there, "B-RC 80"])])
        copied = "COPY vehicles (plate, model) FROM STDIN"
        rows = "B-RC 81\tvan\nB-RC 82\tvan\n"
        subprocess.run(
            [tool("psql"), migrated, "-c", copied], input=rows, text=True, check=True, timeout=60
        )
        await until(lambda: lists[-1] == sorted([*there, "B-RC 80", "B-RC 81", "B-RC 82"]))
        db.close()
        await caller.close()


@pytest_twisted.ensureDeferred
async def test_constraint_holds_for_both_and_rule_for_callers(
    neighbor: str, migrated: str, router: Router
) -> None:
    async with served(migrated, router, app=("app",)):
        caller = await join(router, "rawsocket cbor")
        lower = {"plate": "b-rc 78", "model": "van"}
        status, answer = await in_thread(reactor, "http", http, f"{neighbor}/vehicles", lower)
        assert (status, "ck_vehicles_plate_upper_case" in answer["refused"]) == (409, True)
        for values, error in ((lower, "check_violation"), ({**lower, "plate": " "}, "invalid_row")):
            with pytest.raises(ApplicationError) as caught:
                await caller.call("rowcast.vehicles.create", values)
            assert caught.value.error == f"rowcast.error.{error}"
        await caller.close()
