"""
Whose rights a call has: the router's role of the caller to a role of the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from service.db.session import Identity, identity_of
from service.errors import NotAuthorized
from service.request.arguments import Caller

ANONYMOUS = "anonymous"
"""The authrole that routers give, by custom, to who does not log in."""
SERVICE = ""
"""Stands for the service's own role, which every call has where no roles are mapped."""


@dataclass(frozen=True)
class Roles:
    """
    Args:
        mapped: WAMP authroles to database roles; empty: all calls run as the service.
        anonymous: The database role of callers whose authrole is not mapped, if they have one.
    """

    mapped: Mapping[str, str] = field(default_factory=dict)
    anonymous: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All database roles that a call may have."""
        found = {*self.mapped.values(), *([self.anonymous] if self.anonymous else [])}
        return tuple(sorted(found)) or (SERVICE,)

    def named_by(self, role: str) -> str:
        """Return the setting that names a database role, as an operator has written it."""
        pairs = [f"{authrole}={name}" for authrole, name in self.mapped.items() if name == role]
        return f"ROWCAST_ROLES ({', '.join(pairs)})" if pairs else "ROWCAST_ANONYMOUS"

    def anonymous_is(self, caller: Caller) -> bool:
        """Return whether nobody knows who a caller is, the next time that it comes."""
        unmapped = self.names != (SERVICE,) and caller.authrole not in self.mapped
        return caller.authid is None or caller.authrole == ANONYMOUS or unmapped

    def of(self, caller: Caller) -> str:
        """Return the database role of a caller; raises as `of_authrole` does."""
        return self.of_authrole(caller.authrole)

    def of_authrole(self, authrole: str | None) -> str:
        """
        Return the database role of callers with a WAMP authrole.

        Raises:
            NotAuthorized: They have none.
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
    Return the role under which a caller's statements run, and the claims that policies may read.

    Args:
        role: Of the database.
        caller: Whose it is.
        schema: Where unqualified names are looked for first, if not where the session does.
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
