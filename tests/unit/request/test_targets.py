"""What a write is for is read whole, also where it does not matter."""

from __future__ import annotations

import pytest

from service.errors import InvalidArgument
from service.request.read import Limits
from service.request.write import parse_delete, parse_update, parse_upsert


@pytest.mark.parametrize(
    ("parse", "kwargs", "path"),
    [
        (parse_delete, {"where": {"id": 1}, "all": 1}, "all"),
        (parse_update, {"where": {"id": 1}, "changes": {"a": 1}, "all": "yes"}, "all"),
        (parse_upsert, {"values": {"id": 1}, "on_conflict": ""}, "on_conflict"),
        (parse_upsert, {"values": {"id": 1}, "on_conflict": "\0"}, "on_conflict"),
    ],
)
def test_nonsense(parse, kwargs, path):
    """It is refused with its place."""
    with pytest.raises(InvalidArgument) as caught:
        parse((), kwargs, Limits())
    assert caught.value.details["path"] == path
