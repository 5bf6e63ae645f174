"""
A Flask application beside the service: the same database, the same declared tables.
"""

from __future__ import annotations

from typing import Any

import psycopg2
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from schema.base import Base
from schema.database_url import here
from schema.driver import Driver
from schema.vehicle import Vehicle

db = SQLAlchemy(metadata=Base.metadata)
app = Flask(__name__)
# libpq reads the URL, as it does for the service: DATABASE_URL may have any form that it takes,
# of which SQLAlchemy knows a part. Asked at each connection, so that a rotated password is taken.
app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg2://"
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"creator": lambda: psycopg2.connect(here().dsn())}
db.init_app(app)


@app.get("/drivers/<int:key>")
def driver(key: int) -> dict[str, Any]:
    """Return a driver with the plates of the driver's vehicles."""
    found = db.get_or_404(Driver, key)
    return {"id": found.id, "name": found.name, "plates": [each.plate for each in found.vehicles]}


@app.get("/vehicles")
def vehicles() -> list[dict[str, Any]]:
    """Return all vehicles."""
    rows = db.session.scalars(select(Vehicle).order_by(Vehicle.id))
    return [{"id": row.id, "plate": row.plate, "driver_id": row.driver_id} for row in rows]


@app.post("/vehicles")
def create() -> tuple[dict[str, Any], int]:
    """Create a vehicle of the values in the body."""
    row = Vehicle(**request.get_json())
    db.session.add(row)
    try:
        db.session.commit()
    except IntegrityError as error:
        return {"refused": str(error.orig).splitlines()[0]}, 409
    return {"id": row.id, "plate": row.plate}, 201
