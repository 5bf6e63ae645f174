"""
What has been loaded is left out of later collections.
"""

from __future__ import annotations

import gc
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from autobahn.wamp.types import ComponentConfig
from twisted.internet.task import Clock

from service.app import make_service
from service.settings import Settings
from tests.deferreds import result_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def thawed() -> Any:
    """Let the tests' own process collect all again."""
    yield
    gc.unfreeze()


def test_a_service_that_has_risen() -> None:
    """Once it answers calls, a collection no longer looks at what it stands on."""
    service = make_service(Settings(), Clock())
    assert gc.get_freeze_count() == 0
    service.risen().callback(None)
    assert gc.get_freeze_count() > 1000


def test_a_router_with_our_component() -> None:
    """So it is in the router's process, if it has our component."""
    place = spec_from_file_location("backlog", ROOT / "router/backlog.py")
    assert place is not None
    assert place.loader is not None
    backlog = module_from_spec(place)
    place.loader.exec_module(backlog)

    class Joined(backlog.Backlog):  # type: ignore[misc, name-defined]
        async def register(self, *args: Any, **options: Any) -> None:
            self.registered = args[1]

    class Details:
        authrole = "service"

    component = Joined(ComponentConfig(extra={"prefix": "rowcast"}))
    result_of(component.onJoin(Details()))
    assert component.registered == "rowcast.router.backlog"
    assert gc.get_freeze_count() > 1000
