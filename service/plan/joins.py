"""
Relationships between relations: which one an embed or a filter means, and by which of them rows can be nested
in new rows; and computed columns.

Relations are related by foreign keys in either direction, through junctions, and by functions of a row. A
function of a row that returns one value is a computed column.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, NoReturn

from service.catalog import (
    NOWHERE,
    Catalog,
    Column,
    ForeignKey,
    Function,
    Relation,
    cached_per_catalog,
)
from service.datatypes import DOCUMENTS
from service.errors import InvalidArgument, UnknownName
from service.request.call_request import signature
from service.request.names import encode
from service.request.requests import Embed, Reference
from service.request.select_list import quoted_item

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Junction:
    """
    A relation that relates two others.

    Args:
        relation: The junction, with a foreign key to each.
        outer_pairs: Pairs of columns of the first relation and of the junction.
        related_pairs: Pairs of columns of the junction and of the second relation.
    """

    relation: Relation
    outer_pairs: Pairs
    related_pairs: Pairs


@dataclass(frozen=True, slots=True)
class Join:
    """
    A relationship from a relation to another.

    Args:
        target: The other relation.
        many: Whether a row can have several related rows.
        pairs: Pairs of columns that must be equal; empty with a junction.
        junction: The junction, if any.
        names: Names that `via` accepts, preferred ones first, each with a rank: if several
            relationships have a name, it means the one with the lowest rank.
        embed_names: Names that an embed accepts for it, beside the target's name.
        function: The function of the row that returns the related rows, if any.
        label: The one of the names that no other relationship to the target has.
    """

    target: Relation
    many: bool
    pairs: Pairs
    junction: Junction | None
    names: Mapping[str, int]
    embed_names: frozenset[str]
    function: Function | None = None
    label: str = ""


def related(catalog: Catalog, relation: Relation, embed: Embed) -> Join:
    """
    Return the relationship that an embed means.

    Raises:
        InvalidArgument: There is none, or more than one, listed in `candidates`.
    """
    known = relationships(catalog, relation)
    name, via = _name_and_via(known, embed)
    fitting = [each for each in known if _fits(each, embed, name, via)]
    if not fitting:
        raise _unknown(relation, known, embed, name)
    found = _preferred(fitting, name) if via is None else closest_named(fitting, via)
    found = [each for each in found if _is_served_as(catalog, each.target, name)] or found
    if len(found) > 1:
        targets = sorted({each.target.name for each in found})
        raise InvalidArgument(
            f'"{relation.name}" and "{targets[0]}" are related in several ways',
            path=embed.path,
            hint=f'name one, as in "{name[:80]}!{label_of(found[0], fitting)}", or with "via"',
            candidates=sorted(label_of(each, fitting) for each in fitting),
        )
    return found[0]


def is_related(catalog: Catalog, relation: Relation, embed: Embed) -> bool:
    """Return whether the name of an embed is a relationship's."""
    known = relationships(catalog, relation)
    name, _ = _name_and_via(known, embed)
    return any(_is_named(each, name) for each in known)


def relationships(catalog: Catalog, relation: Relation) -> tuple[Join, ...]:
    """Return all relationships of a relation."""
    # Groups and the like have none; they are not cached, because each call has other ones.
    return () if relation.schema == NOWHERE else _relationships(catalog, relation)


def label_of(join: Join, joins: Sequence[Join]) -> str:
    """Return the first name that means `join` and no other of `joins`, in quotes if necessary."""
    names = [*join.names]
    label = next((name for name in names if closest_named(joins, name) == [join]), names[-1])
    if any(mark in label for mark in (":", ".", "->", '"')):
        label = '"' + label.replace('"', '""') + '"'
    return label


def closest_named(joins: Sequence[Join], via: str) -> list[Join]:
    """Return those of `joins` that a name means: those of the lowest rank."""
    named = [join for join in joins if via in join.names]
    closest = min((join.names[via] for join in named), default=0)
    return [join for join in named if join.names[via] == closest]


def has_row_functions(catalog: Catalog, relation: Relation) -> bool:
    """Return whether functions take rows of a relation."""
    return (relation.schema, relation.name) in _by_row(catalog)


