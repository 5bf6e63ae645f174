"""
Rows of an import that their model judges, each by itself, as those of `create`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from service.answer.admission import made_of
from service.answer.csv_rows import Record, split
from service.answer.served import Served
from service.catalog import Relation, Type
from service.db.copy import Text
from service.db.database import Database
from service.db.statements import apart_txn
from service.errors import InvalidArgument, InvalidRow
from service.plan.write import writable

Rows = list[Mapping[str, Any]]
Fields = tuple[Any, Mapping[str, Text]]
"""A row as its model sees it, and the texts of what it sees less exactly than it came."""

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
        self._line = 0

    async def of_rows(self, rows: Sequence[Any]) -> Rows:
        """
        Judge rows; gives them as the model left them.

        Raises:
            InvalidRow: The model says no to one; `line` tells which, in the whole import.
            InvalidArgument: One is no row; likewise.
        """
        found = []
        for at, row in enumerate(rows):
            self._line += 1
            found.append(await self._one((row, {}), f"rows.{at}", self._line))
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
        take = partial(_taken, self._served, self._relation, text, last, self._names, self._line)
        taken = (
            take() if len(text) < SMALL else await self._database.run(apart_txn, take, retry=True)
        )
        self._names, rows, self._rest, self._line = taken
        found = []
        for at, (line, fields) in enumerate(rows):
            found.append(await self._one(fields, "csv", line))
            await self._database.breathe(at)
        return found

    async def _one(self, fields: Fields, path: str, line: int) -> Mapping[str, Any]:
        row, texts = fields
        try:
            return await self._admitted(self._named(row, path), texts, path)
        except (InvalidRow, InvalidArgument) as refusal:
            refusal.details["line"] = line
            raise

    async def _admitted(
        self, row: Mapping[str, Any], texts: Mapping[str, Text], path: str
    ) -> Mapping[str, Any]:
        given = {name: value for name, value in row.items() if value != {"$default": True}}
        admitted = await self._judge.admit_new(given, self._served.codec, path)
        return {**row, **texts, **made_of(self._served, self._relation, given, admitted)}

    def _named(self, row: Any, path: str) -> Mapping[str, Any]:
        if isinstance(row, list | tuple) and len(row) == len(self._names or ()):
            row = dict(zip(self._names or (), row, strict=True))
        if not isinstance(row, Mapping):
            raise InvalidArgument("a row is a dict of columns and values", path=path)
        for name in row:
            writable(self._relation, name, f"{path}.{name}")
        return row


def _taken(
    served: Served,
    relation: Relation,
    text: str,
    last: bool,
    names: tuple[str, ...] | None,
    line: int,
) -> tuple[tuple[str, ...] | None, list[tuple[int, Fields]], str, int]:
    """
    Give the names, the rows with their lines, what is left of CSV, and the last line.

    Without names, its header has them. A row's line is its last one, as COPY tells it.
    """
    records, rest = split(text, last)
    rows = []
    for record in records:
        line += 1 + sum(field.count("\n") for field in record if field)
        if names is None:
            names = _header(relation, record)
            continue
        try:
            rows.append((line, _row(served, relation, names, record)))
        except InvalidArgument as refusal:
            refusal.details["line"] = line
            raise
    return names, rows, rest, line


def _header(relation: Relation, record: Record) -> tuple[str, ...]:
    names = tuple(name or "" for name in record)
    for at, name in enumerate(names):
        writable(relation, name, f"csv.{name}")
        if name in names[:at]:
            raise InvalidArgument(f'"{name}" is named twice', path=f"csv.{name}", column=name)
    return names


def _row(served: Served, relation: Relation, names: Sequence[str], record: Record) -> Fields:
    if len(record) != len(names):
        raise InvalidArgument(f"a record of the CSV has {len(names)} fields", path="csv")
    row: dict[str, Any] = dict(zip(names, record, strict=True))
    texts = {}
    for name, text in row.items():
        type = served.catalog.plain(served.catalog.type(relation.columns[name].type))
        if text is not None and type.name in ("json", "jsonb"):
            # only there a text means something else on the wire, where numbers are less exact
            row[name], texts[name] = _json(served, type, name, text), Text(text)
    return row, texts


def _json(served: Served, type: Type, name: str, text: str) -> Any:
    try:
        return served.codec.read(type, text)
    except (ValueError, RecursionError):
        raise InvalidArgument("not JSON", path=f"csv.{name}", column=name) from None
