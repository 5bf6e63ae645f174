"""
The rights of a call: maps the authrole of its caller to a database role.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from service.db.session_settings import Identity, identity_of
from service.errors import NotAuthorized
from service.request.arguments import UNSTORABLE, Caller

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
        return not caller.authid or caller.authrole == ANONYMOUS or unmapped

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

    Raises:
        NotAuthorized: PostgreSQL cannot hold a claim. Without these characters it could be another caller's.
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
    for name, claim in claims.items():
        if claim and UNSTORABLE.search(claim):
            raise NotAuthorized(f"PostgreSQL's text cannot hold this caller's {name}")
    return identity_of(role, claims, schema)
