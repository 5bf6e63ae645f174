"""
The rights of a call: maps the authrole of its caller to a database role.

Also builds the catalog of all roles: the union of what each may use.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from service.catalog import Catalog, Column, Function, QualifiedName, Relation, Type
from service.db.session_settings import Identity, identity_of
from service.errors import NotAuthorized
from service.request.arguments import Caller

ANONYMOUS = "anonymous"
"""The authrole that routers conventionally assign to sessions that do not log in."""
SERVICE = ""
"""Stands for the service's own database role, with which all calls run if no roles are mapped."""


@dataclass(frozen=True)
class Roles:
    """
    The mapping of WAMP authroles to database roles.

    Args:
        mapped: Database roles by authrole; if empty, all calls run with the service's own role.
        anonymous: The database role of callers whose authrole is not mapped, if they have one.
    """

    mapped: Mapping[str, str] = field(default_factory=dict)
    anonymous: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All database roles with which a call may run."""
        found = {*self.mapped.values(), *([self.anonymous] if self.anonymous else [])}
        return tuple(sorted(found)) or (SERVICE,)

    def named_by(self, role: str) -> str:
        """Return the setting that names a database role, for messages to the operator."""
        pairs = [f"{authrole}={name}" for authrole, name in self.mapped.items() if name == role]
        return f"ROWCAST_ROLES ({', '.join(pairs)})" if pairs else "ROWCAST_ANONYMOUS"

    def anonymous_is(self, caller: Caller) -> bool:
        """Return whether a caller cannot be recognized when it reconnects."""
        unmapped = self.names != (SERVICE,) and caller.authrole not in self.mapped
        return caller.authid is None or caller.authrole == ANONYMOUS or unmapped

    def of(self, caller: Caller) -> str:
        """Return the database role of a caller; raise as `of_authrole` does."""
        return self.of_authrole(caller.authrole)

    def of_authrole(self, authrole: str | None) -> str:
        """
        Return the database role of callers with a WAMP authrole.

        Raises:
            NotAuthorized: The authrole has no database role.
        """
        if not self.mapped and self.anonymous is None:
            return SERVICE
        role = self.mapped.get(authrole or "", self.anonymous)
        if role is None:
            raise NotAuthorized(f'callers of the role "{authrole}" have no rights here')
        return role


@lru_cache(4096)
def identity_for(role: str, caller: Caller, schema: str = "") -> Identity:
    """
    Return the role with which a caller's statements run, and the claims that policies may read.

    Args:
        role: The caller's database role.
        caller: The caller.
        schema: First schema in the search_path; "" for that of the session.
    """
    if role == SERVICE:
        return identity_of(role, {}, schema)
    session = None if caller.session is None else str(caller.session)
    claims = {
        "authid": caller.authid,
        "authrole": caller.authrole,
        "realm": caller.realm,
        "session": session,
    }
    return identity_of(role, claims, schema)


def union_of(catalogs: Sequence[Catalog]) -> Catalog:
    """Merge the catalogs of several roles into one that has what any of them may use, in any order."""
    first, *rest = catalogs
    if not rest:
        return first
    types: dict[int, Type] = {}
    relations: dict[QualifiedName, list[Relation]] = defaultdict(list)
    functions: dict[QualifiedName, dict[tuple[int, ...], Function]] = defaultdict(dict)
    for catalog in catalogs:
        types |= catalog.types
        for name, relation in catalog.relations.items():
            relations[name].append(relation)
        for name, overloads in catalog.functions.items():
            for each in overloads:
                # The input types identify an overload in the catalogs of all roles.
                functions[name].setdefault(tuple(it.type for it in each.inputs), each)
    return replace(
        first,
        relations={name: _relation(alike) for name, alike in relations.items()},
        types=types,
        functions={name: tuple(alike.values()) for name, alike in functions.items()},
    )


def _relation(alike: Sequence[Relation]) -> Relation:
    """Merge what the roles know of one relation: a role knows a key if it may use all of its columns."""
    columns: dict[str, list[Column]] = defaultdict(list)
    for relation in alike:
        for name, column in relation.columns.items():
            columns[name].append(column)
    # A role that may not read a column of the primary key knows none.
    primary = next((each.primary_key for each in alike if each.primary_key), ())
    indexes = {index.name: index for each in alike for index in each.unique_indexes}.values()
    keys = {key.name: key for each in alike for key in each.unique_keys}.values()
    referring: dict[str, Any] = {
        name: tuple(dict.fromkeys(key for each in alike for key in getattr(each, name)))
        for name in ("foreign_keys", "view_foreign_keys", "view_keys")
    }
    return replace(
        alike[0],
        columns={name: _column(found) for name, found in columns.items()},
        primary_key=primary,
        # The primary key comes first, as in each catalog; the sort is stable for the others.
        unique_keys=tuple(sorted(keys, key=lambda key: key.columns != primary)),
        unique_indexes=tuple(indexes),
        constraints={name: of for each in alike for name, of in each.constraints.items()},
        **referring,
        **_rights(alike, "selectable", "insertable", "updatable", "deletable", "readable"),
    )


def _column(alike: Sequence[Column]) -> Column:
    return replace(alike[0], **_rights(alike, "selectable", "insertable", "updatable"))


def _rights(alike: Sequence[Relation | Column], *names: str) -> dict[str, Any]:
    """Return which rights any of the roles has."""
    return {name: any(getattr(each, name) for each in alike) for name in names}
