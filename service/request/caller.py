"""
Who calls.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """
    The session a call came from, as the router tells it.

    A router that does not disclose callers leaves `session`, `authid` and `authrole` None.

    Args:
        session: Id of the caller's WAMP session.
        authid: Who the session logged in as.
        authrole: The role the router gave it.
        realm: Where the call was made.
    """

    session: int | None
    authid: str | None
    authrole: str | None
    realm: str
