"""
A desk that hands vehicles over: a rule of vehicles, and a procedure.
"""

from __future__ import annotations

from typing import Any, ClassVar

from service.errors import InvalidArgument, NotFound
from service.models.model import Model
from service.procedures.registry import ProcedureCall, procedure

MOST = 2
"""Vehicles that one driver may have."""


class Driver(Model):
    """A person who drives."""

    TABLENAME = "drivers"
    HASMANY: ClassVar = ["vehicles"]


class Vehicle(Model):
    """Something to drive; its plate is written in upper case, however it is given."""

    TABLENAME = "vehicles"
    NEEDS = ("plate",)
    BELONGSTO: ClassVar = ["driver"]

    def beforeSave(self) -> None:
        """Bring the plate into its form; coroutine functions are fine, too."""
        self.plate = self.plate.strip().upper()


@procedure("vehicles.hand_over", Vehicle, Driver)
async def hand_over(call: ProcedureCall, key: int, driver: int) -> dict[str, Any]:
    """
    Hand a vehicle over to a driver; return its row.

    Raises:
        NotFound: There is no such vehicle or driver.
        InvalidArgument: The driver has enough.
    """
    async with call.database.transaction():
        person = await Driver.find(driver, for_update=True)  # one hand-over at a time
        vehicle = await Vehicle.find(key)
        if person is None or vehicle is None:
            raise NotFound("drivers" if person is None else "vehicles")
        if await person.vehicles.count() >= MOST:
            raise InvalidArgument(f"{person.name} has {MOST} vehicles already", path="driver")
        vehicle.driver_id = person.id
        await vehicle.save()
    return call.wire(vehicle)
