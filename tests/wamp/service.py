"""
The complete service between a database and a router, in this process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import SecretStr
from twisted.internet import reactor

from service.app import Serving
from service.settings import Settings
from service.wamp.client import WampConfig
from tests.conftest import Router
from tests.deferreds import until

UNHURRIED = {"lock_timeout": 60, "tx_idle_timeout": 60, "drain_timeout": 2}
"""Timeouts that load on the machine must not trigger in tests about something else, and a short drain."""


@asynccontextmanager
async def served(dsn: str, router: Router, **settings: Any) -> AsyncIterator[Serving]:
    """
    Serve a database on the router for the length of the body, once its feed has a part.

    Changes from before the first lead, which begins the first epoch, are not published.
    """
    chosen = Settings(**{"database_url": SecretStr(dsn), **UNHURRIED, **settings})
    config = WampConfig(
        [f"unix:{router.socket}"], router.realm, max_bytes=chosen.max_bytes, first_delay=0.05
    )
    service = Serving(chosen, reactor, config)
    service.startService()
    try:
        await service.joined()
        await until(lambda: service.feed.problem != "not started")
        yield service
    finally:
        await service.stopService()
