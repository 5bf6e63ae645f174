"""
Random writes, each with equivalent hand-written SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from service.models.model import Model
from tests.db.random_changes import Changes, Dice, array, document, literal

Rows = list[dict[str, Any]]

WHERE: list[tuple[Any, str]] = [
    ({"n": {"gt": 9}}, "g.n > 9"),
    ({"n": {"lt": {"$column": "id"}}}, "g.n < g.id"),
    ({"owner": ["clerk", "shop"]}, "g.owner IN ('clerk', 'shop')"),
    ({"owner": {"not": "clerk"}}, "g.owner <> 'clerk'"),
    ({"doc->>a": "1"}, "g.doc->>'a' = '1'"),
    ({"tags": {"cs": ["a"]}, "id": {"lte": 9}}, "g.tags @> '{a}' AND g.id <= 9"),
    ({"shops.city": "City 1"}, "EXISTS (SELECT FROM shops s WHERE s.id = g.shop AND s.city = 'City 1')"),
    ({"or": [{"price": None}, {"open": True}]}, "g.price IS NULL OR g.open"),
    ({"closed": 3}, "g.closed = 3"),
    ({"code": {"istarts": "C1"}}, "lower(g.code) LIKE 'c1%'"),
    ({"id": 99}, "g.id = 99"),
]  # fmt: skip
SELECTS: list[dict[str, str]] = [
    {"id": "g.id", "n": "g.n", "price::text": "g.price::text"},
    {"id": "g.id", "tags": "g.tags", "doc": "g.doc", "twice": "g.twice"},
    {"id": "g.id", "day::text": "g.day::text", "ints": "g.ints", "raw": "g.raw"},
    {"id": "g.id", "owner": "g.owner", "code": "g.code", "name": "g.name", "shop": "g.shop"},
    {"id": "g.id", "closed": "g.closed"},
]
EMBED = "(SELECT json_build_object('city', s.city) FROM shops s WHERE s.id = g.shop) AS shops"
KEYS: list[tuple[Any, str, tuple[str, ...], tuple[str, ...]]] = [
    (None, "(id)", ("id",), ("id",)),
    (["shop", "name"], "(shop, name)", ("shop", "name"), ("shop", "name")),
    ("goods_code", "(lower(code))", ("code",), ()),
    ("goods_open", "(shop, n) WHERE open", ("shop", "n", "open"), ("shop", "n")),
]
"""For upserts: `on_conflict`, its SQL, the columns that a row needs for it, and those not updated."""
INDEXED = {
    "goods_code": "lower(g.code) = lower({code})",
    "goods_open": "g.shop = {shop} AND g.n = {n} AND g.open AND {open}",
}
"""The condition that finds the row with which a unique index conflicts."""


class RuledShop(Model):
    """A model that sets the city of a new shop from its key."""

    TABLENAME = "shops"

    def beforeCreate(self) -> None:
        """Set the city."""
        self.city = f"of {self.id}"


class RuledGood(Model):
    """A model that sets the price of a new good to the number of its shop, and counts updates."""

    TABLENAME = "goods"

    def beforeCreate(self) -> bool:
        """Set the price; refuse goods whose n is 5."""
        self.price = self.shop
        return bool(self.n != 5)

    async def beforeUpdate(self) -> None:
        """Increment n."""
        self.n = (self.n or 0) + 1


class RuledLabel(Model):
    """A model that changes the key of a new label."""

    TABLENAME = "labels"

    def beforeCreate(self) -> None:
        """Change the word."""
        self.word = f"{self.word}!"


RULED = (RuledShop, RuledGood, RuledLabel)
"""The models; the SQL for nested rows includes their effects."""


@dataclass
class Statement:
    """
    An SQL statement of a write.

    Args:
        text: The statement.
        rows: Number of rows that it must affect, or else the write is refused.
        most: Maximum number of rows that it may affect.
    """

    text: str
    rows: int | None = None
    most: int | None = None


@dataclass
class Write:
    """
    A write, and equivalent SQL.

    Args:
        name: The procedure.
        kwargs: The arguments of the call.
        sql: The statements, in order.
        shaped: Returns the result of the call from the rows of the statements.
        free: Whether the service may refuse the write, as documented, although PostgreSQL runs it.
        locked: Keys of rows that another session has locked.
    """

    name: str
    kwargs: dict[str, Any]
    sql: list[Statement]
    shaped: Callable[[list[Rows]], Any]
    free: bool = False
    locked: Sequence[int] = ()


class Writes:
    """
    A generator of random writes.

    Args:
        seed: Seed of the random generator.
        ruled: Whether the models in `RULED` are served.
    """

    def __init__(self, seed: int, ruled: bool = False) -> None:
        self.dice = Dice(seed)
        self.ruled = ruled
        self.role = self.dice.pick("boss", "clerk")
        self.kwargs: dict[str, Any] = {}
        self.relation = self.columns = ""

    def one(self, nested: float = 0.2) -> Write:
        """Return a random write; with probability `nested`, a create with nested rows."""
        dice, self.kwargs = self.dice, {}
        if dice.maybe(nested):
            return self._nested()
        self.relation = dice.pick("goods", "goods", "goods", "few", "shown")
        select = dice.pick(*SELECTS) if dice.maybe(0.2) else dice.pick(*SELECTS[:-1])
        self.kwargs["select"] = list(select)
        columns = [f'{sql} AS "{name.partition("::")[0]}"' for name, sql in select.items()]
        if self.relation == "goods" and dice.maybe(0.3):
            self.kwargs["embed"] = {"shops": {"select": ["city"]}}
            columns.append(EMBED)
        self.columns = ", ".join(columns)
        kinds = [self._by_key, self._by_filter, self._claimed, self._by_rows, self._deleted]
        write: Write = dice.pick(*kinds, self._upserted)()
        return write

    def _changes(self) -> Changes:
        names = ["n", "n", "price", "tags", "doc", "doc"]
        if self.relation != "shown":
            names += ["raw", "open", "closed", "owner", "code", "shop"]
        if self.role == "boss" or self.dice.maybe(0.1):
            names += ["day"] if self.relation == "shown" else ["day", "took", "ints"]
        if self.dice.maybe(0.1):
            names += ["secret", "twice", "name"]
        return Changes(self.dice, names)

    def _where(self) -> tuple[Any, str]:
        (one, sql), (other, more) = self.dice.random.sample(WHERE, 2)
        return self.dice.pick(  # type: ignore[no-any-return]
            (one, f"({sql})"), (one, f"({sql})"),
            ({"and": [one, {"not": other}]}, f"({sql}) AND NOT ({more})"),
            ({"or": [one, other]}, f"(({sql}) OR ({more}))"),
        )  # fmt: skip

    def _by_key(self) -> Write:
        id = self.dice.random.randint(1, 13)
        keys = [(id, f"g.id = {id}"), ({"id": id}, f"g.id = {id}")]
        if self.relation == "goods":
            named = {"shop": id % 5, "name": f"g{id}"}
            keys.append((named, f"g.shop = {id % 5} AND g.name = 'g{id}'"))
        self.kwargs["key"], condition = self.dice.pick(*keys)
        if self.dice.maybe(0.3):
            self.kwargs["expect"], more = self.dice.pick(
                ({"n": 9}, "g.n = 9"), ({"owner": {"$value": "clerk"}}, "g.owner = 'clerk'"),
                ({"doc": {"$value": {}}}, "g.doc = '{}'"), ({"open": None}, "g.open IS NULL"),
            )  # fmt: skip
            condition = f"{condition} AND {more}"
        return self._updated(condition, one=True)

    def _by_filter(self) -> Write:
        self.kwargs["where"], condition = self._where()
        if self.dice.maybe(0.3):
            self.kwargs["max_affected"] = self.dice.random.randint(0, 6)
        return self._updated(condition)

    def _claimed(self) -> Write:
        """Return an update of the first rows of a filter, as a job queue claims rows."""
        self.kwargs["where"], condition = self._where()
        order, by = self.dice.pick(
            (["-n", "id"], "g.n DESC, g.id"), (["price"], "g.price, g.id"), (["id"], "g.id")
        )
        limit, skip = self.dice.random.randint(0, 4), self.dice.maybe(0.7)
        self.kwargs |= {"order": order, "limit": limit, "skip_locked": skip}
        taken = (
            f"WITH x AS MATERIALIZED (SELECT g.id FROM {self.relation} g WHERE {condition}"
            f" ORDER BY {by} LIMIT {limit} FOR UPDATE SKIP LOCKED) "
        )
        write = self._updated("g.id IN (SELECT id FROM x)", taken=taken)
        write.free |= self.relation == "shown"
        if skip:
            write.locked = self.dice.random.sample(range(1, 13), 4)
        return write

    def _returning(self, *ways: Any) -> Any:
        returning = self.dice.pick(None, None, *ways)
        if returning is not None:
            self.kwargs["returning"] = returning
        return returning

    def _updated(self, condition: str, one: bool = False, taken: str = "") -> Write:
        changes, columns, returning = (
            self._changes(),
            self.columns,
            self._returning("old", "both", False),
        )
        self.kwargs["changes"] = changes.given
        rows, most = (1 if one else None), self.kwargs.get("max_affected")
        update = f"{taken}UPDATE {self.relation} g SET {changes.settings} WHERE {condition}"
        statements = [
            Statement(update + ("" if returning is False else f" RETURNING {columns}"), rows, most)
        ]
        if returning:
            lock = "" if self.relation == "shown" else " FOR UPDATE OF g"
            locked = f"{taken}SELECT {columns} FROM {self.relation} g WHERE {condition}{lock}"
            statements.insert(0, Statement(locked, rows))

        def shaped(found: list[Rows]) -> Any:
            answered: list[Any] = found[0]
            if returning is False:
                return {"affected": len(answered)}
            if returning == "both":
                new = {row["id"]: row for row in found[1]}
                answered = [{"old": row, "new": new.get(row["id"])} for row in found[0]]
            return answered[0] if one else {"rows": answered, "affected": len(answered)}

        # PostgreSQL knows no key of a view with a join, by which the service could find rows again
        free = self.relation == "shown" and bool(returning) and not one
        return Write(f"{self.relation}.update", self.kwargs, statements, shaped, free)

    def _by_rows(self) -> Write:
        """Return an update of several rows with different changes each."""
        by = ["shop", "name"] if self.relation == "goods" and self.dice.maybe(0.3) else ["id"]
        rows: Rows = []
        returning = self._returning("old", "both", False)
        statements = []
        for id in self.dice.random.sample(range(1, 13), self.dice.random.randint(1, 4)):
            changes = self._changes()
            # whether changed keys collide depends on the order of the updates
            changes.drop({*by, "shop", "code", "name"})
            changes.drop(
                {name for name, value in changes.given.items() if value == {"$default": True}}
            )
            if not changes.given:
                changes.given, changes.sql = {"n": {"$add": 1}}, {"n": "g.n + 1"}
            key = {"id": id} if by == ["id"] else {"shop": id % 5, "name": f"g{id}"}
            rows.append(self.dice.pick({**key, **changes.given}, {**changes.given, **key}))
            where = " AND ".join(f"g.{name} = {literal(value)}" for name, value in key.items())
            if returning:
                read = f"SELECT {self.columns} FROM {self.relation} g WHERE {where}"
                statements.append(Statement(read, 1))
            update = f"UPDATE {self.relation} g SET {changes.settings} WHERE {where}"
            back = "" if returning is False else f" RETURNING {self.columns}"
            statements.append(Statement(update + back, 1))
        self.kwargs["rows"] = rows
        if by != ["id"] or self.dice.maybe(0.2):
            self.kwargs["by"] = by

        def shaped(found: list[Rows]) -> Any:
            if returning is False:
                return {"affected": len(found)}
            if not returning:
                return [row for (row,) in found]
            pairs = zip(found[::2], found[1::2], strict=True)
            return [
                old if returning == "old" else {"old": old, "new": new} for (old,), (new,) in pairs
            ]

        return Write(f"{self.relation}.update", self.kwargs, statements, shaped)

    def _deleted(self) -> Write:
        one = self.dice.maybe(0.5)
        if one:
            self.kwargs["key"] = id = self.dice.random.randint(1, 13)
            condition = f"g.id = {id}"
        else:
            self.kwargs["where"], condition = self._where()
        returning = self._returning("old", "both", False)

        def shaped(found: list[Rows]) -> Any:
            rows: list[Any] = found[0]
            if returning is False:
                return {"affected": len(rows)}
            if returning == "both":
                rows = [{"old": row, "new": None} for row in rows]
            return rows[0] if one else {"rows": rows, "affected": len(rows)}

        text = f"DELETE FROM {self.relation} g WHERE {condition}"
        text += "" if returning is False else f" RETURNING {self.columns}"
        statement = Statement(text, 1 if one else None)
        return Write(f"{self.relation}.delete", self.kwargs, [statement], shaped)

    def _upserted(self) -> Write:
        """Return an upsert by any key, with or without a condition."""
        self.relation = "few" if self.relation == "few" else "goods"
        # an upsert of a view cannot name the indexes of its table
        keys = KEYS[:2] if self.relation == "few" else KEYS
        key, target, of_key, stays = self.dice.pick(*keys)
        many = self.dice.maybe(0.6)
        ids = self.dice.random.sample(range(1, 15), self.dice.random.randint(1, 4) if many else 1)
        returning = self._returning("old", "both", False)
        rows = self._new_rows(ids, of_key, numbered=bool(returning) and many)
        marked = [
            {n: {"$value": v} if self.dice.maybe(0.2) else v for n, v in row.items()}
            for row in rows
        ]
        self.kwargs["values"] = marked if many else marked[0]
        if key is not None:
            self.kwargs["on_conflict"] = key
        update = self.dice.pick(None, None, [], ["price", "n"], self._changes())
        if update is not None:
            self.kwargs["update"] = update.given if isinstance(update, Changes) else update
        condition = ""
        if update != [] and self.dice.maybe(0.5):
            self.kwargs["where"], where = self._where()
            condition = f" WHERE {where}"
        before, statements = list[Statement](), list[Statement]()
        for row in rows:
            settings = _settings(update, row, of_key, stays)
            action = f"UPDATE SET {settings}{condition}" if settings else "NOTHING"
            values = ", ".join(_new_value(name, value) for name, value in row.items())
            back = "" if returning is False else f" RETURNING {self.columns}"
            statements.append(Statement(
                f"INSERT INTO {self.relation} AS g ({', '.join(row)}) VALUES ({values})"
                f" ON CONFLICT {target} DO {action}{back}"))  # fmt: skip
            if returning:
                there = _keyed(stays, row, update)
                if isinstance(key, str) and update != []:
                    given = {name: _new_value(name, row[name]) for name in of_key}
                    there = INDEXED[key].format(**given)
                before.append(
                    Statement(f"SELECT {self.columns} FROM {self.relation} g WHERE {there}")
                )

        def shaped(found: list[Rows]) -> Any:
            answered: list[Any] = [row for rows in found[len(before) :] for row in rows]
            if returning is False:
                return {"affected": len(answered)}
            if returning:
                pairs = zip(found[: len(before)], found[len(before) :], strict=True)
                both = [
                    (old[0] if old else None, new) for old, (new,) in (p for p in pairs if p[1])
                ]
                answered = [
                    old if returning == "old" else {"old": old, "new": new} for old, new in both
                ]
            return answered if many else answered[0] if answered else None

        free = self._is_free(key, stays, update, bool(returning))
        return Write(f"{self.relation}.upsert", self.kwargs, [*before, *statements], shaped, free)

    def _is_free(self, key: Any, stays: Sequence[str], update: Any, looked: bool) -> bool:
        """Return whether the service may refuse an upsert that PostgreSQL runs."""
        few, conditional = self.relation == "few", "where" in self.kwargs
        computed = update.sql if isinstance(update, Changes) else {}
        # the condition is not evaluated on a row that a policy or the view hides, so it is refused
        free = conditional and (few or self.role == "clerk" or {*computed.values()} == {"DEFAULT"})
        free |= few and (looked or bool(computed))
        # old rows are read first, by the columns of a key
        return free or (looked and (isinstance(key, str) or not computed.keys().isdisjoint(stays)))

    def _new_rows(self, ids: Sequence[int], of_key: Sequence[str], numbered: bool) -> Rows:
        more = ["price", "tags", "doc", "owner", "n", "open", "code", "name", "closed"]
        more = self.dice.some(more, 4)
        alike, rows = self.dice.maybe(0.5), []
        for id in ids:
            values = {"id": id, "shop": id % 5 or 1, "name": f"g{id}", "code": f"C{id}", "n": id * 3 % 25, "open": True}  # fmt: skip
            row = {name: values[name] for name in of_key}
            if numbered:  # PostgreSQL and the service draw from the sequence in different orders
                row.setdefault("id", 100 + id)
            others = {
                "price": self.dice.pick(5, "1.25", None), "tags": self.dice.texts(), "doc": self.dice.json(),
                "owner": self.dice.pick("clerk", "clerk", "shop"), "n": self.dice.pick(1, 50),
                "open": self.dice.pick(True, None), "code": f"u{id}", "name": f"u{id}", "closed": 1,
            }  # fmt: skip
            for name in more if alike else self.dice.some(more, 3):
                row.setdefault(name, others[name])
            rows.append(row)
        return rows

    def _nested(self) -> Write:
        """Return a create of a shop with goods, or of goods with a shop; with labels through a junction."""
        dice, sql, old = (
            self.dice,
            list[Statement](),
            self.dice.random.sample([*range(1, 13), 99], 2),
        )
        goods = [
            {"name": f"new {at}", "n": dice.pick(1, 5, 150)} for at in range(dice.pick(1, 2, 3))
        ]
        shop, kwargs = {"id": dice.pick(7, 8, 8, 2), "name": "New"}, {"returning": False}
        number = str(shop["id"])
        city = f"'of {number}'" if self.ruled else "NULL"
        first = [Statement(f"INSERT INTO shops VALUES ({number}, 'New', {city})", 1)]
        if top := dice.maybe(0.6):
            links = old if dice.maybe(0.4) else []
            name, values = "shops", {**shop, "goods": [*goods, *({"$link": id} for id in links)]}
            more = ", n = coalesce(g.n, 0) + 1" if self.ruled else ""
            moved = [
                Statement(f"UPDATE goods g SET shop = {number}{more} WHERE g.id = {id}", 1)
                for id in links
            ]
        else:
            name, values, moved = "goods", goods, []
            link, number_of = dice.pick((None, ""), (3, "3"), ({"name": "Shop 2"}, "2"), (77, "77"))
            if link is not None:
                first, number = [], number_of
            for at, row in enumerate(goods):  # only the first good creates the shop
                row["shops"] = {"$link": link} if link is not None else shop
                if at and link is None:
                    row["shops"] = {"$link": 1}
        labels, joined, words = [], [], iter(("v1", "v2", "v3", "v4", "v5", "v6"))
        refused = False
        for at, row in enumerate(goods):
            to = number if top or at == 0 or number != str(shop["id"]) else "1"
            names, values_of = "shop, name, n", f"{to}, {literal(row['name'])}, {row['n']}"
            if self.ruled:
                names, values_of = f"{names}, price", f"{values_of}, {to}"
                refused |= row["n"] == 5
            sql.append(Statement(f"INSERT INTO goods ({names}) VALUES ({values_of})", 1))
            if dice.maybe(0.5):
                new, there = next(words), dice.pick("w1", "w2", "nowhere")
                row["labels"] = [{"word": new}, {"$link": there}]
                new += "!" if self.ruled else ""
                labels.append(Statement(f"INSERT INTO labels (word) VALUES ('{new}')", 1))
                joined += [
                    Statement(f"INSERT INTO labelled VALUES ({13 + at}, '{word}')", 1)
                    for word in (new, there)
                ]
        sql = [*first, *sql, *labels, *joined, *moved]
        sql += [Statement("SELECT WHERE false", 1)] if refused else []
        kwargs["values"] = values
        return Write(f"{name}.create", kwargs, sql, lambda found: {"affected": len(found)})


def _settings(update: Any, row: dict[str, Any], of_key: Sequence[str], stays: Sequence[str]) -> str:
    """Return the SQL assignments of an upsert to an existing row."""
    if isinstance(update, Changes):
        return update.settings
    if update is None:
        update = [name for name in row if name not in stays] or [of_key[0]]
    return ", ".join(f"{name} = excluded.{name}" for name in update)


def _keyed(key: Sequence[str], row: dict[str, Any], update: Any) -> str:
    """Return the SQL condition for the row that an upsert updates; "false" if it updates none."""
    parts = [f"g.{name} = {_new_value(name, row[name])}" for name in key if update != []]
    return " AND ".join(parts) or "false"


def _new_value(name: str, value: Any) -> str:
    if name == "doc":
        return "NULL" if value is None else document(value)
    return array(value, "text") if name == "tags" else literal(value)
