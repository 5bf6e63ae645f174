"""Loaded objects are excluded from garbage collections."""

from __future__ import annotations

import gc
import subprocess
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from service.app import make_service
from service.settings import Settings
from tests.conftest import ROOT, crossbar

JOINED = """
import gc
from component import Component
from autobahn.wamp.types import ComponentConfig
from twisted.internet.defer import ensureDeferred

class Joined(Component):
    async def register(self, *args, **options):
        print(args[1])
        return self

    id = 1

class Transport:
    class _router:
        class _dealer:
            pass

class Details:
    authrole = "service"

component = Joined(ComponentConfig(extra={"prefix": "p"}))
component._transport = Transport()
assert gc.get_freeze_count() == 0
ensureDeferred(component.onJoin(Details())).addErrback(print)
print(gc.get_freeze_count() > 1000)
"""


class Reactor(MemoryReactorClock):
    """A reactor in memory with the signal handlers of the real one."""

    sigInt = sigTerm = staticmethod(lambda *_: None)


@pytest.fixture(autouse=True)
def thawed() -> Any:
    """Unfreeze the objects of the test process, and freeze them again afterwards."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


def test_service_that_is_ready_freezes_its_memory() -> None:
    """Once it is ready, collections skip the objects that exist."""
    service = make_service(Settings(), Reactor())
    assert gc.get_freeze_count() == 0
    service.when_ready().callback(None)
    assert gc.get_freeze_count() > 1000


def test_router_with_our_component_freezes_its_memory() -> None:
    """In the router's process, with the router's Python."""
    python = Path(crossbar()).with_name("python")
    said = subprocess.check_output([python, "-c", JOINED], cwd=ROOT / "router", text=True)
    assert said.split() == ["p.router.backlog", "p.router.alive", "p", "True"]
