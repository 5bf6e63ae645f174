"""
Calls of database functions and procedures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from service.api.call import CallContext
from service.api.function_rows import Called
from service.api.handlers import Handlers
from service.api.json import listed
from service.api.snapshot import Snapshot
from service.api.stream import Exporting, Streaming, of_function
from service.api.verbs import VERBS
from service.catalog import Catalog, Function
from service.db.database import Database
from service.db.statements import Shape, call_txn, fitting_txn, read_only_txn, write_txn
from service.errors import NoSuchProcedure, TooLarge, clip, committed_despite, nearest
from service.plan.functions import Answer, answer_of, plan_call, result_columns
from service.request.functions import CallRequest, parse_call
from service.request.names import FunctionName
from service.request.read import Limits, Parsed
from service.request.synonyms import synonym_hint
from service.sql.functions import call as spelled
from service.sql.statement import Statement

Verb = Callable[..., Awaitable[Any]]
"""Called with what is served, functions, args and kwargs; those that stand alone with the context too."""


class Calling(Handlers):
    """Calls of functions."""

    def __init__(self, database: Database, limits: Limits, max_bytes: int) -> None:
        super().__init__(database, limits, max_bytes)
        called = Called(database, limits, max_bytes)
        self._verbs: Mapping[str, Verb] = {
            "find": called.find,
            "aggregate": called.aggregate,
            "stream": Streaming(database, limits, max_bytes, of_function).stream,
            "export": Exporting(database, limits, max_bytes, of_function).export,
        }

    async def answer(
        self,
        snapshot: Snapshot,
        name: FunctionName,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        context: CallContext,
    ) -> Any:
        """
        Answer a call of a function, or of a verb on what it returns.

        Raises:
            NoSuchProcedure: There is no such function or verb.
        """
        catalog = snapshot.catalog
        schema = name.schema if name.schema is not None else catalog.schemas[0]
        functions = catalog.function(schema, name.function)
        if name.verb is None:
            return await self._call(snapshot, functions, args, kwargs, context)
        verb = self._verbs.get(name.verb)
        if verb is None:
            raise NoSuchProcedure(
                f'a function has no verb "{clip(name.verb)}"',
                hint=synonym_hint("verb", name.verb, self._verbs)
                or nearest(name.verb, list(self._verbs))
                or f"verbs: {', '.join(self._verbs)}",
            )
        contexts = (context,) if VERBS[name.verb].alone else ()
        return await verb(snapshot, functions, args, kwargs, *contexts)

    async def _call(
        self,
        snapshot: Snapshot,
        functions: Sequence[Function],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        context: CallContext,
    ) -> Any:
        call = parse_call(functions, args, kwargs, snapshot.catalog)
        request = call.request
        statement = snapshot.statement(self._spell, request.function, request)
        answer = answer_of(snapshot.catalog, request.function)
        form = request.form if answer in ("row", "rows") or request.form == "json" else "dicts"
        context.begun = request.function.procedure  # what it has committed stays
        rows = await self._rows(snapshot, statement, call, Shape(form, self.max_bytes))
        if form == "json":
            return _text(answer, rows)
        if answer in ("row", "rows") and form == "lists":
            return {"columns": list(statement.columns), "rows": rows}
        if answer == "composite" and request.form == "lists":
            columns = list(result_columns(snapshot.catalog, request.function) or ())
            found = [row["answer"] for row in rows if row["answer"] is not None]
            return {"columns": columns, "rows": [[row[name] for name in columns] for row in found]}
        return _result(answer, rows)

    async def _rows(
        self, snapshot: Snapshot, statement: Statement, call: Parsed[CallRequest], shape: Shape
    ) -> list[Any]:
        request = call.request
        if request.function.procedure:
            return await self._procedure(snapshot, statement, call, shape)
        reads = request.function.reads
        around = (read_only_txn,) if reads else (fitting_txn, self.max_bytes)
        rows: list[Any] = await self.database.again(
            lambda: self.database.atomic(
                *around,
                call_txn,
                snapshot.codec,
                statement,
                call.values,
                self.limits.max_rows,
                request.max_affected,
                shape,
                result_columns(snapshot.catalog, request.function) is not None,
                read_only=reads,
                retry=reads,
                timeout=call.timeout,
            )
        )
        return rows

    async def _procedure(
        self, snapshot: Snapshot, statement: Statement, call: Parsed[CallRequest], shape: Shape
    ) -> list[Any]:
        """
        Call a procedure: it may commit, and so stands alone.

        Raises:
            OutcomeUnknown: It is done, and its answer cannot be sent.
        """
        try:
            written = await self.database.run(
                write_txn,
                snapshot.codec,
                partial(_given, statement),
                call.values,
                None,
                shape,
                ending=True,
                timeout=call.timeout,
            )
        except TooLarge as error:
            if self.database.level is not None:
                raise
            raise committed_despite(error) from error
        rows: list[Any] = written.rows
        return rows

    def _spell(self, catalog: Catalog, _: Function, request: CallRequest) -> Statement:
        return spelled(plan_call(catalog, request), self.limits.max_rows + 1)


def _given(statement: Statement) -> Statement:
    return statement


def _text(answer: Answer, rows: list[str]) -> str:
    """Return the JSON of what a function answers, made of that of its rows."""
    if answer == "nothing":
        return "null"
    return listed(rows) if answer in ("rows", "values") else rows[0]


def _result(answer: Answer, rows: list[Any]) -> Any:
    """Return what a function answers, made of the rows of its statement."""
    if answer == "nothing":
        return None
    if answer == "rows":
        return rows
    if answer == "values":
        return [row["answer"] for row in rows]
    if answer == "row":
        return rows[0]
    return rows[0]["answer"]
