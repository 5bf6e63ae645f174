"""
What all verbs stand on.
"""

from __future__ import annotations

from service.db.database import Database
from service.request.read import Limits


class Handlers:
    """
    Some verbs.

    Args:
        database: Where the rows are.
        limits: What a call may ask for.
        max_bytes: What an answer, or one row of a long one, may weigh.
    """

    def __init__(self, database: Database, limits: Limits, max_bytes: int) -> None:
        self.database = database
        self.limits = limits
        self.max_bytes = max_bytes
