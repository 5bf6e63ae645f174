"""
An application for tests of both kinds of sessions: procedures that answer what tests look for.
"""

from __future__ import annotations

from typing import Any

from service.procedures.registry import ProcedureCall, procedure


@procedure("whoami")
async def whoami(call: ProcedureCall) -> list[Any]:
    """Return who calls, less the session's id."""
    return [call.caller.authid, call.caller.authrole, call.caller.realm]


@procedure("echo")
async def echo(call: ProcedureCall, value: Any = None) -> Any:
    """Return the argument."""
    return value


@procedure("spoiled")
async def spoiled(call: ProcedureCall) -> Any:
    """Return what no message can carry."""
    return object()


@procedure("wrong")
async def wrong(call: ProcedureCall) -> Any:
    """Have a bug."""
    raise KeyError("a secret")


@procedure("sleep")
async def sleep(call: ProcedureCall, seconds: float) -> Any:
    """Wait in the database."""
    return await call.database.statement("SELECT pg_sleep(%s)", [seconds], retry=True)
