"""
Drivers and their vehicles: rules, and how the two belong together.
"""

from __future__ import annotations

from typing import ClassVar

from service.models.model import Model, not_blank


class Driver(Model):
    """A person who drives."""

    TABLENAME = "drivers"
    NEEDS = ("name",)
    HASMANY: ClassVar = ["vehicles"]


class Vehicle(Model):
    """Something to drive."""

    TABLENAME = "vehicles"
    NEEDS = ("plate", "driver_id")
    BELONGSTO: ClassVar = ["driver"]


Driver.addValidator(not_blank("name"))
Vehicle.addValidator(not_blank("plate"))
