"""
Random changes of a row, as a call has them, each with equivalent SQL.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

PATHS = [
    ["a"], ["b", "c"], ["l", "0"], ["l", "-1"], ["0"], ["it's", "x"], ["b"], ["9", "a"], ["b", "c", "0"],
]  # fmt: skip
VALUES: dict[str, list[Any]] = {
    "open": [True, False, None], "closed": [1, None], "owner": ["clerk", "shop", "boss"],
    "code": ["C1", "c77", "new", None], "shop": [1, 2, None, 77], "name": ["g1", "new", None],
    "secret": ["x"], "twice": [4],
}  # fmt: skip
"""Plain values, by column."""


def literal(value: Any) -> str:
    """Return a value as an SQL literal."""
    if value is None:
        return "NULL"
    if isinstance(value, bool | int | float):
        return str(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return "'" + text.replace("'", "''") + "'"


def document(value: Any) -> str:
    """Return a JSON value as an SQL literal."""
    return literal(json.dumps(value)) + "::jsonb"


def array(values: Sequence[Any], type: str) -> str:
    """Return an array as an SQL literal."""
    return f"ARRAY[{', '.join(map(literal, values))}]::{type}[]"


class Dice:
    """
    A source of random values.

    Args:
        seed: Seed of the random generator.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def maybe(self, share: float) -> bool:
        """Return True with a probability."""
        return self.random.random() < share

    def pick(self, *values: Any) -> Any:
        """Return a random one of the values."""
        return self.random.choice(values)

    def some(self, values: Sequence[Any], most: int) -> list[Any]:
        """Return up to `most` of the values, in random order."""
        return self.random.sample(values, self.random.randint(1, min(most, len(values))))

    def json(self, depth: int = 2) -> Any:
        """Return a random JSON value."""
        simple = [None, 1, -2, "a", "it's", True, 1.5, "", "%s {x} \\"]
        if not depth or self.maybe(0.6):
            return self.pick(*simple)
        if self.maybe(0.5):
            return [self.json(depth - 1) for _ in range(self.random.randint(0, 2))]
        return {key: self.json(depth - 1) for key in self.random.sample(["a", "b", "l", "it's"], 2)}

    def texts(self) -> list[Any]:
        """Return a random list of strings."""
        return [
            self.pick("a", "b", None, "x1", "it's", "%") for _ in range(self.random.randint(0, 3))
        ]


class Changes:
    """
    Random changes of some columns.

    Args:
        dice: The source of random values.
        names: The columns that may be changed.

    Attributes:
        given: The changes as an argument of a call.
        sql: An SQL expression for the new value of each column; "g" is the row.
    """

    def __init__(self, dice: Dice, names: Sequence[str]) -> None:
        self.dice = dice
        self.given: dict[str, Any] = {}
        self.sql: dict[str, str] = {}
        for name in dict.fromkeys(dice.some(names, 4)):
            getattr(self, f"_{name}", self._value)(name)

    def drop(self, names: set[str]) -> None:
        """Remove the changes of some columns."""
        for name in names & self.sql.keys():
            del self.given[name], self.sql[name]

    @property
    def settings(self) -> str:
        """Return the assignments of a SET clause."""
        return ", ".join(f"{name} = {value}" for name, value in self.sql.items())

    def _number(self, name: str, values: Sequence[Any], type: str) -> None:
        value = self.dice.pick(*values)
        word, sign = self.dice.pick(("$add", "+"), ("$multiply", "*"))
        self.given[name], self.sql[name] = (
            {word: value},
            f"g.{name} {sign} {literal(value)}::{type}",
        )

    def _n(self, name: str) -> None:
        kind = self.dice.random.random()
        if kind < 0.7:
            self._number(name, [1, -3, 2, 0, 40, 10**9], "int")
        elif kind < 0.9:
            value = self.dice.pick(5, None, -1, 99)
            self.given[name] = self.dice.pick(value, {"$value": value})
            self.sql[name] = literal(value)
        else:
            self.given[name], self.sql[name] = {"$default": True}, "DEFAULT"

    def _price(self, name: str) -> None:
        self._number(name, [1, "0.05", 1.5, "1e3", "-2.505", "NaN"], "numeric")

    def _day(self, name: str) -> None:
        value = self.dice.pick("P1M", "P1D", "P-1Y-2M", "1 month 3 days", "PT36H")
        self.given[name], self.sql[name] = {"$add": value}, f"g.{name} + {literal(value)}::interval"

    def _took(self, name: str) -> None:
        self.given[name], self.sql[name] = self.dice.pick(
            ({"$add": "PT90M"}, "g.took + '90 minutes'"), ({"$multiply": 1.5}, "g.took * 1.5")
        )

    def _tags(self, name: str) -> None:
        self._array(name, self.dice.texts(), "text")

    def _ints(self, name: str) -> None:
        numbers = [self.dice.pick(1, 2, None, 7) for _ in range(self.dice.random.randint(0, 3))]
        self._array(name, numbers, "int")

    def _array(self, name: str, values: list[Any], type: str) -> None:
        word = self.dice.pick("$append", "$prepend", "$remove", "$value")
        self.given[name] = {word: values}
        if word == "$remove":
            self.sql[name] = f"g.{name}"
            for each in values:
                self.sql[name] = f"array_remove({self.sql[name]}, {literal(each)}::{type})"
        else:
            old, new = f"coalesce(g.{name}, '{{}}')", array(values, type)
            parts = {"$append": [old, new], "$prepend": [new, old], "$value": [new]}[word]
            self.sql[name] = " || ".join(parts)

    def _doc(self, name: str) -> None:
        chosen: list[list[str]] = []
        for path in [[]] if self.dice.maybe(0.4) else self.dice.some(PATHS, 3):
            if not any(path[: len(each)] == each or each[: len(path)] == path for each in chosen):
                chosen.append(path)
        value = f"g.{name}::jsonb"
        for path in chosen:
            word, other = self._json_change()
            key = "->".join([name, *(f'"{each}"' if "'" in each else each for each in path)])
            self.given[key] = other if word == "set" else {f"${word}": other}
            op = "set" if word == "value" else word
            if op == "set" and not path:
                value = "NULL" if other is None else document(other)
            else:
                value = f"set_at({value}, {array(path, 'text')}, '{op}', {document(other)})"
        self.sql[name] = f"({value})::json" if name == "raw" else value

    _raw = _doc

    def _json_change(self) -> tuple[str, Any]:
        word = self.dice.pick(
            "set", "value", "add", "multiply", "append", "prepend", "remove", "merge"
        )
        if word in ("add", "multiply"):
            return word, self.dice.pick(1, -2, 1.5)
        if word in ("append", "prepend"):
            return word, [self.dice.json(1) for _ in range(self.dice.random.randint(0, 2))]
        if word == "remove":
            return word, self.dice.some(["a", "b", "zz", "it's"], 2)
        if word == "merge":
            return word, {key: self.dice.json(1) for key in self.dice.some(["a", "b", "new"], 2)}
        if word == "value" and self.dice.maybe(0.3):
            return word, self.dice.pick({"$add": 1}, {"$default": True}, {"$nothing": [1]})
        return word, self.dice.json()

    def _value(self, name: str) -> None:
        value = self.dice.pick(*VALUES[name])
        self.given[name] = self.dice.pick(value, {"$value": value})
        self.sql[name] = literal(value)
        if name == "closed" and self.dice.maybe(0.4):
            self.given[name], self.sql[name] = {"$add": 2}, "g.closed + 2"
