"""
Drivers, who have vehicles.
"""

from __future__ import annotations

from sqlalchemy import CheckConstraint, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from schema.base import Base, Identified, Timed
from schema.vehicle import Vehicle


class Driver(Identified, Timed, Base):
    """A person who drives."""

    __tablename__ = "drivers"
    __table_args__ = (
        CheckConstraint("btrim(name) <> ''", name="name_not_blank"),
        {"comment": "People who drive"},
    )

    name: Mapped[str] = mapped_column(String(255), index=True, comment="as the driver is called")
    phone: Mapped[str | None] = mapped_column(String(32), comment="number to call, if known")

    vehicles: Mapped[list[Vehicle]] = relationship(back_populates="driver")