def computed_relationships(
    catalog: Catalog, relation: Relation
) -> Iterator[tuple[Function, Relation]]:
    """Yield the functions of a relation's row that return rows of a served relation, with that relation."""
    for function in row_functions(catalog, relation):
        target = returned_relation(catalog, function)
        if target is not None and len(function.inputs) == 1:
            yield function, keyless(catalog, target)


def returned_relation(catalog: Catalog, function: Function) -> Relation | None:
    """Return the served relation whose rows a function returns, also as a domain; None if there is none."""
    if function.procedure or function.outputs:
        return None
    result = catalog.plain(catalog.type(function.result))
    if result.kind != "composite":
        return None
    return catalog.relations.get((result.schema, result.name))


@cached_per_catalog
def keyless(_: Catalog, relation: Relation) -> Relation:
    """
    Return a relation without its keys, for the rows of a function.

    A function may return a row twice, so that no key identifies it, and has an order of its own.
    """
    return replace(relation, primary_key=(), unique_keys=())


def _name_and_via(known: Sequence[Join], embed: Embed) -> tuple[str, str | None]:
    """Return the name of an embed's relation, and its `via`, which may follow the name after a "!"."""
    name, via = embed.relation or embed.name, embed.via
    # A name may contain "!" itself: try the entire text first, then the part before each "!".
    marks = [at for at, character in enumerate(name) if character == "!" and via is None]
    if marks and not any(_is_named(join, name) for join in known):
        ends = [at for at in marks if any(_is_named(join, name[:at]) for join in known)]
        end = (ends or marks)[0]
        name, via = name[:end], name[end + 1 :]
    if via is not None and len(via) > 1 and via[0] == via[-1] == '"':
        via = via[1:-1].replace('""', '"')
    return name, via


def _preferred(found: Sequence[Join], name: str) -> Sequence[Join]:
    """Return the relationships that a name prefers, if it means several."""
    # A relationship's own name takes precedence over the name of the target,
    found = [each for each in found if name in each.embed_names] or found
    if any(each.junction and each.junction.relation.kind == "table" for each in found):
        # and a junction table over views of it.
        found = [
            each
            for each in found
            if each.junction is None or each.junction.relation.kind == "table"
        ]
    return found


def _fits(join: Join, embed: Embed, name: str, via: str | None) -> bool:
    if embed.direction not in (None, _direction(join)):
        return False
    if via is None:  # a function is meant only by its own name, never by the target's
        return name in join.embed_names if join.function else _is_named(join, name)
    free = join.function is not None and embed.via is not None and embed.relation is None
    return via in join.names and (free or _is_named(join, name))


def _is_named(join: Join, name: str) -> bool:
    return name in join.embed_names or _is_called(join.target, name)


def _direction(join: Join) -> str:
    return "many" if join.many else "one"


def _is_called(relation: Relation, name: str) -> bool:
    """Return whether a name is a relation's, plain or as in URIs and in `describe`."""
    schema, coded = encode(relation.schema), encode(relation.name)
    plain = (relation.name, f"{relation.schema}.{relation.name}")
    return name in (*plain, coded, f"{schema}.{coded}")


def _is_served_as(catalog: Catalog, relation: Relation, name: str) -> bool:
    """Return whether a name is the one in the URIs of a relation's procedures."""
    coded = encode(relation.name)
    short = relation.schema == catalog.schemas[0] and name == coded
    return short or name == f"{encode(relation.schema)}.{coded}"


def _unknown(relation: Relation, known: Sequence[Join], embed: Embed, name: str) -> InvalidArgument:
    named = [join for join in known if _is_named(join, name)]
    if named:
        facing = [join for join in named if embed.direction in (None, _direction(join))]
        return InvalidArgument(
            f'"{relation.name}" has no such relationship to "{name[:80]}"',
            path=embed.path,
            candidates=sorted(label_of(join, facing or named) for join in facing or named),
        )
    names = sorted(
        {join.target.name for join in known} | {n for join in known for n in join.embed_names}
    )
    hint = None
    dotted = next((each for each in relation.columns if each.startswith(f"{name}.")), None)
    if name in relation.columns:
        descending = f'descending is "-{name}", ' if "order" in embed.path.split(".") else ""
        hint = f'"{name}" is a column; {descending}a value in JSON is "{name}->key"'
    elif dotted is not None:
        hint = f"the column of that name is written {quoted_item(dotted)}, quotes and all"
    return UnknownName("relationship", name, names, f'relation "{relation.name}"', embed.path, hint)


