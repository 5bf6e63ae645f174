"""
Drivers, who have vehicles.
"""

from __future__ import annotations

from typing import ClassVar

from service.models.model import Model
from service.models.validations import not_blank


class Driver(Model):
    """A person who drives."""

    TABLENAME = "drivers"
    NEEDS = ("name",)
    HASMANY: ClassVar = ["vehicles"]


Driver.addValidator(not_blank("name"))
