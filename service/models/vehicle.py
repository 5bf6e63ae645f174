"""
Vehicles, each of which may have a driver.
"""

from __future__ import annotations

from typing import ClassVar

from service.models.model import Model
from service.models.validations import not_blank


class Vehicle(Model):
    """Something to drive."""

    TABLENAME = "vehicles"
    NEEDS = ("plate", "driver_id")
    BELONGSTO: ClassVar = ["driver"]


Vehicle.addValidator(not_blank("plate"))
