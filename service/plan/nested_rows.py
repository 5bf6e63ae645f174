"""
Plan nested creates: the steps that insert rows and the rows nested in them, and the messages of these steps.

`drivers.create({"name": "Eve", "vehicles": [{"plate": "B-RC 1", "model": "bus"}]})`, where `vehicles` has the
foreign key `driver_id`, goes through three stages:

1. `plan_tree` makes a step for each place in the tree, in the order of foreign keys. Here these are `NewRows`
   of `drivers`, whose `id` fills slot 5 of the call's values, and `NewRows` of `vehicles`, with the assignment
   `driver_id` = slot 5. Slots of values that the database generates hold `PENDING` until then. A row given by
   `{"$link": key}` makes a `LinkedKey`, which looks it up, and if it is going to refer to a new row, a
   `LinkedRow`, which updates it.
2. `plan_messages` distributes the steps over messages to PostgreSQL. Here it is one, because PostgreSQL can
   pass slot 5, the value of a single row, from the first statement to the others. The ids of two drivers
   would be returned by a first message, and the vehicles inserted by a second (from PostgreSQL 17 on).
3. `sql/step_sql.py` builds the statements of a message from each step's `plan`. Without the check that each
   writes all its rows, they are:

       INSERT INTO drivers (name) VALUES (%s)
           RETURNING set_config('rowcast.value_5', CAST(id AS text), true);
       INSERT INTO vehicles (plate, model, driver_id)
           VALUES (%s, %s, CAST(current_setting('rowcast.value_5') AS bigint));
       SELECT … FROM drivers WHERE id = CAST(current_setting('rowcast.value_5') AS bigint)

`api/nested.py` runs these stages, and `db/writes.py` sends the messages and fills the slots of values that they
return. docs/statements.md shows the statements of more calls.

Linked rows are looked up before any row is inserted, so that a link never means a new row. A row is inserted
after the rows that it refers to and before those that refer to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count, groupby
from operator import itemgetter

from service.catalog import Catalog, ForeignKey, Relation
from service.errors import InvalidArgument
from service.plan.joins import (
    Join,
    Junction,
    is_nested,
    nested_by,
    related,
    relationships,
)
from service.plan.plans import (
    InsertPlan,
    Lock,
    Output,
    PlannedReturning,
    ReadPlan,
    UpdatePlan,
)
from service.plan.read_plan import key_columns, plan_get
from service.plan.scope import Scope
from service.plan.write_plan import plan_new_rows, plan_update
from service.request.arguments import Values
from service.request.requests import (
    EVERYTHING,
    Assignment,
    Embed,
    GetRequest,
    Item,
    KeyMatch,
    Operand,
    Reference,
    Returning,
    Target,
    UpdateRequest,
)
from service.request.row_values import MAX_NEW_ROWS, RelatedRow, kind_of, parse_related

PENDING = object()
"""Placeholder of a value that an earlier step generates."""

EqualSlots = tuple[int, int, str]
"""Two slots whose values must be equal, and the path in the call that the error names if they are not."""


class _Step:
    """
    A statement of a nested create, and the slots of the values that it needs and generates.

    Attributes:
        relation: The relation that it writes or reads.
        columns: Columns whose values it generates.
        filled: For each of its rows, the slots that these values fill.
        equal_slots: Slots whose values must be equal.
    """

    __slots__ = ()
    relation: Relation
    columns: tuple[str, ...]
    filled: tuple[tuple[int, ...], ...]
    equal_slots: tuple[EqualSlots, ...] = ()

    @property
    def used(self) -> list[int]:
        """Slots of the values in its statement."""
        raise NotImplementedError

    @property
    def checked(self) -> list[int]:
        """Slots of the values that are compared before it is sent."""
        return [slot for one, other, _ in self.equal_slots for slot in (one, other)]

    @property
    def passable(self) -> list[int]:
        """Slots whose values PostgreSQL can pass to a later statement: of a single row, and never null."""
        if self.needs_own_message or len(self.filled) > 1:
            return []
        columns = self.relation.columns
        return [slot for slots in self.filled
                # Not strict: slots of texts may follow.
                for name, slot in zip(self.columns, slots, strict=False)
                if not columns[name].nullable]  # fmt: skip

    @property
    def needs_model(self) -> bool:
        """Whether a model validates its rows before they are written."""
        return False

    @property
    def needs_own_message(self) -> bool:
        """Whether it cannot share a message."""
        # In a shared message a statement is wrapped in WITH, to count its rows, and PostgreSQL does not support
        # that for tables with most rules. Alone, the command tag has the count.
        return self.relation.has_rules

    @property
    def needed(self) -> tuple[list[int], list[int]]:
        """The slots that PostgreSQL can pass to it, and those that must be returned before it is sent."""
        # Nothing is passed into a message of its own, and a model needs the values themselves.
        if self.needs_own_message or self.needs_model:
            return [], [*self.used, *self.checked]
        return self.used, self.checked


@dataclass(frozen=True, slots=True)
class NewRows(_Step):
    """
    New rows of one relation, inserted by one statement.

    Args:
        relation: The relation.
        rows: The assignments of each row.
        paths: Path of each row in the call.
        columns: Columns whose values later steps use.
        filled: For each row, the slots that those values fill, and behind them those of `texts`.
        texts: Columns whose values are needed in PostgreSQL's text format, too: the key by which the result
            is read.
        equal_slots: Slots of values of a column that two relationships set.
        related: Assignments that relationships add; none of their values may be null.
        needs_model: Whether a model validates the rows before they are written.
    """

    relation: Relation
    rows: tuple[tuple[Assignment, ...], ...]
    paths: tuple[str, ...]
    columns: tuple[str, ...] = ()
    filled: tuple[tuple[int, ...], ...] = ()
    texts: tuple[str, ...] = ()
    equal_slots: tuple[EqualSlots, ...] = ()
    related: tuple[Assignment, ...] = ()
    needs_model: bool = False

    @property
    def used(self) -> list[int]:
        """Slots of the values in its statement."""
        return [slot for row in self.rows for slot in _slots_of(row)]

    @property
    def text_slots(self) -> list[Sequence[int]]:
        """For each row, the slots of its key as text, if the result is read by them."""
        return [slots[len(self.columns) :] for slots in self.filled] if self.texts else []

    def parts(self, catalog: Catalog) -> list[NewRows]:
        """Return the step, or one for each row if RETURNING could not tell which result is of which row."""
        # MERGE RETURNING gives the number of each row with its key, which the order of INSERT's RETURNING does
        # not guarantee. PostgreSQL has it from 17 on; it is used for tables without rules.
        merges = catalog.merge_returns and self.relation.kind == "table"
        if not self.filled[0] or len(self.rows) == 1 or (merges and not self.relation.has_rules):
            return [self]
        rows = zip(self.rows, self.paths, self.filled, strict=True)
        return [
            replace(self, rows=(row,), paths=(path,), filled=(slots,)) for row, path, slots in rows
        ]

    def plan(self, catalog: Catalog) -> InsertPlan:
        """Plan the INSERT, which returns the values of `columns` and `texts`."""
        scope, relation = Scope(catalog, self.relation), self.relation
        columns, rows = plan_new_rows(scope, self.rows)
        values = [scope.of_column(relation.columns[name]) for name in self.columns]
        text = scope.builtin("text")
        values += [scope.of_column(relation.columns[name]).cast(text) for name in self.texts]
        returning = PlannedReturning(
            tuple(Output(each, f"c{at}") for at, each in enumerate(values))
        )
        numbered = bool(values) and len(rows) > 1
        return InsertPlan(
            f"{relation.name}.create", relation, columns, rows, returning, numbered=numbered
        )


@dataclass(frozen=True, slots=True)
class LinkedKey(_Step):
    """
    The lookup of an existing, linked row: a foreign key references other columns than those of the given
    key, or the row is going to refer to a new row.

    Args:
        relation: The relation.
        key: The key given in the call.
        path: Path of the link in the call.
        columns: Columns that are referenced, or that identify the row.
        filled: For its row, the slots that their values fill.
        parent: Slots of the row that it is going to refer to, if any.
        parents: Slot of the parents of all rows linked by the same foreign key.
        locked: Whether the row is locked until the transaction ends.
    """

    relation: Relation
    key: KeyMatch
    path: str
    columns: tuple[str, ...]
    filled: tuple[tuple[int, ...]]
    parent: tuple[int, ...] = ()
    parents: int = 0
    locked: bool = False

    @property
    def used(self) -> list[int]:
        """Slots of the values in its statement."""
        return [each.slot for each in self.key.operands]

    @property
    def needs_own_message(self) -> bool:
        """Whether it cannot share a message: reads can, whatever rules the table has."""
        return False

    def plan(self, catalog: Catalog) -> ReadPlan:
        """Plan the SELECT of the columns."""
        select = tuple(Item(Reference(name, self.path)) for name in self.columns)
        plan = plan_get(catalog, self.relation, GetRequest(self.key, select))
        return replace(plan, lock=Lock()) if self.locked else plan


@dataclass(frozen=True, slots=True)
class LinkedRow(_Step):
    """
    The update of an existing, linked row so that it refers to a new one.

    Args:
        relation: The relation.
        key: The key given in the call.
        path: Path of the link in the call.
        changes: The changes to write.
        related: Its foreign key's columns; none of their values may be null.
        equal_slots: Slots of the current and the new value of columns of its primary key.
        row: The lookup of the entire row, if a model validates it before it is written.
    """

    relation: Relation
    key: KeyMatch
    path: str
    changes: tuple[Assignment, ...]
    related: tuple[Assignment, ...]
    equal_slots: tuple[EqualSlots, ...] = ()
    row: LinkedKey | None = None
    columns = ()
    filled = ((),)

    @property
    def used(self) -> list[int]:
        """Slots of the values in its statement."""
        return [*(each.slot for each in self.key.operands), *_slots_of(self.changes)]

    @property
    def needs_model(self) -> bool:
        """Whether a model validates it before it is written."""
        return self.row is not None

    def plan(self, catalog: Catalog) -> UpdatePlan:
        """Plan the UPDATE, which returns nothing."""
        target = Target(self.key, (), EVERYTHING)
        request = UpdateRequest(target, self.changes, Returning(rows=False))
        # many=True: a missing row is detected by the row count, and the transaction rolled back.
        return plan_update(catalog, self.relation, request, many=True)


def _slots_of(assignments: Sequence[Assignment]) -> list[int]:
    return [each.operand.slot for each in assignments if each.operand is not None]


TreeStep = NewRows | LinkedKey | LinkedRow


@dataclass(frozen=True, slots=True)
class Tree:
    """
    The steps of a nested create.

    Args:
        steps: The steps, in order.
        root: Index of the step that inserts the rows of the call itself.
        written: Number of rows that all steps write.
        embeds: Embeds that show the nested rows in the result.
        root_answers: Whether the root is the last step, so that its statement returns the result.
        key: Slots of the key by which the call's single row is read again, if it is.
    """

    steps: tuple[TreeStep, ...]
    root: int
    written: int
    embeds: tuple[Embed, ...]
    root_answers: bool
    key: tuple[int, ...] = ()

    @property
    def root_step(self) -> NewRows:
        """The step that inserts the rows of the call itself."""
        step = self.steps[self.root]
        assert isinstance(step, NewRows)
        return step


def plan_tree(
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
    root = builder.add_rows(relation, rows, (), 0)
    # The call's rows are read again only if a later step follows them, or if the table has rules: these
    # forbid the data-modifying WITH in which a statement would return related rows.
    answers = builder.steps[-1] is root and not (key and relation.has_rules)
    again = () if answers else key
    key_slots = builder.slots(root, 0, again) if by_key else ()
    if not by_key:
        root.texts = {name: builder.pending(len(root.rows)) for name in again}
    steps = [each.step() if isinstance(each, _RowsBuilder) else each for each in builder.steps]
    # Links are looked up first: one by another key could find a row that this call inserts.
    number = len(builder.links) + builder.steps.index(root)
    embeds = _embeds(root, "values")
    return Tree(
        (*builder.links, *steps), number, builder.written, embeds, answers, tuple(key_slots)
    )


@dataclass(frozen=True, slots=True)
class _NestedRows:
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


@dataclass(eq=False)
class _RowsBuilder:
    """
    A `NewRows` under construction, while the rows nested in it are planned.

    Args:
        relation, rows, paths, equal_slots: As in `NewRows`.
        related: For each row, the assignments that relationships add, by column.
        slots, texts: Slots of each row, by column.
        nested: The new rows nested in these, by relationship; None if all of them are linked.
    """

    relation: Relation
    rows: list[list[Assignment]]
    paths: list[str]
    related: list[dict[str, Assignment]]
    slots: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, list[int]] = field(default_factory=dict)
    equal_slots: list[EqualSlots] = field(default_factory=list)
    nested: dict[str, _RowsBuilder | None] = field(default_factory=dict)

    def step(self) -> NewRows:
        """Return the step."""
        lists = [*self.slots.values(), *self.texts.values()]
        return NewRows(
            self.relation,
            tuple(map(tuple, self.rows)),
            tuple(self.paths),
            tuple(self.slots),
            tuple(zip(*lists, strict=True)) if lists else tuple(() for _ in self.rows),
            tuple(self.texts),
            tuple(self.equal_slots),
            tuple(each for row in self.related for each in row.values()),
        )

    def set(self, at: int, new: Assignment) -> None:
        """Set a column of a row by a relationship; if another one sets it too, their values must be equal."""
        earlier = next((each for each in self.rows[at] if each.column == new.column), None)
        if earlier is None:
            self.rows[at].append(new)
            self.related[at][new.column] = new
            return
        if new.column not in self.related[at]:
            raise InvalidArgument(
                f'"{new.column}" is set by itself and by a relationship',
                path=earlier.path,
                column=new.column,
                hint="leave one of the two out",
            )
        assert earlier.operand is not None
        assert new.operand is not None
        self.equal_slots.append((earlier.operand.slot, new.operand.slot, new.path))


class _TreeBuilder:
    """
    The steps under construction.

    Attributes:
        steps: The steps that write, in order.
        links: The lookups of linked rows, which come before all of these.
        written: Number of rows that the steps write.
    """

    def __init__(self, catalog: Catalog, values: Values, max_depth: int) -> None:
        self._catalog = catalog
        self._values = values
        self._max_depth = max_depth
        self.steps: list[_RowsBuilder | LinkedRow] = []
        self.links: list[LinkedKey] = []
        self._parents: dict[tuple[str, str, tuple[str, ...]], int] = {}
        self.written = 0

    def add_rows(
        self,
        relation: Relation,
        rows: Sequence[tuple[str, Sequence[Assignment]]],
        foreign_keys: Sequence[Sequence[Assignment]],
        depth: int,
    ) -> _RowsBuilder:
        """
        Add the steps that insert rows and all rows nested in them.

        Args:
            relation: Relation of the rows.
            rows: The rows, each with its path.
            foreign_keys: For each row, the assignments of its foreign key to the row that it is nested in;
                empty if it does not refer to one.
            depth: Nesting depth of the rows.
        """
        self._count(len(rows), rows[0][0] if rows else "values")
        if "insert" not in relation.accepted_writes:
            raise InvalidArgument(
                f'"{relation.name}" is a {relation.kind} that takes no new rows', path=rows[0][0]
            )
        outer = _RowsBuilder(
            relation, [[] for _ in rows], [path for path, _ in rows], [{} for _ in rows]
        )
        nested = self._split_nested(outer, [row for _, row in rows], depth)
        for at, columns in enumerate(foreign_keys):
            for each in columns:
                outer.set(at, each)
        for name, nested_in in nested.items():
            if nested_in.refers:
                outer.nested[name] = self._add_referenced(outer, nested_in, depth)
        self.steps.append(outer)
        for name, nested_in in nested.items():
            if not nested_in.refers:
                junction = nested_in.join.junction
                add = self._add_referring if junction is None else self._add_joined
                outer.nested[name] = add(outer, nested_in, depth)
        return outer

    def _split_nested(
        self, outer: _RowsBuilder, rows: Sequence[Sequence[Assignment]], depth: int
    ) -> dict[str, _NestedRows]:
        """Add the columns of rows to their step, and return the nested rows, by relationship name."""
        nested: dict[str, _NestedRows] = {}
        columns = outer.relation.columns
        for at, row in enumerate(rows):
            for each in row:
                kind = kind_of(each, self._values)
                # Fast path: a column's value can be a related row only if it is a dict.
                plain = (each.column in columns and kind != "row") or each.literal
                if plain or not is_nested(
                    self._catalog, outer.relation, each.column, kind == "row"
                ):
                    outer.rows[at].append(each)
                    continue
                if depth >= self._max_depth:
                    raise InvalidArgument(
                        f"rows may nest {self._max_depth} deep", path=each.path[:200]
                    )
                found = nested.get(each.column) or self._relationship(outer.relation, each)
                nested[each.column] = found
                if kind == "rows" and not found.join.many:
                    raise self._refuse_list(outer.relation, each, found)
                nested_in = parse_related(each, found.join.many, self._values)
                found.rows.extend((at, one) for one in nested_in)
        return nested

    def _relationship(self, relation: Relation, each: Assignment) -> _NestedRows:
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
        return _NestedRows(join, *found)

    def _refuse_list(
        self, relation: Relation, each: Assignment, nested: _NestedRows
    ) -> InvalidArgument:
        """Build the refusal of a list for a to-one relationship, with the names of to-many ones."""
        target = nested.join.target
        names = [
            f"{target.name}!{join.label}"
            for join in relationships(self._catalog, relation)
            if join.many and join.target is target and nested_by(relation, join)
        ]
        which = "that the new one refers to" if nested.refers else "that refers to the new one"
        lists = " or ".join(f'"{name}"' for name in names)
        return InvalidArgument(
            f'"{each.column}" means the one row {which}, and holds no list',
            path=each.path,
            hint=f"a list of rows goes under {lists}" if names else "leave out the list around it",
            candidates=names or None,
        )

    def _add_referenced(
        self, outer: _RowsBuilder, nested: _NestedRows, depth: int
    ) -> _RowsBuilder | None:
        """Add the nested rows that the outer rows refer to, and set the outer rows' foreign keys."""
        assert nested.key is not None
        target_slots, new = self._add_targets(nested, nested.key.target_columns, depth)
        for (at, one), slots in zip(nested.rows, target_slots, strict=True):
            for each in _set_to_slots(nested.key.columns, slots, one.path):
                outer.set(at, each)
        return new

    def _add_referring(
        self, outer: _RowsBuilder, nested: _NestedRows, depth: int
    ) -> _RowsBuilder | None:
        """Add the nested rows that refer to the outer rows."""
        assert nested.key is not None
        target = nested.join.target
        rows, foreign_keys = [], []
        links: list[LinkedRow] = []
        for at, one in nested.rows:
            slots = self.slots(outer, at, nested.key.target_columns)
            changes = _set_to_slots(nested.key.columns, slots, one.path)
            if one.link is None:
                rows.append((one.path, one.assignments))
                foreign_keys.append(changes)
            else:
                self._count(1, one.path)
                links.append(self._link_to_new(target, one.link, one.path, changes))
        new = self.add_rows(target, rows, foreign_keys, depth + 1) if rows else None
        self.steps.extend(links)
        return new

    def _link_to_new(
        self, relation: Relation, key: KeyMatch, path: str, changes: tuple[Assignment, ...]
    ) -> LinkedRow:
        """Return the step that sets a linked row's foreign key to a new row; add the step that looks it up."""
        given = key_columns(self._catalog, relation, key, f"{path}.$link")
        columns = relation.primary_key or given
        known = dict(zip(columns, self.pending(len(columns)), strict=True))
        new = {each.column: each.operand.slot for each in changes if each.operand is not None}
        foreign = relation.schema, relation.name, tuple(new)
        if foreign not in self._parents:
            (self._parents[foreign],) = self.pending(1)
        slots, parent, parents = tuple(known.values()), tuple(new.values()), self._parents[foreign]
        self.links.append(LinkedKey(relation, key, path, columns, (slots,), parent, parents))
        equal_slots = [
            (known[name], new[name], path) for name in relation.primary_key if name in new
        ]
        return LinkedRow(relation, key, path, changes, changes, tuple(equal_slots))

    def _add_joined(
        self, outer: _RowsBuilder, nested: _NestedRows, depth: int
    ) -> _RowsBuilder | None:
        """Add the nested rows at the other end of a junction, and the junction's rows."""
        junction = nested.join.junction
        assert isinstance(junction, Junction)
        outer_columns, own = zip(*junction.outer_pairs, strict=True)
        related, targets = zip(*junction.related_pairs, strict=True)
        target_slots, new = self._add_targets(nested, targets, depth)
        foreign_keys = [
            _set_to_slots(
                (*own, *related), (*self.slots(outer, at, outer_columns), *slots), one.path
            )
            for (at, one), slots in zip(nested.rows, target_slots, strict=True)
        ]
        if foreign_keys:
            rows = [(one.path, ()) for _, one in nested.rows]
            self.add_rows(junction.relation, rows, foreign_keys, depth)
        return new

    def _add_targets(
        self, nested: _NestedRows, targets: Sequence[str], depth: int
    ) -> tuple[list[Sequence[int]], _RowsBuilder | None]:
        """
        Add the new rows at the other end of a relationship.

        Returns:
            For each row at the other end, the slots of its columns `targets`; and the new ones of the rows.
        """
        target = nested.join.target
        rows = [(one.path, one.assignments) for _, one in nested.rows if one.link is None]
        new = self.add_rows(target, rows, (), depth + 1) if rows else None
        numbers = count()
        return [
            self.slots(new, next(numbers), targets)
            if new is not None and one.link is None
            else self._linked(target, one, targets)
            for _, one in nested.rows
        ], new

    def _linked(self, relation: Relation, one: RelatedRow, targets: Sequence[str]) -> Sequence[int]:
        """Return the slots of a linked row's columns; add a step that looks it up if necessary."""
        key, path = one.link, one.path
        assert key is not None
        columns = key_columns(self._catalog, relation, key, f"{path}.$link")
        given = dict(zip(columns, key.operands, strict=True))
        if set(targets) == given.keys():
            return [given[name].slot for name in targets]
        slots = tuple(self.pending(len(targets)))
        self.links.append(LinkedKey(relation, key, path, tuple(targets), (slots,)))
        return slots

    def slots(self, outer: _RowsBuilder, at: int, columns: Sequence[str]) -> list[int]:
        """Return the slots of a new row's columns, whose values are known once it is inserted."""
        for column in columns:
            if column not in outer.slots:
                outer.slots[column] = self.pending(len(outer.rows))
        return [outer.slots[column][at] for column in columns]

    def pending(self, number: int) -> list[int]:
        """Return a number of new slots, for values that steps generate."""
        return [self._values.add(PENDING) for _ in range(number)]

    def _count(self, rows: int, path: str) -> None:
        self.written += rows
        if self.written > MAX_NEW_ROWS:
            raise InvalidArgument(
                f"a call makes at most {MAX_NEW_ROWS} rows with what is nested in them",
                path=path,
                hint="several calls make them, or import",
            )


