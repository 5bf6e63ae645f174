"""
What a service over a database would describe, for commands: no pool, no router, no reactor.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from service.api.verbs import VERBS
from service.db.introspect import read_catalog
from service.describe.document import describe
from service.models.registry import fits
from service.procedures.application import load
from service.settings import Settings


def described(settings: Settings, dsn: str, role: str | None = None) -> dict[str, Any]:
    """
    Describe what is served.

    Args:
        settings: Name the schemas and the prefix.
        dsn: Of the database.
        role: A role of the database, which sees what it may use; None for the service's own.

    Raises:
        ConnectionError: The database cannot be reached, or cannot be had as that role.
    """
    catalog = read_catalog(dsn, settings.schemas, role)
    written = {
        name: declared.function
        for name, declared in load(settings.app).procedures.items()
        if all(fits(model, catalog) for model in declared.needs)
    }
    return describe(catalog, settings.prefix, metadata.version("rowcast"), VERBS, written)
