"""
A service at the edge alone, with a fake dispatcher behind it, and callers of every kind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import LogLevel, globalLogPublisher

from service.app import Serving
from service.wamp.accounts import Bounds
from service.wamp.callee import Callee
from service.wamp.client import SessionObserver, WampClient, WampConfig
from tests.conftest import Router
from tests.fakes import FakeDispatcher
from tests.wamp.callers import Caller, join
from tests.wamp.service import served


class Edge:
    """
    A running service.

    Args:
        client: Its place on the router.
        dispatch: Its calls.
        dispatcher: What answers them.
    """

    def __init__(self, client: WampClient, dispatch: Callee, dispatcher: FakeDispatcher) -> None:
        self.client = client
        self.dispatch = dispatch
        self.dispatcher = dispatcher


StartEdge = Callable[..., Awaitable[Edge]]
Join = Callable[..., Awaitable[Caller]]


@pytest_twisted.async_yield_fixture(scope="module")
async def service(dsn: str, router: Router) -> AsyncIterator[Serving]:
    """Serve the module's database, once its autouse fixtures have filled it."""
    async with served(dsn, router) as serving:
        yield serving


@pytest_twisted.async_yield_fixture
async def caller(
    request: pytest.FixtureRequest, service: Serving, router: Router
) -> AsyncIterator[Caller]:
    """Join a client of the service, in the way that the module's HOW names."""
    session = await join(router, getattr(request.module, "HOW", "rawsocket cbor"))
    yield session
    await session.close()


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    """Collect what is logged at warn level and above."""
    events: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        if event["log_level"] >= LogLevel.warn:
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def start_edge(router: Router) -> Iterator[StartEdge]:
    """Give a function that starts a service; each is stopped when the test ends."""
    from twisted.internet import reactor

    started: list[WampClient] = []

    async def start(
        urls: Sequence[str] = (),
        shared: bool = False,
        drain: float = 1.0,
        observers: Sequence[SessionObserver] = (),
        wait: bool = True,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        **config: Any,
    ) -> Edge:
        dispatcher = FakeDispatcher()
        dispatch = Callee(
            reactor, dispatcher.answer, router.prefix, shared=shared, drain=drain, bounds=bounds
        )
        config = {"first_delay": 0.05, "max_delay": 0.2, "realm": router.realm, **config}
        client = WampClient(
            reactor,
            WampConfig(urls=urls or [f"unix:{router.socket}"], **config),
            [dispatch, *observers],
        )
        started.append(client)
        client.startService()
        if wait:
            await client.when_joined()
        return Edge(client, dispatch, dispatcher)

    yield start
    for client in started:
        pytest_twisted.blockon(client.stopService())


@pytest.fixture
def call_from(router: Router) -> Iterator[Join]:
    """Give a function that joins a caller; each leaves when the test ends."""
    joined: list[Caller] = []

    async def start(how: str = "rawsocket cbor", **hello: Any) -> Caller:
        caller = await join(router, how, **hello)
        joined.append(caller)
        return caller

    yield start
    for caller in joined:
        pytest_twisted.blockon(caller.close())