def _set_to_slots(
    columns: Sequence[str], slots: Sequence[int], path: str
) -> tuple[Assignment, ...]:
    """Return assignments of the values of slots to columns."""
    return tuple(
        Assignment(column, Operand(slot, path), path)
        for column, slot in zip(columns, slots, strict=True)
    )


def _embeds(rows: _RowsBuilder | None, path: str) -> tuple[Embed, ...]:
    """Return the embeds with which the result shows the rows nested in new ones."""
    return tuple(
        Embed(name, f"{path}.{name}", embeds=_embeds(inner, f"{path}.{name}"))
        for name, inner in (rows.nested.items() if rows is not None else ())
    )


@dataclass(frozen=True, slots=True)
class Messages:
    """
    The steps of a nested create by messages.

    Args:
        steps: Steps of each message; the last message also has the statement that returns the result.
        passed: Slots of values that PostgreSQL passes from statement to statement.
        returned: Slots of values that are returned to the service.
    """

    steps: tuple[tuple[TreeStep, ...], ...]
    passed: frozenset[int]
    returned: frozenset[int]


@dataclass
class _Generated:
    """
    Values that steps generate, while these are distributed over messages.

    Attributes:
        messages: For each slot, the number of the message whose step fills it.
        passable: Slots whose values PostgreSQL can pass to a later statement.
        passed, returned: As in `Messages`.
    """

    messages: dict[int, int] = field(default_factory=dict)
    passable: set[int] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)
    returned: set[int] = field(default_factory=set)

    def first_message(self, used: Sequence[int], checked: Sequence[int]) -> int:
        """Return the earliest message of a statement that uses values, and before which others are checked."""
        generated = self.messages.keys() & {*used, *checked}
        returned = generated - self.passable | generated.intersection(checked)
        self.passed |= generated - returned
        self.returned |= returned
        return max((self.messages[slot] + (slot in returned) for slot in generated), default=0)


