"""Which verbs a relation has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.answer.describing import verbs_of
from tests.unit.samples import catalog

VERBS = ("get", "find", "aggregate", "create", "upsert", "update", "delete")
RELATIONS = catalog().relations
ACTIONS = RELATIONS["public", "actions"]
NOTES = RELATIONS["public", "notes"]


@pytest.mark.parametrize(
    ("relation", "lacking"),
    [
        (ACTIONS, set()),
        (NOTES, {"get", "upsert"}),
        (replace(ACTIONS, primary_key=()), {"get"}),
        (replace(ACTIONS, selectable=False), {"get", "find", "aggregate"}),
        (replace(ACTIONS, insertable=False), {"create", "upsert"}),
        (replace(ACTIONS, updatable=False), {"update", "upsert"}),
        (replace(ACTIONS, deletable=False), {"delete"}),
    ],
)
def test_verbs(relation, lacking):
    """A verb needs a right, and some need a key."""
    assert verbs_of(relation, VERBS) == [verb for verb in VERBS if verb not in lacking]
