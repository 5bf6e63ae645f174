"""
The router configurations that come with the project.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError

from service.embedded.crossbar import node
from tests.conftest import ROOT, Router, crossbar, free_port, wait_until
from tests.wamp.callers import join
from tests.wamp.programs import port_open, program
from tests.wamp.raw import CALL, Raw

PRODUCTION = ROOT / "router" / "production.json"
METHODS = {"authmethods": ["ticket"]}
DEVELOPMENT = ROOT / "router" / "development.json"


def test_configuration_of_development_equals_the_one_the_service_writes() -> None:
    written = node("realm1", "rowcast", 8080, Path("service.sock"))
    assert json.loads(DEVELOPMENT.read_text("utf-8")) == written


@pytest.mark.parametrize("config", [DEVELOPMENT, PRODUCTION], ids=lambda path: path.stem)
def test_configuration_of_each_node_is_valid_for_crossbar(config: Path, tmp_path: Path) -> None:
    checked = subprocess.run(
        [crossbar(), "check", "--cbdir", tmp_path, "--config", config],
        env=os.environ | {"ROWCAST_TICKET": "a", "APP_TICKET": "b", "PORT": "8080"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_package_omitted_by_the_router_fails_when_it_is_called() -> None:
    """The bodies of modules and classes that use an omitted package run, but its functions raise."""
    program = """
import web3, sys
from ens.any import Thing
class Below(Thing):
    constant = web3.Web3.toChecksumAddress("0x1")
def call():
    return web3.Web3.recover("certificate")
try:
    call()
except NotImplementedError as error:
    print(error)
print(sys.modules["web3"])
"""
    said = in_router(program)
    assert said.startswith("recover is left out of this router\n")
    assert "site-packages" not in said


def test_router_without_omitted_packages_makes_keys_and_runs_user_code() -> None:
    """The node's keys are generated, and components of users can import their libraries."""
    said = in_router("""
import crossbar, sys
from eth_account import Account
print("pydantic" in sys.modules)
print(Account.from_key(bytes([1]) * 32).address)
import pydantic
class Row(pydantic.BaseModel):
    n: int
print(Row(n="1"))
""")
    assert said.split() == ["False", "0x1a642f0E3c3aF545E7AcBD38b07251B3990914F1", "n=1"]


def in_router(program: str) -> str:
    """Run a program with the router's Python; return its output."""
    python = Path(crossbar()).with_name("python")
    environ = {"PYTHONPATH": str(ROOT / "router")}
    return subprocess.check_output([python, "-c", program], env=environ, text=True)


@pytest_twisted.ensureDeferred
async def test_router_of_production_lets_the_service_join(migrated: str) -> None:
    """With its ticket, over WebSocket; the component reports slow callers."""
    port = str(free_port())
    with tempfile.TemporaryDirectory(prefix="rowcast-node-") as home:
        shared = {"HOME": home, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        router = shared | {
            "ROWCAST_TICKET": "s1",
            "APP_TICKET": "s2",
            "PORT": port,
            "PYTHONPATH": str(PRODUCTION.parent),
        }
        start = (crossbar(), "start", "--cbdir", home, "--config", str(PRODUCTION))
        with program(router, *start, "--loglevel", "warn") as node:
            wait_until(lambda: port_open(port) or not node.running(), 60, lambda: node.output)
            service = shared | {
                "DATABASE_URL": migrated,
                "ROWCAST_ROUTER_URL": f"ws://127.0.0.1:{port}/ws",
                "ROWCAST_AUTHID": "rowcast",
                "ROWCAST_TICKET": "s1",
            }
            place = Router(service["ROWCAST_ROUTER_URL"], "", "", int(port), Path())
            client = await join(place, "websocket cbor", "s2", authid="app", **METHODS)
            with pytest.raises(ApplicationError) as caught:
                await client.call("rowcast.actions.count")
            assert caught.value.error == "rowcast.error.unavailable"
            with program(service, sys.executable, "-m", "service", "run") as served:
                served.says("ready")
                own = await join(place, "websocket cbor", "s1", authid="rowcast", **METHODS)
                assert await own.call("rowcast.router.backlog", own._session_id) == 0
                with pytest.raises(ApplicationError, match="not_authorized"):
                    await client.call("rowcast.router.backlog", own._session_id)
                assert await client.call("rowcast.actions.count") == 0
                await own.close()
                await client.close()
                assert served.ends(signal.SIGINT) == 0
            node.ends(signal.SIGTERM)


@pytest.mark.parametrize("levels", [2_000, 9_000, 90_000])
@pytest_twisted.ensureDeferred
async def test_call_nested_some_thousand_deep_ends_its_own_session(
    router: Router, levels: int
) -> None:
    """A router without our component crashes if the callee uses CBOR."""
    callee, client = await join(router, "service cbor"), await join(router, "rawsocket json")
    uri = f"rowcast.test.deep{levels}"
    await callee.register(lambda value: value, uri)
    body = b"[" * levels + b"]" * levels
    client._transport.sendString(b'[%d, 1, {}, "%s", [%s]]' % (CALL, uri.encode(), body))
    await client.gone
    other = await join(router, "rawsocket json")
    assert await other.call(uri, 1) == 1
    await other.close()
    await callee.close()


def test_router_logs_complete_debug_lines() -> None:
    with tempfile.TemporaryDirectory(prefix="rowcast-debug-") as home:
        port, socket = free_port(), Path(home) / "s"
        config = node("realm1", "rowcast", port, socket, code=str(ROOT / "router"))
        (Path(home) / "config.json").write_text(json.dumps(config))
        start = (crossbar(), "start", "--cbdir", home, "--loglevel", "debug", "--color", "false")
        with program({**os.environ, "HOME": home}, *start) as router:
            wait_until(lambda: port_open(port) or not router.running(), 180, lambda: router.output)
            client = Raw(port, "realm1")
            for request in (1, 2):  # the second call uses the cached permission
                client.send(CALL, request, {}, "rowcast.echo")
                client.read()
            client.close()
            router.says("authorization cache entry found key")
            router.says("'allow': True")
            router.says("Router.authorize")
            router.ends(signal.SIGTERM)
