"""
The router forwards results of the service as they are, if the caller uses CBOR, and checks those of others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import cbor2
import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from twisted.internet.threads import deferToThread

from tests.conftest import Router, crossbar_running
from tests.wamp.callers import KINDS, Caller, join
from tests.wamp.raw import Raw, raw

CALL, RESULT, INVOCATION, REGISTER, REGISTERED, YIELD = 48, 50, 68, 64, 65, 70
ODD = b"\x82\x18\x01\xfb" + b"?\xf8" + bytes(6)
"""[1, 1.5] in CBOR, but longer than cbor2 would encode it: the integer in two bytes, the float in nine."""
VALUE = [1, 1.5]
BROKEN = b"\x82\x01"
"""A list of two items without the second one."""
FINAL, PART = b"\xa0", cbor2.dumps({"progress": True})


@pytest.fixture(scope="module")
def open_router() -> Iterator[Router]:
    """Run a router at which every client may register procedures."""
    with crossbar_running(lambda permission: permission["allow"].update(register=True)) as found:
        yield found


@asynccontextmanager
async def joined(router: Router, callee: str, how: str) -> AsyncIterator[tuple[Raw, Caller]]:
    """Yield a callee, of the role "service" or "anonymous", that has registered `rowcast.odd`, and a caller."""
    async with AsyncExitStack() as stack:
        found = await raw(router.socket if callee == "service" else router.port, router.realm)
        stack.callback(found.close)
        found.send(REGISTER, 1, {}, "rowcast.odd")
        assert (await deferToThread(found.read))[0] == REGISTERED
        caller = await join(router, how)
        stack.push_async_callback(caller.close)
        yield found, caller


async def invoked(callee: Raw) -> int:
    """Return the request id of the invocation that a callee receives."""
    message = await deferToThread(callee.read)
    assert message[0] == INVOCATION
    return int(message[1])


def yielded(request: int, options: bytes, argument: bytes) -> bytes:
    """Return a YIELD with an argument that is encoded already."""
    return b"\x84" + cbor2.dumps(YIELD) + cbor2.dumps(request) + options + b"\x81" + argument


@pytest.mark.parametrize(("callee", "same"), [("service", True), ("anonymous", False)])
@pytest_twisted.ensureDeferred
async def test_result_of_the_service_reaches_a_cbor_caller_unchanged(
    callee: str, same: bool, open_router: Router
) -> None:
    """The bytes of the service are the bytes that the caller reads; a result of another role is encoded again."""
    async with joined(open_router, callee, "rawsocket cbor") as (service, _):
        caller = await raw(open_router.port, open_router.realm)
        try:
            for asked in range(1, 40):  # request ids of one byte and of two
                caller.send(CALL, asked, {"receive_progress": True}, "rowcast.odd")
                request = await invoked(service)
                for options in (PART, FINAL):
                    service.send_encoded(yielded(request, options, ODD))
                    found = await deferToThread(caller.read_encoded)
                    kind, answered, _, argument = cbor2.loads(found)
                    assert (kind, answered, argument) == (RESULT, asked, [VALUE])
                    assert found.endswith(b"\x81" + ODD) is same
        finally:
            caller.close()


@pytest.mark.parametrize("callee", ["service", "anonymous"])
@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_result_reaches_a_caller_in_its_serializer(
    how: str, callee: str, open_router: Router
) -> None:
    """Results and parts of results arrive whatever the serializer of the caller is."""
    async with joined(open_router, callee, how) as (service, caller):
        parts: list[Any] = []
        call = caller.call("rowcast.odd", options=CallOptions(on_progress=parts.append))
        request = await invoked(service)
        service.send_encoded(yielded(request, PART, ODD))
        service.send_encoded(yielded(request, FINAL, ODD))
        assert await call == VALUE
        assert parts == [VALUE]


@pytest.mark.parametrize("callee", ["service", "anonymous"])
@pytest_twisted.ensureDeferred
async def test_result_with_several_arguments_is_complete(callee: str, open_router: Router) -> None:
    """A result that is not one argument is decoded, and loses nothing."""
    async with joined(open_router, callee, "rawsocket cbor") as (service, caller):
        for given in ([1, 2], {"one": 1}), ([1], {"one": 1}), ([1, 2], {}):
            call = caller.call("rowcast.odd")
            service.send(YIELD, await invoked(service), {}, *given)
            found = await call
            assert (list(found.results), found.kwresults or {}) == given
        call = caller.call("rowcast.odd")
        service.send(YIELD, await invoked(service), {})
        assert await call is None


@pytest.mark.parametrize(
    ("callee", "how"), [("service", "rawsocket json"), ("anonymous", "rawsocket cbor")]
)
@pytest_twisted.ensureDeferred
async def test_broken_result_ends_the_session_of_its_callee_only(
    callee: str, how: str, open_router: Router
) -> None:
    """Bytes that are decoded and are not CBOR end the session that sent them."""
    async with joined(open_router, callee, how) as (service, caller):
        call = caller.call("rowcast.odd")
        service.send_encoded(yielded(await invoked(service), FINAL, BROKEN))
        with pytest.raises(ApplicationError):
            await call
        assert await deferToThread(service.read) == []
        with pytest.raises(ApplicationError, match="unavailable"):
            await caller.call("rowcast.odd")
