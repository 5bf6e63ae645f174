"""
As whom a statement runs: a database role, and what is known of the caller.

Both are set for the transaction alone, by words that travel in front of a statement. A
message of several statements is a transaction by itself, so a single read under a role is
one round trip still.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.db.assigned import assigned


def identity_words(role: str, claims: Mapping[str, str | None]) -> str:
    """
    Word that what follows runs as a role.

    Args:
        role: Of the database.
        claims: What policies may ask for with `current_setting('rowcast.<name>', true)`;
            one that is None is set to the empty string.
    """
    settings = {"role": role}
    settings |= {f"rowcast.{name}": value or "" for name, value in claims.items()}
    return assigned(settings)
