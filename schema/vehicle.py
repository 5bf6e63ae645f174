"""
Vehicles, each of which may have a driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import CheckConstraint, ForeignKey, SmallInteger, String, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from schema.base import Base, Identified, Timed

if TYPE_CHECKING:
    from schema.driver import Driver


class Vehicle(Identified, Timed, Base):
    """Something to drive."""

    __tablename__ = "vehicles"
    __table_args__ = (
        CheckConstraint("plate = upper(plate) AND btrim(plate) <> ''", name="plate_upper_case"),
        CheckConstraint("seats BETWEEN 1 AND 100", name="seats_in_range"),
        {"comment": "What is driven, and by whom"},
    )

    plate: Mapped[str] = mapped_column(
        String(16), unique=True, comment="number plate, in upper case"
    )
    model: Mapped[str] = mapped_column(String(255), comment="maker and model")
    seats: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("4"), comment="how many can sit in it"
    )
    driver_id: Mapped[int | None] = mapped_column(
        ForeignKey("drivers.id", ondelete="RESTRICT"),
        index=True,
        comment="who drives it; null: nobody",
    )

    driver: Mapped[Driver | None] = relationship(back_populates="vehicles")
