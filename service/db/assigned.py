"""
Settings as words in front of a statement: for its transaction, or for the session.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.sql.statement import quoted


def assigned(settings: Mapping[str, str], local: bool = True) -> str:
    """
    Word that settings have values from here on.

    Args:
        settings: Names, which are ours, and values.
        local: Whether they hold for the transaction, rather than for the session.

    Returns:
        One statement with its semicolon, without any percent sign, so that psycopg2
        takes it for plain text with and without parameters.
    """
    calls = (
        f"pg_catalog.set_config('{name}',{_literal(value)},{'true' if local else 'false'})"
        for name, value in settings.items()
    )
    return f"SELECT {','.join(calls)};"


def preferred(schema: str, local: bool = True) -> str:
    """Word that unqualified names are looked for in a schema first, from here on."""
    path = f"{_literal(quoted(schema) + ', ')}||pg_catalog.current_setting('search_path')"
    return f"SELECT pg_catalog.set_config('search_path',{path},{'true' if local else 'false'});"


def _literal(text: str) -> str:
    """Quote a text; `standard_conforming_strings` is on in every session."""
    clean = text.replace("\0", "").encode("utf-8", "replace").decode()
    literal = "'" + clean.replace("'", "''") + "'"
    return literal.replace("%", "'||pg_catalog.chr(37)||'")
