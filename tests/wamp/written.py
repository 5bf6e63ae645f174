"""
An application with hand-written procedures for tests.
"""

from __future__ import annotations

from typing import Any

from service.procedures.registry import ProcedureCall, procedure


@procedure("whoami")
async def whoami(call: ProcedureCall) -> list[Any]:
    """Return the caller without its session id."""
    return [call.caller.authid, call.caller.authrole, call.caller.realm]


@procedure("echo")
async def echo(call: ProcedureCall, value: Any = None) -> Any:
    """Return the argument."""
    return value


@procedure("spoiled")
async def spoiled(call: ProcedureCall) -> Any:
    """Return a value that cannot be serialized."""
    return object()


@procedure("wrong")
async def wrong(call: ProcedureCall) -> Any:
    """Raise an unexpected exception."""
    raise KeyError("a secret")


@procedure("sleep")
async def sleep(call: ProcedureCall, seconds: float) -> Any:
    """Sleep in PostgreSQL."""
    return await call.database.statement("SELECT pg_sleep(%s)", [seconds], retry=True)
