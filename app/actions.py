"""
Actions: their rules, and what can be done with one beside what can be done with any row.
"""

from __future__ import annotations

from typing import Any

from service.errors import NotFound
from service.models.model import Model, not_blank
from service.procedures.registry import ProcedureCall, procedure


class Action(Model):
    """One thing to be done."""

    TABLENAME = "actions"
    NEEDS = ("action", "path", "status")


Action.addValidator(not_blank("action", "path"))


@procedure("actions.complete", Action)
async def complete(call: ProcedureCall, key: Any) -> dict[str, Any]:
    """
    Mark an action as done; return its row.

    Raises:
        NotFound: There is no such action.
    """
    async with call.database.transaction():
        action = await Action.find(key, for_update=True)
        if action is None:
            raise NotFound("actions")
        action.status = True
        await action.save()
    return call.wire(action)
