"""
Keyword arguments of import to requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidArgument
from service.request.arguments import Arguments
from service.request.types import OnConflict
from service.request.writes import names_of, parse_conflict

START = ("columns", "on_conflict", "update")
"""What the first call says for the whole of an upload."""


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """
    One call of an import.

    Args:
        rows: Dicts, or lists where `columns` names their items; None without any.
        csv: Text of CSV; None without any.
        columns: What the rows are made of, if the caller says; CSV then has no header.
        conflict: What becomes of rows that are there already; None if that is an error.
        upload: The import that this call belongs to.
        done: Whether it is the last call of its import.
        timeout: The caller's time limit in seconds, if any.
    """

    rows: Sequence[Any] | None
    csv: str | None
    columns: tuple[str, ...] | None
    conflict: OnConflict | None
    upload: str | None
    done: bool
    timeout: float | None

    @property
    def empty(self) -> bool:
        """Whether the call brings no rows."""
        return not self.rows and not self.csv


def parse_import(args: Sequence[Any], kwargs: Mapping[str, Any]) -> ImportRequest:
    """
    Read the arguments of `import`; what its rows hold is read where they are written.

    A call that brings rows and names no upload is the whole import, unless it says otherwise.
    """
    given = Arguments(args, kwargs, ["rows"], ["csv", "upload", "done", *START])
    rows, csv = given.value("rows"), given.value("csv")
    if isinstance(rows, str) and csv is None:
        rows, csv = None, rows
    if rows is not None and csv is not None:
        raise InvalidArgument('either "rows" or "csv"', path="csv")
    if not isinstance(rows, list | tuple | None):
        raise InvalidArgument('"rows" is a list of rows', path="rows")
    if not isinstance(csv, str | None):
        raise InvalidArgument('"csv" is a text', path="csv")
    upload = given.value("upload")
    if not isinstance(upload, str | None):
        raise InvalidArgument('"upload" is what the first call has answered', path="upload")
    for name in START if upload is not None else ():
        if given.value(name) is not None:
            raise InvalidArgument(f'"{name}" is for the first call of an upload', path=name)
    columns = given.value("columns")
    whole = upload is None and (rows is not None or csv is not None)
    return ImportRequest(
        rows,
        csv,
        None if columns is None else _columns(columns),
        _conflict(given),
        upload,
        given.flag("done", default=whole),
        given.timeout(),
    )


def _columns(value: Any) -> tuple[str, ...]:
    columns = names_of(value, "columns")
    if not columns:
        raise InvalidArgument("a row has columns", path="columns")
    return columns


def _conflict(given: Arguments) -> OnConflict | None:
    if given.value("on_conflict") is None and given.value("update") is None:
        return None
    return parse_conflict(given)