@cached_per_catalog
def _relationships(catalog: Catalog, relation: Relation) -> tuple[Join, ...]:
    found: dict[Hashable, Join] = {}
    for join in (
        *_to_one(catalog, relation),
        *_from_many(catalog, relation),
        *_through_junctions(catalog, relation),
        *_computed(catalog, relation),
    ):
        same = _identity(join)
        found[same] = _merged(found[same], join) if same in found else join
    joins: dict[str, list[Join]] = {}
    for join in found.values():
        joins.setdefault(_full(join.target), []).append(join)
    return tuple(
        replace(join, label=label_of(join, joins[_full(join.target)])) for join in found.values()
    )


def _identity(join: Join) -> Hashable:
    """Return a key that is equal for relationships that join the same rows."""
    junction, function = join.junction, join.function
    if junction is not None:
        between = (
            _full(junction.relation),
            frozenset(junction.outer_pairs),
            frozenset(junction.related_pairs),
        )
        return _full(join.target), between
    return _full(join.target), frozenset(join.pairs), function.name if function else ""


def _merged(join: Join, other: Join) -> Join:
    return replace(
        join,
        many=join.many and other.many,
        names={**other.names, **join.names},
        embed_names=join.embed_names | other.embed_names,
    )


def _to_one(catalog: Catalog, relation: Relation) -> Iterator[Join]:
    for key in (*relation.foreign_keys, *relation.view_foreign_keys):
        target = catalog.relations.get(key.target)
        if target is not None:
            pairs = tuple(zip(key.columns, key.target_columns, strict=True))
            called = {key.name} if key.names_embeds else set()
            if key.names_embeds and len(key.columns) == 1:
                called |= {*key.columns}
            own = (key.name, *_columns(key.columns), _spelled(pairs))
            names = _ranked((0, own), (1, _columns(key.target_columns)))
            yield Join(target, False, pairs, None, names, frozenset(called))


def _from_many(catalog: Catalog, relation: Relation) -> Iterator[Join]:
    for other, key in catalog.referrers.get((relation.schema, relation.name), ()):
        pairs = tuple(zip(key.target_columns, key.columns, strict=True))
        columns = (*_columns(key.columns), *_columns(key.target_columns))
        names = _ranked((0, (key.name,)), (1, columns), (0, (_spelled(pairs),)))
        many = not other.refers_once(key)
        yield Join(other, many, pairs, None, names, frozenset())


def _through_junctions(catalog: Catalog, relation: Relation) -> Iterator[Join]:
    for middle, own_key in catalog.referrers.get((relation.schema, relation.name), ()):
        for target_key in (*middle.foreign_keys, *middle.view_foreign_keys):
            target = catalog.relations.get(target_key.target)
            # A key to a table is one to each view of it, too: through it, a row would be related to itself.
            if (
                target is None
                or _is_same_constraint(own_key, target_key)
                or not _is_junction(middle, own_key, target_key)
            ):
                continue
            junction = Junction(
                middle,
                tuple(zip(own_key.target_columns, own_key.columns, strict=True)),
                tuple(zip(target_key.columns, target_key.target_columns, strict=True)),
            )
            names = _names_through(middle, own_key, target_key, junction)
            yield Join(target, True, (), junction, names, frozenset())


def _computed(catalog: Catalog, relation: Relation) -> Iterator[Join]:
    found = {
        each.name: (each, target) for each, target in computed_relationships(catalog, relation)
    }
    for name, (function, target) in found.items():
        many = function.many and not function.single
        names = _ranked((0, (name, f"{function.schema}.{name}")))
        yield Join(target, many, (), None, names, frozenset({name}), function)


