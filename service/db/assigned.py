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
        Statements with their semicolons, without any percent sign, so that psycopg2 takes
        them for plain text with and without parameters. They are SET, which costs PostgreSQL
        a third less than a SELECT of `set_config` (`bench/roles.py`).
    """
    scope = "SET LOCAL" if local else "SET"
    return "".join(f"{scope} {name}={_literal(value)};" for name, value in settings.items())


def preferred(schema: str, local: bool = True) -> str:
    """Word that unqualified names are looked for in a schema first, from here on."""
    return _searched(
        f"{_literal(quoted(schema) + ', ')}||pg_catalog.current_setting('search_path')", local
    )


def searched(path: str, local: bool = True) -> str:
    """Word where unqualified names are looked for, a list of quoted schemas, from here on."""
    return _searched(_literal(path), local)


def _searched(path: str, local: bool) -> str:
    """SET would take a list in one text for a single name."""
    return f"SELECT pg_catalog.set_config('search_path',{path},{'true' if local else 'false'});"


def _literal(text: str) -> str:
    """Quote a text; `standard_conforming_strings` is on in every session."""
    clean = text.replace("\0", "").encode("utf-8", "replace").decode().replace("'", "''")
    if "%" not in clean:
        return f"'{clean}'"
    escaped = clean.replace("\\", "\\\\").replace("%", "\\0025")
    return f"U&'{escaped}'"
