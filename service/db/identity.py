"""
As whom a statement runs: a database role, and what is known of the caller.

Both are set for the transaction alone, by words that travel in front of a statement. A
message of several statements is a transaction by itself, so a single read under a role is
one round trip still. What ends its transaction itself, as a procedure can, has no
transaction to set them for: it gets a session that is somebody for as long as it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.db.assigned import assigned, preferred


@dataclass(frozen=True, slots=True)
class Identity:
    """
    Words that have statements be somebody's; all of them empty for the service itself.

    Args:
        words: For what follows in the transaction.
        session: For what follows in the session, until it is cleaned.
    """

    words: str = ""
    session: str = ""


ITSELF = Identity()
"""The service itself."""


def identity_of(role: str, claims: Mapping[str, str | None], schema: str = "") -> Identity:
    """
    Give the identity of a role.

    Args:
        role: Of the database; "" for the service's own.
        claims: What policies may ask for with `current_setting('rowcast.<name>', true)`;
            one that is None is set to the empty string.
        schema: Where unqualified names are looked for first, if not where the session does.
    """
    told = {f"rowcast.{name}": value or "" for name, value in claims.items()}
    settings = {"role": role, **told} if role else told

    def words(local: bool) -> str:
        found = assigned(settings, local) if settings else ""
        return found + (preferred(schema, local) if schema else "")

    return Identity(words(True), words(False))
