"""
The other side of a call: a session that joins, makes one call and leaves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions, CallResult, SessionDetails, SubscribeOptions
from twisted.internet.defer import Deferred

from service.wamp.application_errors import application_error
from service.wamp.auth import Anonymous, Login
from service.wamp.client import CONNECT_TIMEOUT, RouterAddress
from service.wamp.session import SafeSerializer, SafeSession

LARGEST = 15 * 2**20
"""Bytes of a message: RawSocket takes 16 MiB."""


class NotJoined(Exception):
    """
    No session can be opened.

    Args:
        why: In a sentence.
        refused: Whether the router does not let us in, so that trying again is of no use.
    """

    def __init__(self, why: str, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


class CallRefused(Exception):
    """
    The call was answered by an error.

    Args:
        uri: Of the error.
        message: Its words.
        details: Its keyword arguments.
    """

    def __init__(self, uri: str, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(f"{uri}: {message}")
        self.details = details


@dataclass(frozen=True)
class CallTarget:
    """
    Where calls are made.

    Args:
        url: Of the router.
        realm: Which to join.
        login: How to say who we are.
    """

    url: str
    realm: str
    login: Login = field(default_factory=Anonymous)


async def call_once(
    reactor: Any,
    place: CallTarget,
    uri: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    progress: Callable[[Any], None] | None = None,
) -> Any:
    """
    Join, call, leave.

    Args:
        reactor: Makes the connection.
        place: Where.
        uri: Of the procedure.
        args: Of the call.
        kwargs: Of the call.
        progress: Takes the progressive results, if they are wanted.

    Returns:
        The result, as a dict of `args` and `kwargs` where it is not one value; cancelling this
        cancels the call.

    Raises:
        NotJoined: No session can be opened.
        CallRefused: It was answered by an error, or the session was lost under it.
    """

    async def call(session: SafeSession) -> Any:
        options = CallOptions(on_progress=progress)
        answer = await session.call(uri, *args, options=options, **kwargs)
        if isinstance(answer, CallResult):
            return {"args": list(answer.results), "kwargs": answer.kwresults}
        return answer

    return await once(reactor, place, call)


async def subscribe_once(reactor: Any, place: CallTarget, topic: str) -> None:
    """
    Join, subscribe to all topics that begin so, leave; raises as `call_once` does.

    Args:
        reactor: Makes the connection.
        place: Where.
        topic: What they begin with.
    """

    async def subscribe(session: SafeSession) -> None:
        options = SubscribeOptions(match="prefix")
        await session.subscribe(lambda *_, **__: None, topic, options)

    await once(reactor, place, subscribe)


async def once(
    reactor: Any, place: CallTarget, act: Callable[[SafeSession], Awaitable[Any]]
) -> Any:
    """Join, act, leave; raises as `call_once` does."""
    joined: Deferred[SafeSession] = Deferred()

    async def has_joined(session: SafeSession, _: SessionDetails) -> None:
        joined.callback(session)

    session = SafeSession(place.realm, place.login, has_joined, lambda _: None)
    router = RouterAddress.from_url(place.url)
    factory = router.factory(reactor, lambda: session, SafeSerializer(application_error, LARGEST))
    try:
        protocol: Any = await router.endpoint(reactor).connect(factory)
    except Exception as error:
        raise NotJoined(str(error) or type(error).__name__) from error
    closed: Deferred[None] = Deferred()

    def lost(_: object) -> None:
        if not joined.called:
            said = session.closing
            why = f"{said.reason}: {said.message}" if said else "closed during the handshake"
            joined.errback(NotJoined(protocol.why or why, refused=said is not None))
        closed.callback(None)

    protocol.is_closed.addBoth(lost)
    try:
        await joined.addTimeout(
            CONNECT_TIMEOUT, reactor, lambda *_: _refuse(f"no answer to the {protocol.stage}")
        )
        return await act(session)
    except ApplicationError as error:
        message = " ".join(map(str, error.args))
        raise CallRefused(error.error, message, error.kwargs) from error
    finally:
        if not closed.called:
            if joined.called and session.is_attached():
                session.leave()
            else:
                # Without a session there is nobody to say goodbye to, and a peer that is silent
                # would not close.
                protocol.transport.abortConnection()
            await closed


def _refuse(why: str) -> None:
    raise NotJoined(why)
