"""Violated constraints of partitions and domains are reported under served names."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE DOMAIN positive AS int CONSTRAINT above_zero CHECK (VALUE > 0);
CREATE TABLE makers (id int PRIMARY KEY);
CREATE TABLE cars (
    id int, region int, maker int REFERENCES makers, plate text NOT NULL,
    price int CONSTRAINT dear CHECK (price > 1), n positive,
    PRIMARY KEY (region, id), UNIQUE (region, plate)
) PARTITION BY RANGE (region);
CREATE TABLE cars_low PARTITION OF cars FOR VALUES FROM (0) TO (10) PARTITION BY LIST (region);
CREATE TABLE cars_one PARTITION OF cars_low FOR VALUES IN (1);
-- taken in afterwards, with other numbers of columns and names of constraints
CREATE TABLE cars_high (
    plate text NOT NULL, gone int, region int NOT NULL, id int NOT NULL, n positive, maker int,
    price int, CONSTRAINT dear CHECK (price > 1), CONSTRAINT own_plates UNIQUE (region, plate),
    CONSTRAINT own_maker FOREIGN KEY (maker) REFERENCES makers
);
ALTER TABLE cars_high DROP gone;
ALTER TABLE cars ATTACH PARTITION cars_high FOR VALUES FROM (10) TO (20);
CREATE TABLE trips (
    id int PRIMARY KEY, region int, car int,
    CONSTRAINT taken FOREIGN KEY (region, car) REFERENCES cars
);
INSERT INTO makers VALUES (1);
INSERT INTO cars VALUES (1, 1, 1, 'a', 5, 1), (1, 11, 1, 'a', 5, 1);
INSERT INTO trips VALUES (1, 1, 1), (2, 11, 1);
CREATE TABLE tags (name text PRIMARY KEY) PARTITION BY LIST (name);
CREATE TABLE tags_one PARTITION OF tags DEFAULT;
CREATE TABLE uses (tag text REFERENCES tags) PARTITION BY LIST (tag);
CREATE TABLE uses_one PARTITION OF uses DEFAULT;
INSERT INTO tags VALUES ('my "uses_one"');
INSERT INTO uses VALUES ('my "uses_one"');
CREATE TABLE pairs (id int PRIMARY KEY, a positive, b positive);
CREATE TABLE clip (id int PRIMARY KEY, size positive);
INSERT INTO clip VALUES (1, 1);
"""


@pytest.mark.parametrize("region", [1, 11])
@pytest.mark.parametrize(
    ("changed", "name", "columns"),
    [
        ({"id": 1, "plate": "b"}, "cars_pkey", ["region", "id"]),
        ({"plate": "a"}, "cars_region_plate_key", ["region", "plate"]),
        ({"maker": 7}, "cars_maker_fkey", ["maker"]),
        ({"price": 0}, "dear", ["price"]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_violation_in_a_partition_names_the_served_table(
    db: DirectCaller, region: int, changed: dict[str, Any], name: str, columns: list[str]
) -> None:
    """The constraint has the name under which it was declared on the parent."""
    row = {"id": 9, "region": region, "maker": 1, "plate": "z", "price": 5} | changed
    details = (await failure_of(db.call("cars.create", row))).details
    assert details["relation"] == "cars"
    assert details["columns"] == columns
    assert details["constraint"] == name
    assert "cars_" not in details.get("detail", "")


@pytest.mark.parametrize("region", [1, 11])
@pytest_twisted.ensureDeferred
async def test_delete_of_a_referenced_row_of_a_partition_is_refused(
    db: DirectCaller, region: int
) -> None:
    """PostgreSQL's foreign key of the partition is reported as the declared one."""
    refused = await failure_of(db.call("cars.delete", {"region": region, "id": 1}))
    assert refused.message == 'rows of "trips" still refer to it'
    assert refused.details["constraint"] == "taken"
    assert refused.details["columns"] == ["region", "car"]
    refused = await failure_of(db.call("trips.create", {"id": 3, "region": region, "car": 5}))
    assert refused.message == '"region", "car" refers to no row of "cars"'
    assert refused.details["constraint"] == "taken"


@pytest_twisted.ensureDeferred
async def test_key_equal_to_the_name_of_a_partition_is_shown_unchanged(db: DirectCaller) -> None:
    """In PostgreSQL's detail only the partition's own name is replaced."""
    refused = await failure_of(db.call("tags.delete", 'my "uses_one"'))
    assert refused.details["detail"] == (
        'Key (name)=(my "uses_one") is still referenced from table "uses".'
    )


@pytest_twisted.ensureDeferred
async def test_value_refused_by_its_domain_is_reported_with_its_column(db: DirectCaller) -> None:
    """PostgreSQL names the domain only; if two columns have the domain, none is named."""
    refused = await failure_of(db.call("clip.create", {"id": 2, "size": 0}))
    assert refused.message == '"size" does not satisfy a check of the database'
    assert refused.details["constraint"] == "above_zero"
    assert refused.details["column"] == "size"
    refused = await failure_of(db.call("clip.update", 1, {"size": 0}))
    assert refused.details["column"] == "size"
    refused = await failure_of(db.call("pairs.create", {"id": 1, "a": 1, "b": 0}))
    assert "column" not in refused.details