def _names_through(
    middle: Relation, own_key: ForeignKey, target_key: ForeignKey, junction: Junction
) -> Mapping[str, int]:
    """Return the names of a relationship through a junction: of the junction, its keys, and both keys."""
    last, first = (
        (target_key.name, *_columns(target_key.columns)),
        (own_key.name, *_columns(own_key.columns)),
    )
    keys = f"{own_key.name}!{target_key.name}"
    columns = f"{','.join(own_key.columns)}!{','.join(target_key.columns)}"
    full = f"{_spelled(junction.outer_pairs)}!{_spelled(junction.related_pairs)}"
    rank = 2 if middle.kind == "table" else 4  # a view has the keys of its table, which comes first
    return _ranked(
        (2, (middle.name,)),
        (rank, last),
        (rank + 1, first),
        (rank, (keys, columns)),
        (2, (f"{middle.name}!{each}" for each in (target_key.name, keys, columns))),
        (2, (_full(middle), f"{_full(middle)}!{full}")),
    )


def _ranked(*names: tuple[int, Iterable[str]]) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for rank, each in names:
        for name in each:
            found.setdefault(name, rank)
    return found


def _columns(columns: Sequence[str]) -> tuple[str, ...]:
    return (*columns, ",".join(columns))


def _spelled(pairs: Pairs) -> str:
    return ",".join(f"{left}={right}" for left, right in pairs)


def _full(relation: Relation) -> str:
    return f"{relation.schema}.{relation.name}"


def _is_same_constraint(key: ForeignKey, other: ForeignKey) -> bool:
    """Return whether both are the same constraint, which refers to a table and to each view of it."""
    return (key.name, key.columns) == (other.name, other.columns)


def _is_junction(middle: Relation, own_key: ForeignKey, target_key: ForeignKey) -> bool:
    """Return whether a relation is a junction: a unique key of it holds both foreign keys."""
    both = {*own_key.columns, *target_key.columns}
    keys = [*(unique.columns for unique in middle.unique_keys), *middle.view_keys]
    return any(both <= set(key) for key in keys)


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
        join = related(catalog, relation, Embed(name, name))
        found = nested_by(relation, join)
    except InvalidArgument:  # several relationships have the name
        found = None
    if found is None:
        return "each relation has its own verbs"
    target, key = join.target.name, found.key
    if join.junction is not None:
        middle = join.junction.relation.name
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


class Nesting(NamedTuple):
    """
    How rows are nested in others by a relationship.

    Args:
        key: The foreign key; None through a junction.
        refers: Whether the outer rows have it, rather than the nested ones.
    """

    key: ForeignKey | None
    refers: bool


def nested_by(relation: Relation, join: Join) -> Nesting | None:
    """Return how rows are nested by a relationship: by foreign keys of tables; None if they cannot be."""
    junction, target = join.junction, join.target
    if junction is not None:
        middle = junction.relation
        own_key = _foreign_key(middle, relation, _swapped(junction.outer_pairs))
        target_key = _foreign_key(middle, target, junction.related_pairs)
        return None if own_key is None or target_key is None else Nesting(None, False)
    if join.function is not None:
        return None
    key = _foreign_key(relation, target, join.pairs)
    if key is not None:
        return Nesting(key, True)
    key = _foreign_key(target, relation, _swapped(join.pairs))
    return None if key is None else Nesting(key, False)


def _foreign_key(
    relation: Relation, target: Relation, pairs: Sequence[tuple[str, str]]
) -> ForeignKey | None:
    """Return the foreign key of a table with these pairs of columns; None if there is none."""
    home, wanted = (target.schema, target.name), frozenset(pairs)
    for key in relation.foreign_keys:
        if key.target == home and wanted == {*zip(key.columns, key.target_columns, strict=True)}:
            return key
    return None


def _swapped(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(right, left) for left, right in pairs]


def row_functions(catalog: Catalog, relation: Relation) -> list[Function]:
    """
    Return the functions whose first argument is a row of the relation.

    Functions in the relation's schema come last, so that they replace others of the same name in a dict.
    A role that may not read all columns has none: PostgreSQL does not let it pass the entire row.
    """
    if not relation.readable:
        return []
    found = _by_row(catalog).get((relation.schema, relation.name), [])
    return sorted(found, key=lambda function: function.schema == relation.schema)


@cached_per_catalog
def _by_row(catalog: Catalog) -> Mapping[tuple[str, str], list[Function]]:
    found: dict[tuple[str, str], list[Function]] = {}
    for function in (each for overloads in catalog.functions.values() for each in overloads):
        if function.procedure or function.outputs or not function.inputs:
            continue
        row = catalog.type(function.inputs[0].type)
        if row.kind == "composite" and (row.schema, row.name) in catalog.relations:
            found.setdefault((row.schema, row.name), []).append(function)
    return found


