"""
Random queries that cover each feature of live queries.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from service.request.arguments import Caller
from tests.oracle.world import OWNER, READERS

Where = dict[str, Any]

INTEGERS = {
    "teams": ("region", "score"),
    "people": ("age", "team", "boss"),
    "tasks": ("person", "points"),
    "notes": ("n", "task"),
    "crew": ("age", "region"),
    "lines": ("a",),
    "prices": ("n", "person"),
    "slots": ("n", "weight"),
}
TEXTS = {
    "teams": "name",
    "people": "name",
    "tasks": "title",
    "notes": "body",
    "crew": "name",
    "lines": "b",
    "prices": "body",
    "slots": "title",
}
KEYS = {
    "teams": ["id"],
    "people": ["id"],
    "tasks": ["id"],
    "notes": ["task", "n"],
    "crew": ["id"],
    "lines": [],
    "prices": ["amount"],
    "slots": ["at", "room", "code"],
}
CHILDREN = {
    "teams": {"people": "people"},
    "people": {"tasks": "tasks", "prices": "prices"},
    "prices": {"slots": "slots"},
    "tasks": {"notes": "notes"},
}
PARENTS = {
    "people": {"teams": "teams"},
    "tasks": {"people": "people"},
    "notes": {"tasks": "tasks"},
    "prices": {"people": "people"},
    "slots": {"prices": "prices"},
}
LINKED_GROUPS: dict[str, list[list[str]]] = {
    "people": [["teams.region"], ["teams.region", "age"], ["teams.name", "teams.region"]],
    "tasks": [["people.age"], ["people.teams.region"], ["done", "people.teams.region"]],
    "notes": [["tasks.people.name", "n"]],
    "slots": [["prices.n"]],  # through numeric columns, so all groups are read each time
}
"""Groups by columns of related rows."""


@dataclass(frozen=True)
class Query:
    """
    A query and its caller.

    Args:
        name: The relation or function, without the verb.
        caller: The caller.
        kwargs: The arguments of `watch`.
    """

    name: str
    caller: Caller
    kwargs: dict[str, Any]

    @property
    def ordered(self) -> bool:
        """Return whether the query has an order."""
        return "order" in self.kwargs

    @property
    def grouped(self) -> bool:
        """Return whether the query aggregates, so that its rows are groups."""
        return "measures" in self.kwargs

    @property
    def linked(self) -> bool:
        """Return whether it groups by columns of related rows."""
        return any("." in each for each in self.kwargs.get("group", ()) if isinstance(each, str))

    @property
    def windowed(self) -> bool:
        """Return whether the query has a limit or an offset."""
        return "limit" in self.kwargs or "offset" in self.kwargs

    @property
    def keyed(self) -> bool:
        """Return whether its rows have a key, so that no two rows are equal."""
        return self.grouped or (bool(KEYS.get(self.name)) and "distinct" not in self.kwargs)

    @property
    def resumable(self) -> bool:
        """Return whether the log has what a reconnecting client has missed, so that no reset is needed."""
        where = repr(self.kwargs.get("where"))
        return (
            self.name in ("people", "tasks")  # the writers never truncate these
            and self.caller.authrole == OWNER.authrole
            and not self.windowed
            and not self.grouped
            and "distinct" not in self.kwargs
            and "embed" not in self.kwargs
            and "order" not in self.kwargs
            and not any(name in where for name in CHILDREN | PARENTS)
        )

    def variant(self, **kwargs: Any) -> Query:
        """Return the query with some arguments replaced."""
        return Query(self.name, self.caller, {**self.kwargs, **kwargs})


def draw(dice: random.Random) -> Query:
    """Draw a random query."""
    caller = dice.choice([OWNER, OWNER, *READERS])
    kind = dice.random()
    if kind < 0.06:
        rest = {"order": ["title", "id"]} if dice.random() < 0.5 else {}
        return Query("fn.open_tasks", caller, {"args": {"above": dice.randint(0, 60)}, **rest})
    relation = dice.choice(
        ["teams", *["people", "tasks"] * 2, "notes", "lines", "crew", "prices", "slots"]
    )
    kwargs: dict[str, Any] = {}
    if dice.random() < 0.75:
        kwargs["where"] = _where(dice, relation, 2)
    if kind < 0.25 and relation != "notes":
        return Query(relation, caller, kwargs | _groups(dice, relation))
    embeds = _embeds(dice, relation, dice.randint(1, 3)) if dice.random() < 0.55 else {}
    if embeds:
        kwargs["embed"] = embeds
    if dice.random() < 0.3:
        kwargs["select"] = _select(dice, relation)
    if not embeds and dice.random() < 0.08:
        kwargs |= {"distinct": True, "select": [dice.choice(INTEGERS[relation])]}
        return Query(relation, caller, kwargs)
    if dice.random() < 0.5:
        kwargs["order"] = _order(dice, relation)
        _by_measures(dice, kwargs)
        if KEYS[relation] and dice.random() < 0.6:
            kwargs["limit"] = dice.randint(1, 15)
            if dice.random() < 0.2:
                kwargs["offset"] = dice.randint(0, 5)
    return Query(relation, caller, kwargs)


def _select(dice: random.Random, relation: str) -> list[Any]:
    columns = [*KEYS[relation], TEXTS[relation], *INTEGERS[relation]]
    found: list[Any] = dice.sample(columns, dice.randint(1, len(columns)))
    if dice.random() < 0.3:
        found = ["*", f"-{dice.choice(INTEGERS[relation])}"]
    if relation == "tasks" and dice.random() < 0.3:
        found += ["number:data->>n::int", {**_cut(dice), "as": "cut"}]
    return found


def _cut(dice: random.Random) -> dict[str, Any]:
    """Draw a select item that truncates a timestamp to a unit."""
    unit, zone = dice.choice(["day", "month"]), dice.choice(["Europe/Berlin", "Pacific/Chatham"])
    return {"column": "at", "trunc": unit, "zone": zone}


def _by_measures(dice: random.Random, kwargs: dict[str, Any]) -> None:
    """Sort and filter by measures of embedded rows, if the query has any."""
    for name, options in kwargs.get("embed", {}).items():
        if isinstance(options, dict) and "measures" in options:
            kwargs["order"] = [f"-{name}.n", *kwargs["order"]]
            if "where" not in kwargs:
                kwargs["where"] = {f"{name}.n": {"gt": dice.randint(0, 2)}}


def equivalent(dice: random.Random, query: Query) -> Query | None:
    """Return an equivalent query with other arguments; None for a function."""
    if query.name.startswith("fn."):
        return None
    column, where = INTEGERS[query.name][0], query.kwargs.get("where")
    always: Where = {"or": [{column: None}, {"not": {column: None}}]}
    if where is None:
        return query.variant(where=always)
    forms: list[Where] = [
        {"and": [where, always]},
        {"and": [always, where]},
        {"not": {"not": where}},
    ]
    if len(where) == 1 and "and" in where:
        forms.append({"and": where["and"][::-1]})
    if "limit" not in query.kwargs and query.keyed and not query.grouped:
        return query.variant(limit=1000)
    return query.variant(where=dice.choice(forms))


def _where(dice: random.Random, relation: str, depth: int) -> Where:
    kind = dice.random()
    if depth and kind < 0.15:
        word = dice.choice(["and", "or"])
        return {word: [_where(dice, relation, depth - 1) for _ in range(2)]}
    if depth and kind < 0.22:
        return {"not": _where(dice, relation, depth - 1)}
    if kind < 0.35 and (related := {**CHILDREN.get(relation, {}), **PARENTS.get(relation, {})}):
        name, other = dice.choice(sorted(related.items()))
        if dice.random() < 0.25:
            return {name: None if dice.random() < 0.5 else {"is": "not null"}}
        return {f"{name}.{dice.choice(INTEGERS[other])}": _condition(dice)}
    if kind < 0.5:
        return _newer(dice, relation)
    if kind < 0.62:
        return {TEXTS[relation]: {dice.choice(["like", "eq", "neq"]): f"p{dice.randint(0, 5)}"}}
    return {dice.choice(INTEGERS[relation]): _condition(dice)}


def _newer(dice: random.Random, relation: str) -> Where:
    """Draw a filter of a form other than one column and one value."""
    text, columns = TEXTS[relation], INTEGERS[relation]
    piece, word = dice.choice(["p1", "t", "new", "1", "N"]), dice.choice(["", "i"])
    forms: list[Where] = [
        {columns[0]: {dice.choice(["gt", "lte", "eq"]): {"$column": columns[-1]}}},
        {f"{columns[0]}::text": {"starts": str(dice.randint(1, 6))}},
        {text: {f"{word}{dice.choice(['starts', 'ends', 'contains'])}": piece}},
        {text: {"length": {"gt": dice.randint(1, 5)}}},
    ]
    if relation == "tasks":
        number = dice.randint(0, 3)
        forms += [
            {"data->>n::int": {"gte": number}},
            {"data": {"jsonpath": f"$.tags[*] ? (@ == {dice.randint(0, 40)})"}},
            {"data": {"jsonpath_match": f"$.n > {number}"}},
            {"at::date": {"lt": f"2026-01-{dice.randint(2, 28):02}"}},
        ]
    return dice.choice(forms)


def _condition(dice: random.Random) -> Any:
    number = dice.randint(0, 60)
    return dice.choice(
        [
            dice.randint(0, 5),
            {"gt": number},
            {"lte": number},
            {"gte": 5, "lt": number + 5},
            [dice.randint(0, 40) for _ in range(4)],
            None,
            {"not": {"gt": number}},
            {"between": [number // 2, number]},
        ]
    )


def _embeds(dice: random.Random, relation: str, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    children, parents = CHILDREN.get(relation, {}), PARENTS.get(relation, {})
    for name, other in children.items():
        if dice.random() < 0.7:
            found[name] = _children(dice, other, depth)
    for name, other in parents.items():
        if dice.random() < 0.4:
            found[name] = {"select": [*KEYS[other], TEXTS[other]]} if dice.random() < 0.5 else True
    return found


def _children(dice: random.Random, relation: str, depth: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if dice.random() < 0.4:
        options["where"] = _where(dice, relation, 1)
    if dice.random() < 0.2:
        measures = {"n": {"count": "*"}, "most": {"max": INTEGERS[relation][0]}}
        return options | {"measures": measures}
    if depth > 1 and (below := _embeds(dice, relation, depth - 1)):
        options["embed"] = below
    if dice.random() < 0.2:
        options["limit"] = 3
    if dice.random() < 0.15:
        options["inner"] = True
    return options | {"order": KEYS[relation]}


def _groups(dice: random.Random, relation: str) -> dict[str, Any]:
    columns = list(INTEGERS[relation])
    measures: dict[str, Any] = {"n": {"count": "*"}, "sum": {"sum": dice.choice(columns)}}
    if dice.random() < 0.5:
        measures["most"] = {"max": dice.choice(columns)}
        measures["some"] = {"count": "*", "where": {columns[0]: {"gt": 20}}}
    if dice.random() < 0.4:
        measures |= _statistics(dice, relation)
    kwargs: dict[str, Any] = {"measures": measures}
    if dice.random() < 0.85:
        kwargs["group"] = [dice.choice(columns)]
        if dice.random() < 0.4 and relation in LINKED_GROUPS:
            kwargs["group"] = dice.choice(LINKED_GROUPS[relation])
        if relation == "tasks" and dice.random() < 0.25:
            kwargs["group"] = [{**_cut(dice), "as": "cut"}]
        if dice.random() < 0.3:
            kwargs |= {"order": [dice.choice(["-n", "sum"])], "limit": dice.randint(1, 6)}
        if dice.random() < 0.3:
            kwargs["having"] = {"n": {"gt": dice.randint(1, 4)}}
    return kwargs


def _statistics(dice: random.Random, relation: str) -> dict[str, Any]:
    """Draw measures that need all values of a group."""
    column = dice.choice(INTEGERS[relation])
    return {
        "spread": {dice.choice(["stddev", "variance"]): column},
        "middle": {"percentile": column, "fraction": dice.choice([0.5, 0.9])},
        "one": {"percentile": column, "fraction": 0.5, "discrete": True},
        "usual": {"mode": column},
        "all": {"array_agg": column, "order": [f"-{column}"]},
        "texts": {"string_agg": TEXTS[relation], "order": [TEXTS[relation]], "separator": "|"},
    }


def _order(dice: random.Random, relation: str) -> list[Any]:
    columns = [*INTEGERS[relation], TEXTS[relation]]
    keys: list[Any] = []
    for name in dice.sample(columns, min(len(columns), dice.randint(1, 2))):
        keys.append(
            dice.choice(
                [
                    name,
                    f"-{name}",
                    {
                        "by": name,
                        "desc": dice.random() < 0.5,
                        "nulls": dice.choice(["first", "last"]),
                    },
                ]
            )
        )
    if relation == "people" and dice.random() < 0.15:
        keys.insert(0, "-teams.score")
    if relation == "people" and dice.random() < 0.15:
        keys.insert(0, {"by": "spot", "near": f"({dice.randint(0, 4)},{dice.randint(0, 60)})"})
    if relation == "tasks" and dice.random() < 0.2:
        rank = {"by": "title", "rank": dice.choice(["new", "task 3"]), "desc": True}
        cut = _cut(dice)
        keys.insert(0, dice.choice([rank, {"by": cut.pop("column"), **cut}]))
    return keys
