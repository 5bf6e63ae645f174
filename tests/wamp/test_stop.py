"""
A part that fails to stop does not leave the others running.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock

from service.app import Rowcast
from service.embedded.supervisor import NotReady, Supervised
from service.errors import Unavailable
from service.settings import Settings
from tests.conftest import Router
from tests.wamp.service import served


class Part(Service):
    """A service whose stop fails, at once or later."""

    def __init__(self, failure: Exception | None = None, later: bool = False) -> None:
        self.failure = failure
        self.later = later

    def stopService(self) -> Deferred[None] | None:
        """Fail, if this part is to fail."""
        super().stopService()
        if self.failure is None:
            return None
        if self.later:
            return fail(self.failure)
        raise self.failure


class Child(Part, Supervised):
    """A supervised child that stops with others."""

    async def prepare(self) -> list[str]:
        """Do nothing."""
        return []

    async def ready(self, pid: int) -> bool:
        """Do nothing."""
        return True

    def shutdown_signal(self) -> str:
        """Do nothing."""
        return ""


@pytest.mark.parametrize("kind", [Part, Child])
def test_parts_beside_one_that_fails_are_stopped(kind: type[Part]) -> None:
    """Whichever part fails, and however, all others stop, and so does the parent."""
    service = Rowcast(Settings(), Clock())
    parts = [kind(), kind(ValueError("at once")), kind(ValueError("later"), later=True), kind()]
    for part in parts:
        part.running = True
        part.setServiceParent(service)
    stopped = service.stopService()
    assert stopped.called
    assert not any(part.running for part in parts)
    results: list[Any] = []
    stopped.addBoth(results.append)
    assert results == [None]


class Interrupted(Rowcast):
    """A service whose start ends with an error when it is cancelled, as when its child process is stopped."""

    async def _start(self) -> None:
        try:
            await Deferred()
        except CancelledError:
            raise NotReady("the child process has ended") from None


def test_start_that_the_stop_interrupts_has_not_failed() -> None:
    """Check that nobody is told that the service cannot start: who is told stops the reactor again."""
    service = Interrupted(Settings(), Clock())
    told: list[Any] = []
    service.when_ready().addBoth(told.append)
    service.startService()
    assert service.stopService().called
    assert told == []


@pytest_twisted.ensureDeferred
async def test_pool_beside_a_listener_that_fails_is_closed(
    migrated: str, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections are closed although the listener does not stop."""
    async with served(migrated, router) as serving:
        end = serving.listener.stopService

        def end_badly() -> Any:
            end()
            raise ValueError("on purpose")

        monkeypatch.setattr(serving.listener, "stopService", end_badly)
    with pytest.raises(Unavailable):
        await serving.database.run(lambda connection: None)
