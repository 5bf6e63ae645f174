"""
A caller for one call: a session that joins, calls and leaves.
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
"""Maximum size of a message in bytes; RawSocket's limit is 16 MiB."""


class NotJoined(Exception):
    """
    No session could be opened.

    Args:
        why: The reason, as a sentence.
        refused: Whether the router refused the session, so that a retry is useless.
    """

    def __init__(self, why: str, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


class CallRefused(Exception):
    """
    The call was answered by an error.

    Args:
        uri: URI of the error.
        message: Its message.
        details: Its keyword arguments.
    """

    def __init__(self, uri: str, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(f"{uri}: {message}")
        self.details = details


@dataclass(frozen=True)
class CallTarget:
    """
    The router at which a call is made.

    Args:
        url: URL of the router.
        realm: Realm to join.
        login: Authentication method and credentials.
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
    Join, call and leave; if this is cancelled, the call is.

    Args:
        reactor: Opens the connection.
        place: The router.
        uri: URI of the procedure.
        args: Positional arguments.
        kwargs: Keyword arguments.
        progress: Called with each progressive result; None asks for none.

    Returns:
        The result; a dict of `args` and `kwargs` if it is not a single value.

    Raises:
        NotJoined: No session could be opened.
        CallRefused: The call was answered by an error, or the session was lost during the call.
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
    Join, subscribe to all topics with a prefix and leave; raises as `call_once` does.

    Args:
        reactor: Opens the connection.
        place: The router.
        topic: Prefix of the topics.
    """

    async def subscribe(session: SafeSession) -> None:
        options = SubscribeOptions(match="prefix")
        await session.subscribe(lambda *_, **__: None, topic, options)

    await once(reactor, place, subscribe)


async def once(
    reactor: Any, place: CallTarget, act: Callable[[SafeSession], Awaitable[Any]]
) -> Any:
    """Join, run `act` and leave; raises as `call_once` does."""
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
            end = session.closing
            why = f"{end.reason}: {end.message}" if end else "closed during the handshake"
            joined.errback(NotJoined(protocol.why or why, refused=end is not None))
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
                # Without a session no GOODBYE can be exchanged, and a silent peer would not close.
                protocol.transport.abortConnection()
            await closed


def _refuse(why: str) -> None:
    raise NotJoined(why)
