"""All clients receive the same results: one scenario over each transport, serializer and language."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_twisted
from twisted.internet.utils import getProcessOutputAndValue

from service.app import Serving
from tests.conftest import Router
from tests.node import NODE, install
from tests.node import program as node_program
from tests.wamp import scenario
from tests.wamp.callers import KINDS
from tests.wamp.conftest import Join
from tests.wamp.scenario import FILE, read, run
from tests.wamp.service import served

SCHEMA = scenario.SCHEMA


@pytest_twisted.async_yield_fixture(scope="module")
async def service(dsn: str, router: Router) -> AsyncIterator[Serving]:
    """Serve the scenario's relations."""
    async with served(dsn, router) as serving:
        yield serving


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_scenario_in_autobahn_python_has_the_expected_results(
    how: str, service: Serving, call_from: Join
) -> None:
    """autobahn-python, by RawSocket and WebSocket, in CBOR, JSON and MessagePack."""
    wrong = await run(await call_from(how), "rowcast", read(FILE.read_text()))
    assert wrong == [], "\n".join(wrong)


@pytest_twisted.async_fixture(scope="module")
async def node() -> str:
    """Find Node, and install the packages of its client; return the executable."""
    await install()
    return node_program()


@pytest.mark.parametrize("serializer", ["json", "msgpack", "cbor"])
@pytest_twisted.ensureDeferred
async def test_scenario_in_autobahn_javascript_has_the_expected_results(
    serializer: str, node: str, router: Router, service: Serving
) -> None:
    """The npm package autobahn in Node, over WebSocket."""
    program = [str(NODE / "scenario.js"), router.websocket, router.realm, router.prefix]
    out, err, _ = await getProcessOutputAndValue(node, [*program, serializer, str(FILE)])
    steps = json.loads(FILE.read_text())
    ran = len(steps) - (0 if serializer == "cbor" else sum("needs" in step for step in steps))
    assert out.decode().splitlines() == [f"ran {ran}"], err.decode()