def plan_messages(catalog: Catalog, tree: Tree) -> Messages:
    """
    Distribute steps over as few messages as possible: at most one for each level of the tree.

    PostgreSQL itself passes a value generated for a single row to later statements of the same message. Steps
    have to wait for another message if they need the values of several rows, or values that are checked before
    a row is written: not null, equal to another one, or validated by a model.
    """
    root = tree.root_step
    before = tree.steps[:-1] if tree.root_answers else tree.steps
    # What the statement needs that returns the result.
    needed = tree.key, [slot for row in root.text_slots for slot in row]
    used, checked = root.needed if tree.root_answers else needed
    values = _Generated()
    placed: list[tuple[int, TreeStep]] = []
    read: list[tuple[int, TreeStep]] = []
    for whole in before:
        for step in whole.parts(catalog) if isinstance(whole, NewRows) else (whole,):
            message = values.first_message(*step.needed)
            if isinstance(step, LinkedRow):
                # After its lookup, which detects a row that is linked twice.
                message = max(message, 1)
                if step.row is not None:
                    read.append((message - 1, step.row))
                    values.returned.update(*step.row.filled)
            elif isinstance(step, LinkedKey) and step.parent:
                values.returned.update(*step.filled)
            values.messages |= {slot: message for slots in step.filled for slot in slots}
            values.passable.update(step.passable)
            placed.append((message, step))
    last = values.first_message(used, checked)
    # A row that a model validates is read after all earlier writes.
    placed = sorted([*placed, *read], key=itemgetter(0))
    found = list[tuple[TreeStep, ...]]()
    for (_, alone), group in groupby(placed, lambda each: (each[0], each[1].needs_own_message)):
        steps = tuple(step for _, step in group)
        found += [(step,) for step in steps] if alone else [steps]
    if not placed or last > placed[-1][0] or placed[-1][1].needs_own_message:
        found.append(())
    return Messages(tuple(found), frozenset(values.passed), frozenset(values.returned))
