"""
What all writes share: how one is run, and what form its answer has.

A write whose answer could turn out too large, or too many, runs in a transaction that is
rolled back in that case.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from service.answer.served import Served
from service.answer.text import listed, paged
from service.answer.verbs import Verbs
from service.catalog import Relation
from service.db.statements import Shape, Written, write_txn
from service.request.read import Parsed
from service.request.types import CreateRequest, DeleteRequest, Returning, UpdateRequest
from service.sql.statement import Statement


class Writing(Verbs):
    """What the verbs that write share."""

    async def write(
        self,
        served: Served,
        relation: Relation,
        make: Callable[[], Statement],
        call: Parsed[Any],
        max_affected: int | None,
        one: bool = False,
    ) -> Written:
        """
        Run a write; one that cannot be refused afterwards needs no transaction around it.

        Args:
            served: For the codec.
            relation: What it writes.
            make: Gives the statement.
            call: The call.
            max_affected: How many rows may be written.
            one: Whether it is for one row, which has to be written.

        Raises:
            Missed: The one row was not written; nothing is kept.
            OutcomeUnknown: The connection was lost while it was being committed.
            TooManyRows: More than `max_affected`; nothing is kept.
            TooLarge: What it reads back weighs too much; nothing is kept.
        """
        returning: Returning = call.request.returning
        small = not returning.rows or (
            _is_one(call.request)
            and not returning.embeds
            and served.most(relation, returning.select) <= self.max_bytes
        )
        # what fails by itself keeps nothing, but it takes an open transaction with it
        sure = not (one and relation.stirs) or (self.database.level is None and make().certain)
        alone = small and max_affected is None and sure
        run = self.database.run if alone else self.database.atomic
        shape = Shape(returning.form, self.max_bytes) if returning.rows else None
        written: Written = await self.database.again(
            lambda: run(
                write_txn,
                served.codec,
                make,
                call.values,
                max_affected,
                shape,
                one,
                self.database.level is None,
                timeout=call.timeout,
            )
        )
        return written


def _is_one(request: CreateRequest | UpdateRequest | DeleteRequest) -> bool:
    """Tell whether a write is for one row at most."""
    if isinstance(request, CreateRequest):
        return not request.many
    return request.target.key is not None


def answered(written: Written, returning: Returning, many: bool, counted: bool = False) -> Any:
    """Give a write's answer its form; `counted` where the caller cannot know the number."""
    if returning.form == "json":
        return _text(written, returning, many, counted)
    if not returning.rows:
        return {"affected": written.affected}
    if returning.form == "lists":
        answer = {"columns": list(written.columns), "rows": written.rows}
        return {**answer, "affected": written.affected} if many and counted else answer
    if not many:
        return written.rows[0] if written.rows else None
    return {"rows": written.rows, "affected": written.affected} if counted else written.rows


def _text(written: Written, returning: Returning, many: bool, counted: bool) -> str:
    if not returning.rows:
        return json.dumps({"affected": written.affected})
    if not many:
        return str(written.rows[0]) if written.rows else "null"
    return paged(written.rows, affected=written.affected) if counted else listed(written.rows)