UNANSWERED = frozenset([2249, 2278])
"""The oids of `record` and `void`, which cannot be the type of a column."""


@dataclass(frozen=True, slots=True)
class ComputedColumn:
    """A column whose value a function computes from the row and optional further arguments."""

    function: Function
    column: Column

    @property
    def required(self) -> frozenset[str]:
        """Names of the required arguments, the row excluded."""
        return frozenset(each.name for each in self.function.inputs[1:] if not each.has_default)

    @property
    def names(self) -> frozenset[str]:
        """Names of all arguments, the row excluded."""
        return frozenset(each.name for each in self.function.inputs[1:] if each.name)


def computed_columns(
    catalog: Catalog, relation: Relation
) -> Mapping[str, tuple[ComputedColumn, ...]]:
    """Return the computed columns of a relation, overloads by name."""
    if not has_row_functions(catalog, relation):
        return {}  # not cached: groups, for example, are another relation in each call
    return _computed_columns(catalog, relation)


def resolve_computed(
    catalog: Catalog, overloads: tuple[ComputedColumn, ...], reference: Reference
) -> ComputedColumn:
    """
    Return the computed column that a name with its arguments means.

    As in a call of a function, it is the overload that takes these names and uses the fewest defaults.

    Raises:
        InvalidArgument: No overload takes these arguments, or several do; `candidates` names them.
    """
    given = {name for name, _ in reference.args}
    fitting = [each for each in overloads if each.required <= given <= each.names]
    if not fitting:
        raise _misfit(catalog, overloads, reference)
    fewest = min(len(each.names) for each in fitting)
    found = [each for each in fitting if len(each.names) == fewest]
    # Among equal ones, that of the relation's schema wins; row_functions returns it last.
    closest = [each for each in found if each.function.schema == found[-1].function.schema]
    if len(closest) > 1:
        raise InvalidArgument(
            f'several functions "{reference.name}" take these arguments',
            path=reference.path,
            candidates=[signature(each.function, catalog) for each in closest],
        )
    return closest[0]


def _misfit(
    catalog: Catalog, overloads: tuple[ComputedColumn, ...], reference: Reference
) -> InvalidArgument:
    signatures = [signature(each.function, catalog) for each in overloads[:5]]
    hint = f"it is {' or '.join(signatures)}"
    known = frozenset().union(*(each.names for each in overloads))
    for name, operand in reference.args:
        if name not in known:
            of = f'computed column "{reference.name}"'
            found = UnknownName("argument", name, sorted(known), of, operand.path)
            found.details.setdefault("hint", hint)
            return found
    if len(overloads) > 1:
        return InvalidArgument(
            f'no function "{reference.name}" takes these arguments',
            path=reference.path,
            candidates=signatures,
        )
    missing = min(overloads[0].required - {name for name, _ in reference.args})
    return InvalidArgument(
        f'the argument "{missing}" of "{reference.name}" is missing',
        path=reference.path,
        hint=f'{hint}, as in {{"column": "{reference.name}", "args": {{"{missing}": …}}}}',
    )


@cached_per_catalog
def _computed_columns(
    catalog: Catalog, relation: Relation
) -> Mapping[str, tuple[ComputedColumn, ...]]:
    found: dict[str, tuple[ComputedColumn, ...]] = {}
    for function in row_functions(catalog, relation):
        if (
            not function.many
            and function.result not in UNANSWERED
            and returned_relation(catalog, function) is None
            and function.name not in relation.columns
            and _can_be_given(catalog, function)
        ):
            computed = ComputedColumn(function, _column(catalog, function))
            found[function.name] = (*found.get(function.name, ()), computed)
    return found


def _can_be_given(catalog: Catalog, function: Function) -> bool:
    """Return whether a call can give all arguments beside the row: each is typed, and named or optional."""
    return all(
        (each.name or each.has_default)
        and each.mode != "variadic"
        and catalog.type(each.type).kind != "pseudo"
        for each in function.inputs[1:]
    )


def _column(catalog: Catalog, function: Function) -> Column:
    type = catalog.type(function.result)
    return Column(
        function.name,
        function.result,
        type.sql,
        comment=function.comment,
        insertable=False,
        updatable=False,
    )
