"""
Plan nested creates: the steps that insert rows and the rows nested in them, in the order of foreign keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NoReturn

from service.catalog import Catalog, Column, ForeignKey, Relation
from service.datatypes import DOCUMENTS
from service.errors import InvalidArgument
from service.plan.joins import Join, Junction, is_related, related, relationships
from service.plan.read_plan import key_columns
from service.plan.tree import PENDING, LinkedKey, LinkedRow, NewRows, Tree, TreeStep
from service.request.arguments import Values
from service.request.names import encode
from service.request.requests import Assignment, Embed, Operand
from service.request.row_values import MAX_NEW_ROWS, RelatedRow, kind_of, parse_related


@dataclass(frozen=True)
class NestedRows:
    """
    The rows nested in others by one relationship.

    Args:
        join: The relationship.
        key: Its foreign key; None through a junction.
        refers: Whether the outer rows have the foreign key, rather than the nested ones.
        rows: The nested rows, each with the index of its outer row.
    """

    join: Join
    key: ForeignKey | None
    refers: bool
    rows: list[tuple[int, RelatedRow]] = field(default_factory=list)


def is_nested(catalog: Catalog, relation: Relation, name: str, row: bool) -> bool:
    """Return whether a name in a new row is a relationship's, not a column's; `row` if its value is a row."""
    column = relation.columns.get(name)
    if column is None:
        return is_related(catalog, relation, Embed(name, name))
    # A foreign key's column also names the relationship; a dict cannot be a value of such a column.
    if not row:
        return False
    type = catalog.plain(catalog.type(column.type))
    keys = (key for key in relation.foreign_keys if key.columns == (name,))
    return type.form not in DOCUMENTS and type.kind != "composite" and any(keys)


def refuse_related(
    catalog: Catalog, relation: Relation, name: str, path: str, what: str, hint: str = ""
) -> NoReturn:
    """
    Refuse related rows where none are allowed; the hint names the calls that write them.

    Raises:
        InvalidArgument: Always.
    """
    hint += _written_by(catalog, relation, name)
    raise InvalidArgument(f"{what} takes no related rows", path=path, hint=hint)


def _written_by(catalog: Catalog, relation: Relation, name: str) -> str:
    """Return a hint: which calls write the rows of a relationship."""
    try:
        found = nested_by(relation, related(catalog, relation, Embed(name, name)))
    except InvalidArgument:  # several relationships have the name
        found = None
    if found is None:
        return "each relation has its own verbs"
    target, key = found.join.target.name, found.key
    if found.join.junction is not None:
        middle = found.join.junction.relation.name
        words = f'"{middle}.create" relates rows by their keys, and "{middle}.delete" ends that'
    elif found.refers:
        words = (
            f'{_listed(key)} takes the key of a row of "{target}", which "{target}.create" makes'
        )
    else:
        words = f'"{target}.create" makes them, with the key of this row as {_listed(key)}'
    return f'{words}; "transaction" makes one of several calls'


def _listed(key: ForeignKey | None) -> str:
    return ", ".join(f'"{name}"' for name in (key.columns if key is not None else ()))


def document_names(catalog: Catalog) -> frozenset[str]:
    """Return names of columns of documents, arrays and composites that no relationship has anywhere."""
    relations = catalog.relations.values()
    keys = [key for each in relations for key in (*each.foreign_keys, *each.view_foreign_keys)]
    taken = {name for key in keys for name in (key.name, *key.columns, *key.target_columns)}
    taken |= {name for _, name in catalog.functions}
    taken |= {name for each in relations for name in (each.name, encode(each.name))}
    columns = {name: column for each in relations for name, column in each.columns.items()}
    return frozenset(
        name
        for name, column in columns.items()
        if name.isidentifier() and name not in taken and _holds_some(catalog, column)
    )


def _holds_some(catalog: Catalog, column: Column) -> bool:
    type = catalog.plain(catalog.type(column.type))
    return type.form in DOCUMENTS or type.kind in ("array", "composite")


def takes_nested(relation: Relation, join: Join) -> bool:
    """Return whether rows can be nested by a relationship: by foreign keys of tables."""
    return nested_by(relation, join) is not None


def nested_by(relation: Relation, join: Join) -> NestedRows | None:
    """Return an empty `NestedRows` of a relationship; None if rows cannot be nested by it."""
    junction, target = join.junction, join.target
    if junction is not None:
        middle = junction.relation
        own_key = _foreign_key(middle, relation, _swapped(junction.outer_pairs))
        target_key = _foreign_key(middle, target, junction.related_pairs)
        return None if own_key is None or target_key is None else NestedRows(join, None, False)
    if join.function is not None:
        return None
    key = _foreign_key(relation, target, join.pairs)
    if key is not None:
        return NestedRows(join, key, True)
    key = _foreign_key(target, relation, _swapped(join.pairs))
    return None if key is None else NestedRows(join, key, False)


def _foreign_key(
    relation: Relation, target: Relation, pairs: Sequence[tuple[str, str]]
) -> ForeignKey | None:
    """Return the foreign key of a table with these pairs of columns; None if there is none."""
    wanted = frozenset(pairs)
    home = target.schema, target.name
    return next(
        (
            key
            for key in relation.foreign_keys
            if key.target == home
            and frozenset(zip(key.columns, key.target_columns, strict=True)) == wanted
        ),
        None,
    )


def _swapped(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(right, left) for left, right in pairs]


def plan_nested_create(
    catalog: Catalog,
    relation: Relation,
    rows: Sequence[tuple[str, Sequence[Assignment]]],
    values: Values,
    max_depth: int,
    key: Sequence[str] = (),
    by_key: bool = False,
) -> Tree:
    """
    Plan the steps that insert rows and all rows nested in them.

    Args:
        catalog: Source of relationships.
        relation: Relation of the call's rows.
        rows: The call's rows, each with its path.
        values: Values of the call; values of nested rows are appended, and slots for values that steps
            generate.
        max_depth: Maximum nesting of rows.
        key: Columns of the key by which the call's rows are read again at the end, if they are.
        by_key: Whether there is one row, which is read again by its key's values rather than their texts.

    Raises:
        InvalidArgument: A relationship is unknown, ambiguous or not a foreign key's, a column is set
            twice, there are too many rows, or they nest too deep.
    """
    builder = _TreeBuilder(catalog, values, max_depth)
    root = builder.make(relation, rows, (), 0)
    # The call's rows are read again only if a later step follows them, or if the table has rules: these
    # forbid the data-modifying WITH in which a statement would return related rows.
    answers = builder.steps[-1] is root and not (key and relation.has_rules)
    again = () if answers else key
    slots, texts = (builder.slots(root, 0, again), ()) if by_key else ((), again)
    made = [builder.build(each, texts if each is root else ()) for each in builder.steps]
    number = len(builder.links) + builder.steps.index(root)
    steps = (*builder.links, *made)
    return Tree(steps, number, builder.written, _embeds(root.shown), answers, tuple(slots))


@dataclass(eq=False)
class _RowsBuilder:
    """
    A `NewRows` under construction, while the rows nested in it are planned.

    Args:
        relation, rows, paths, slots, equal_slots: As in `NewRows`, but slots by column.
        related: For each row, the assignments that relationships add, by column.
        shown: Nested embeds of the result, by name.
    """

    relation: Relation
    rows: list[list[Assignment]]
    paths: list[str]
    related: list[dict[str, Assignment]]
    slots: dict[str, list[int]] = field(default_factory=dict)
    equal_slots: list[tuple[int, int, str]] = field(default_factory=list)
    shown: dict[str, Any] = field(default_factory=dict)


class _TreeBuilder:
    def __init__(self, catalog: Catalog, values: Values, max_depth: int) -> None:
        self._catalog = catalog
        self._values = values
        self._max_depth = max_depth
        self.steps: list[Any] = []
        self.links: list[LinkedKey] = []
        self._parents: dict[tuple[str, str, tuple[str, ...]], int] = {}
        self.written = 0

    def build(self, step: Any, key: Sequence[str]) -> TreeStep:
        """Return the final step of one under construction."""
        if not isinstance(step, _RowsBuilder):
            found: TreeStep = step
            return found
        lists = [*step.slots.values(), *([self._pending() for _ in step.rows] for _ in key)]
        return NewRows(
            step.relation,
            tuple(map(tuple, step.rows)),
            tuple(step.paths),
            tuple(step.slots),
            tuple(zip(*lists, strict=True)) if lists else tuple(() for _ in step.rows),
            tuple(key),
            tuple(step.equal_slots),
            tuple(each for row in step.related for each in row.values()),
        )

    def make(
        self,
        relation: Relation,
        rows: Sequence[tuple[str, Sequence[Assignment]]],
        referring: Sequence[Sequence[Assignment]],
        depth: int,
    ) -> _RowsBuilder:
        """
        Add the steps that insert rows and all rows nested in them.

        Args:
            relation: Relation of the rows.
            rows: The rows, each with its path.
            referring: For each row, the assignments of its foreign key to its parent, if it has one.
            depth: Nesting depth of the rows.
        """
        self._count(len(rows), rows[0][0] if rows else "values")
        if "insert" not in relation.accepted_writes:
            raise InvalidArgument(
                f'"{relation.name}" is a {relation.kind} that takes no new rows', path=rows[0][0]
            )
        building = _RowsBuilder(
            relation, [[] for _ in rows], [path for path, _ in rows], [{} for _ in rows]
        )
        nested = self._split_nested(building, [row for _, row in rows], depth)
        for at, columns in enumerate(referring):
            for each in columns:
                self._set(building, at, each)
        for name, nested_in in nested.items():
            if nested_in.refers:
                building.shown[name] = self._referred(building, nested_in, depth)
        self.steps.append(building)
        for name, nested_in in nested.items():
            if not nested_in.refers:
                add = self._referring if nested_in.join.junction is None else self._joined
                building.shown[name] = add(building, nested_in, depth)
        return building

    def _split_nested(
        self, building: _RowsBuilder, rows: Sequence[Sequence[Assignment]], depth: int
    ) -> dict[str, NestedRows]:
        """Add the columns of rows to a step, and return the nested rows, by relationship name."""
        nested: dict[str, NestedRows] = {}
        columns = building.relation.columns
        for at, row in enumerate(rows):
            for each in row:
                kind = kind_of(each, self._values)
                # Fast path: a column's value can be a related row only if it is a dict.
                plain = (each.column in columns and kind != "row") or each.literal
                if plain or not is_nested(
                    self._catalog, building.relation, each.column, kind == "row"
                ):
                    building.rows[at].append(each)
                    continue
                if depth >= self._max_depth:
                    raise InvalidArgument(
                        f"rows may nest {self._max_depth} deep", path=each.path[:200]
                    )
                found = nested.get(each.column) or self._relationship(building.relation, each)
                nested[each.column] = found
                if kind == "rows" and not found.join.many:
                    raise self._refuse_list(building.relation, each, found)
                nested_in = parse_related(each, found.join.many, self._values)
                found.rows.extend((at, one) for one in nested_in)
        return nested

    def _relationship(self, relation: Relation, each: Assignment) -> NestedRows:
        """
        Return the relationship of a name, by which rows can be nested.

        Raises:
            InvalidArgument: The name is ambiguous, or its relationship is not a table's foreign key.
        """
        join = related(self._catalog, relation, Embed(each.column, each.path))
        found = nested_by(relation, join)
        if found is None:
            raise InvalidArgument(
                f'"{each.column}" is a relationship of a view or a function: no rows are made for it',
                path=each.path,
                hint="rows are nested by the foreign keys of tables",
            )
        return found

    def _refuse_list(
        self, relation: Relation, each: Assignment, nested: NestedRows
    ) -> InvalidArgument:
        """Build the refusal of a list for a to-one relationship, with the names of to-many ones."""
        target = nested.join.target
        names = [
            f"{target.name}!{join.label}"
            for join in relationships(self._catalog, relation)
            if join.many and join.target is target and takes_nested(relation, join)
        ]
        which = "that the new one refers to" if nested.refers else "that refers to the new one"
        lists = " or ".join(f'"{name}"' for name in names)
        return InvalidArgument(
            f'"{each.column}" means the one row {which}, and holds no list',
            path=each.path,
            hint=f"a list of rows goes under {lists}" if names else "leave out the list around it",
            candidates=names or None,
        )

    def _referred(self, building: _RowsBuilder, nested: NestedRows, depth: int) -> dict[str, Any]:
        """Add the nested rows that the outer rows refer to, and set the outer rows' foreign keys."""
        assert nested.key is not None
        columns, targets = nested.key.columns, nested.key.target_columns
        target_slots, shown = self._target_rows(nested, targets, depth)
        for (at, one), slots in zip(nested.rows, target_slots, strict=True):
            for column, slot in zip(columns, slots, strict=True):
                self._set(building, at, Assignment(column, Operand(slot, one.path), one.path))
        return shown

    def _referring(self, building: _RowsBuilder, nested: NestedRows, depth: int) -> dict[str, Any]:
        """Add the nested rows that refer to the outer rows."""
        assert nested.key is not None
        columns, targets = nested.key.columns, nested.key.target_columns
        rows, referring = [], []
        links: list[LinkedRow] = []
        for at, one in nested.rows:
            slots = self.slots(building, at, targets)
            changes = [
                Assignment(column, Operand(slot, one.path), one.path)
                for column, slot in zip(columns, slots, strict=True)
            ]
            if one.link is None:
                rows.append((one.path, one.assignments))
                referring.append(changes)
            else:
                self._count(1, one.path)
                links.append(self._moved(nested.join.target, one, changes))
        shown = {}
        if rows:
            shown = self.make(nested.join.target, rows, referring, depth + 1).shown
        self.steps.extend(links)
        return shown

    def _moved(
        self, relation: Relation, one: RelatedRow, changes: Sequence[Assignment]
    ) -> LinkedRow:
        """Return the step that sets a linked row's foreign key to a new row; add the step that looks it up."""
        key, path = one.link, one.path
        assert key is not None
        given = key_columns(self._catalog, relation, key, f"{path}.$link")
        columns = relation.primary_key or given
        known = {name: self._pending() for name in columns}
        new = {each.column: each.operand.slot for each in changes if each.operand is not None}
        foreign = relation.schema, relation.name, tuple(new)
        if foreign not in self._parents:
            self._parents[foreign] = self._pending()
        slots, parent, parents = tuple(known.values()), tuple(new.values()), self._parents[foreign]
        self.links.append(LinkedKey(relation, key, path, columns, slots, parent, parents))
        equal_slots = [
            (known[name], new[name], path) for name in relation.primary_key if name in new
        ]
        return LinkedRow(relation, key, path, tuple(changes), tuple(changes), tuple(equal_slots))

    def _joined(self, building: _RowsBuilder, nested: NestedRows, depth: int) -> dict[str, Any]:
        """Add the nested rows at the other end of a junction, and the junction's rows."""
        junction = nested.join.junction
        assert isinstance(junction, Junction)
        outer_columns, own = zip(*junction.outer_pairs, strict=True)
        related, targets = zip(*junction.related_pairs, strict=True)
        columns = (*own, *related)
        target_slots, shown = self._target_rows(nested, targets, depth)
        referring = [
            [
                Assignment(column, Operand(slot, one.path), one.path)
                for column, slot in zip(
                    columns, (*self.slots(building, at, outer_columns), *slots), strict=True
                )
            ]
            for (at, one), slots in zip(nested.rows, target_slots, strict=True)
        ]
        if referring:
            rows = [(one.path, ()) for _, one in nested.rows]
            self.make(junction.relation, rows, referring, depth)
        return shown

    def _target_rows(
        self, nested: NestedRows, targets: Sequence[str], depth: int
    ) -> tuple[list[Sequence[int]], dict[str, Any]]:
        """
        Add the new rows at the other end of a relationship.

        Returns:
            For each row at the other end, the slots of its referenced columns; and nested embeds.
        """
        target = nested.join.target
        new = [(one.path, one.assignments) for _, one in nested.rows if one.link is None]
        made = self.make(target, new, (), depth + 1) if new else None
        numbers = count()
        return [
            self.slots(made, next(numbers), targets)
            if made is not None and one.link is None
            else self._linked(target, one, targets)
            for _, one in nested.rows
        ], (made.shown if made is not None else {})

    def _linked(self, relation: Relation, one: RelatedRow, targets: Sequence[str]) -> Sequence[int]:
        """Return the slots of a linked row's columns; add a step that looks it up if necessary."""
        key, path = one.link, one.path
        assert key is not None
        columns = key_columns(self._catalog, relation, key, f"{path}.$link")
        given = dict(zip(columns, key.operands, strict=True))
        if set(targets) == given.keys():
            return [given[name].slot for name in targets]
        slots = tuple(self._pending() for _ in targets)
        self.links.append(LinkedKey(relation, key, path, tuple(targets), slots))
        return slots

    def _set(self, building: _RowsBuilder, at: int, new: Assignment) -> None:
        """Set a column of a row by a relationship; if another one sets it too, their values must be equal."""
        earlier = next((each for each in building.rows[at] if each.column == new.column), None)
        if earlier is None:
            building.rows[at].append(new)
            building.related[at][new.column] = new
            return
        if new.column not in building.related[at]:
            raise InvalidArgument(
                f'"{new.column}" is set by itself and by a relationship',
                path=earlier.path,
                column=new.column,
                hint="leave one of the two out",
            )
        assert earlier.operand is not None
        assert new.operand is not None
        building.equal_slots.append((earlier.operand.slot, new.operand.slot, new.path))

    def slots(self, building: _RowsBuilder, at: int, columns: Sequence[str]) -> list[int]:
        """Return the slots of a new row's columns, whose values are known once it is inserted."""
        for column in columns:
            if column not in building.slots:
                building.slots[column] = [self._pending() for _ in building.rows]
        return [building.slots[column][at] for column in columns]

    def _pending(self) -> int:
        return self._values.add(PENDING)

    def _count(self, rows: int, path: str) -> None:
        self.written += rows
        if self.written > MAX_NEW_ROWS:
            raise InvalidArgument(
                f"a call makes at most {MAX_NEW_ROWS} rows with what is nested in them",
                path=path,
                hint="several calls make them, or import",
            )


def _embeds(shown: Mapping[str, Any], path: str = "values") -> tuple[Embed, ...]:
    """Return the embeds with which the result shows the nested rows."""
    return tuple(
        replace(Embed(name, f"{path}.{name}"), embeds=_embeds(inner, f"{path}.{name}"))
        for name, inner in shown.items()
    )
