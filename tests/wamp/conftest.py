"""
Fixtures of the WAMP tier: a service or its WAMP edge with a fake dispatcher, and callers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import LogLevel, globalLogPublisher

from service.app import Serving
from service.wamp.backpressure import Bounds
from service.wamp.callee import Callee
from service.wamp.client import SessionObserver, WampClient, WampConfig
from tests.conftest import Router
from tests.fakes import FakeDispatcher
from tests.wamp.callers import Caller, join
from tests.wamp.service import served


class Edge:
    """
    A running WAMP edge without a database.

    Args:
        client: Its connection to the router.
        dispatch: Its callee.
        dispatcher: The fake that answers the calls.
    """

    def __init__(self, client: WampClient, dispatch: Callee, dispatcher: FakeDispatcher) -> None:
        self.client = client
        self.dispatch = dispatch
        self.dispatcher = dispatcher


StartEdge = Callable[..., Awaitable[Edge]]
Join = Callable[..., Awaitable[Caller]]


@pytest_twisted.async_yield_fixture(scope="module")
async def service(dsn: str, router: Router) -> AsyncIterator[Serving]:
    """Serve the module's database, after the module's autouse fixtures have filled it."""
    async with served(dsn, router) as serving:
        yield serving


@pytest_twisted.async_yield_fixture
async def caller(
    request: pytest.FixtureRequest, service: Serving, router: Router
) -> AsyncIterator[Caller]:
    """Join a caller, over the transport and serializer in the module's HOW."""
    session = await join(router, getattr(request.module, "HOW", "rawsocket cbor"))
    yield session
    await session.close()


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    """Collect the log events at level warn and above."""
    events: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        if event["log_level"] >= LogLevel.warn:
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def start_edge(router: Router) -> Iterator[StartEdge]:
    """Yield a function that starts a WAMP edge; each edge is stopped when the test ends."""
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
    """Yield a function that joins a caller; each caller leaves when the test ends."""
    joined: list[Caller] = []

    async def start(how: str = "rawsocket cbor", **hello: Any) -> Caller:
        caller = await join(router, how, **hello)
        joined.append(caller)
        return caller

    yield start
    for caller in joined:
        pytest_twisted.blockon(caller.close())
