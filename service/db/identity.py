"""
As whom a statement runs: a database role, and what is known of the caller.

Both are set for the transaction alone, by words that travel in front of a statement. A
message of several statements is a transaction by itself, so a single read under a role is
one round trip still.
"""

from __future__ import annotations

from collections.abc import Mapping


def identity_words(role: str, claims: Mapping[str, str | None]) -> str:
    """
    Word that what follows runs as a role.

    Args:
        role: Of the database.
        claims: What policies may ask for with `current_setting('rowcast.<name>', true)`;
            one that is None is set to the empty string.

    Returns:
        One statement with its semicolon, without any percent sign, so that psycopg2
        takes it for plain text with and without parameters.
    """
    settings = {"role": role}
    settings |= {f"rowcast.{name}": value or "" for name, value in claims.items()}
    calls = (
        f"pg_catalog.set_config('{name}',{_literal(value)},true)"
        for name, value in settings.items()
    )
    return f"SELECT {','.join(calls)};"


def _literal(text: str) -> str:
    """Quote a text; `standard_conforming_strings` is on in every session."""
    clean = text.replace("\0", "").encode("utf-8", "replace").decode()
    quoted = "'" + clean.replace("'", "''") + "'"
    return quoted.replace("%", "'||pg_catalog.chr(37)||'")
