"""
Random writes by calls to the service, of the kinds that need more than one SQL statement.
"""

from __future__ import annotations

import random
from typing import Any

from tests.oracle.world import PEOPLE, TASKS, TEAMS

Call = tuple[str, dict[str, Any]]
"""The name of a procedure, and its keyword arguments."""


def draw_call(dice: random.Random) -> Call:
    """Draw a write; concurrent writes make the service refuse some of them."""
    return dice.choice(WRITES)(dice)


def _person(dice: random.Random) -> int:
    return dice.randint(1, PEOPLE)


def _task(dice: random.Random) -> int:
    return dice.randint(1, TASKS)


def _computed(dice: random.Random) -> Call:
    change = dice.choice(
        [
            {"points": {"$add": dice.randint(-9, 9)}, "due": {"$add": "P1D"}},
            {"points": {"$multiply": "0.5"}, "at": {"$add": "PT7H"}},
            {"data->n": {"$add": 1}, "data->tags": {"$append": ["called"]}},
            {"data": {"$merge": {"n": dice.randint(0, 4)}}, "done": {"$value": False}},
            {"data->a->b": dice.randint(0, 9), "data->n": {"$value": 1}},
            {"data": {"$remove": ["tags"]}},
        ]
    )
    first = _task(dice)
    target = dice.choice([{"key": first}, {"where": {"id": {"between": [first, first + 4]}}}])
    returning = dice.choice([True, False, "old", "both"])
    return "tasks.update", {**target, "changes": change, "returning": returning}


def _rows(dice: random.Random) -> Call:
    changes: list[dict[str, Any]] = [
        {"age": {"$add": 1}}, {"name": f"p{dice.randint(0, 4)}"}, {"team": dice.randint(1, TEAMS)},
    ]  # fmt: skip
    chosen = dice.sample(range(1, PEOPLE), 3)
    return "people.update", {"rows": [{"id": id, **dice.choice(changes)} for id in chosen]}


def _claim(dice: random.Random) -> Call:
    return "tasks.update", {
        "where": {"done": dice.random() < 0.5, "points": {"lt": dice.randint(20, 99)}},
        "order": [dice.choice(["-points", "due"]), "id"],
        "limit": dice.randint(1, 4),
        "skip_locked": True,
        "changes": {"done": dice.random() < 0.5, "title": f"task {dice.randint(0, 6)}"},
    }


def _upsert(dice: random.Random) -> Call:
    rows = [
        {"id": id, "name": "new", "age": dice.randint(0, 99)}
        for id in dice.sample(range(1, PEOPLE + 8), 3)
    ]
    where = dice.choice([{"age": {"lt": dice.randint(0, 99)}}, {"teams.region": 1}])
    return "people.upsert", {"values": rows, "where": where}


def _notes(dice: random.Random) -> Call:
    row = {"task": _task(dice), "n": dice.randint(1, 3), "body": f"n{dice.randint(0, 9)}"}
    return "notes.upsert", {"values": [row], "update": dice.choice([["body"], []])}


def _team(dice: random.Random) -> Call:
    id = dice.randint(TEAMS + 3, TEAMS + 8)
    if dice.random() < 0.3:
        return "teams.delete", {"key": id, "returning": "both"}
    new = {
        "id": id * 10, "name": "nested", "age": dice.randint(0, 99),
        "tasks": [{"id": id * 100 + at, "title": "nested", "points": at * 20, "done": False} for at in range(3)],
    }  # fmt: skip
    people = [new, {"$link": _person(dice)}, {"$link": _person(dice)}]
    values = {"id": id, "name": f"t{id}", "region": dice.randint(0, 2), "score": 50}
    return "teams.create", {"values": {**values, "people": people}}


def _linked(dice: random.Random) -> Call:
    notes = [{"n": at, "body": f"n{at}"} for at in range(1, dice.randint(2, 4))]
    values = {"id": dice.randint(TASKS + 1, TASKS + 40), "title": "linked", "points": 5}
    return "tasks.create", {
        "values": {**values, "people": {"$link": _person(dice)}, "notes": notes}
    }


def _batch(dice: random.Random) -> Call:
    calls = [dice.choice(WRITES[:-1])(dice) for _ in range(2)]
    operations = [{"call": name, "kwargs": kwargs} for name, kwargs in calls]
    return "transaction", {"operations": operations, "dry_run": dice.random() < 0.1}


WRITES = [_computed, _rows, _claim, _upsert, _notes, _team, _linked, _batch]
