"""Callers named in a forwarded call, hop by hop."""

from __future__ import annotations

from typing import Any

import pytest
from autobahn.wamp import message

from service.wamp.auth import Anonymous
from service.wamp.session import SafeSession

BOSS = {"session": 1, "authid": "admin", "authrole": "boss"}
LINK = {"session": 2, "authid": "link", "authrole": "link"}
PLAIN = {"session": 3, "authid": "ada", "authrole": "anonymous"}


@pytest.mark.parametrize(
    ("hops", "taken"),
    [
        ([BOSS], False),
        ([BOSS, PLAIN], False),
        ([BOSS, PLAIN, LINK], False),
        ([BOSS, LINK, PLAIN], False),
        ([BOSS, LINK], True),
        ([BOSS, LINK, LINK], True),
        (None, True),
    ],
)
def test_call_for_others_is_taken_from_links_alone(hops: Any, taken: bool) -> None:
    """Without a router-to-router hop, the caller that a call names is not trusted."""
    session = SafeSession("realm1", Anonymous(), _never, lambda registration: None, links=["link"])
    problem = session._problem(message.Invocation(1, 2, forward_for=hops))
    assert (problem is None) is taken


async def _never(session: SafeSession, details: Any) -> None:
    raise AssertionError
