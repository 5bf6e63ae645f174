"""
Rows of an import that their model judges, each by itself, as those of `create`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from service.answer.csv_rows import Record, split
from service.answer.served import Served
from service.catalog import Relation
from service.db.interactions import apart_txn
from service.db.scope import Database
from service.errors import InvalidArgument
from service.plan.write import writable

Rows = list[Mapping[str, Any]]

SMALL = 16 * 1024
"""Characters of CSV that are taken apart in a moment; more are in a pool thread."""


class Judged:
    """
    Has the model of a relation judge the rows of an import.

    Args:
        database: For a thread, and turns of the reactor.
        served: The catalog, and the judge.
        relation: Whose rows.
        columns: What rows that are lists, and CSV without a header, are made of.
    """

    def __init__(
        self,
        database: Database,
        served: Served,
        relation: Relation,
        columns: tuple[str, ...] | None,
    ) -> None:
        self._database = database
        self._served = served
        self._relation = relation
        self._judge = served.judge(relation)
        self._names = columns
        self._rest = ""

    async def of_rows(self, rows: Sequence[Any]) -> Rows:
        """
        Judge rows; gives them as the model left them.

        Raises:
            InvalidRow: The model says no to one.
            InvalidArgument: One is no row.
        """
        found = []
        for at, row in enumerate(rows):
            found.append(await self._admitted(self._named(row, at), f"rows.{at}"))
            await self._database.breathe(at)
        return found

    async def of_csv(self, text: str, last: bool = False) -> Rows:
        """
        Judge the rows that a piece of CSV makes whole.

        Args:
            text: The piece.
            last: Whether no more comes.
        """
        text, self._rest = self._rest + text, ""
        take = partial(_taken, self._served, self._relation, text, last, self._names)
        taken = take() if len(text) < SMALL else await self._database.run(apart_txn, take)
        self._names, rows, self._rest = taken
        return await self.of_rows(rows)

    async def _admitted(self, row: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        codec = self._served.codec
        given = {name: value for name, value in row.items() if value != {"$default": True}}
        admitted = await self._judge.admit_new(given, codec, path)
        made = {
            name: codec.wire(value)
            for name, value in admitted.items()
            if name not in given or value is not given[name]
        }
        return {**row, **made}

    def _named(self, row: Any, at: int) -> Mapping[str, Any]:
        if isinstance(row, list | tuple) and len(row) == len(self._names or ()):
            row = dict(zip(self._names or (), row, strict=True))
        if not isinstance(row, Mapping):
            raise InvalidArgument("a row is a dict of columns and values", path=f"rows.{at}")
        for name in row:
            writable(self._relation, name, f"rows.{at}.{name}")
        return row


def _taken(
    served: Served,
    relation: Relation,
    text: str,
    last: bool,
    names: tuple[str, ...] | None,
) -> tuple[tuple[str, ...] | None, Rows, str]:
    """Give the names, the rows and what is left of CSV; without names, its header has them."""
    records, rest = split(text, last)
    if names is None and records:
        names = _header(relation, records.pop(0))
    return names, [_row(served, relation, names or (), record) for record in records], rest


def _header(relation: Relation, record: Record) -> tuple[str, ...]:
    names = tuple(name or "" for name in record)
    for at, name in enumerate(names):
        writable(relation, name, f"csv.{name}")
        if name in names[:at]:
            raise InvalidArgument(f'"{name}" is named twice', path=f"csv.{name}", column=name)
    return names


def _row(
    served: Served, relation: Relation, names: Sequence[str], record: Record
) -> Mapping[str, Any]:
    if len(record) != len(names):
        raise InvalidArgument(f"a record of the CSV has {len(names)} fields", path="csv")
    return {
        name: _value(served, relation, name, text) for name, text in zip(names, record, strict=True)
    }


def _value(served: Served, relation: Relation, name: str, text: str | None) -> Any:
    """Give the wire value of a field: only in JSON a text means something else on the wire."""
    type = served.catalog.type(relation.column(name, f"csv.{name}").type)
    return served.codec.read(type, text) if type.name in ("json", "jsonb") else text
