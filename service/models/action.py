"""
Actions: what is to be done, and where.
"""

from __future__ import annotations

from service.models.model import Model
from service.models.validations import not_blank


class Action(Model):
    """One thing to be done."""

    TABLENAME = "actions"
    NEEDS = ("action", "path", "status")


Action.addValidator(not_blank("action", "path"))
