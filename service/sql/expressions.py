"""
Values and conditions of a plan as SQL, the clauses that consist of them, and new values of columns, some of
which are computed from the values of the existing row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from service.catalog import Function, Relation, Type
from service.plan.plans import (
    PG_CATALOG,
    Applied,
    Bound,
    CaseValue,
    Compare,
    Computed,
    Condition,
    Distance,
    Equals,
    Exists,
    Expression,
    IsTest,
    Link,
    Not,
    NotNullRow,
    Operator,
    Output,
    Part,
    PathStep,
    PlannedArgument,
    PlannedMeasure,
    Search,
    SortKey,
    TextRank,
    ValuesColumn,
)
from service.sql.statement import (
    AND,
    COMMA,
    EMPTY,
    Mark,
    Parameter,
    catalog_sql,
    doubled,
    quoted,
)

AS = SQL(" AS ")  # composed, not formatted as a template, because each column of a list has it
NAME = "t"
"""Alias of the relation that a statement reads or writes."""


def expression(value: Expression) -> Composable:
    """Build a value of the row, or, by a subselect, of the one related row that its links lead to."""
    if value.links:
        first, *others = value.links
        related = replace(value, source=first.source, links=tuple(others))
        # Without the limit, a second related row would be an error (21000).
        return SQL("(SELECT {value} FROM {related} LIMIT 1)").format(
            value=expression(related), related=related_rows(first, first.where)
        )
    column: Composable = Identifier(value.source, value.column.name)
    if value.measure is not None:
        column = measure_value(value.measure)
    elif value.function is not None:
        column = _row_function(value.function, value.source, value.row, value.arguments)
    if value.steps:
        template = (
            "(pg_catalog.to_jsonb({document}){steps})" if value.as_json else "({document}{steps})"
        )
        column = SQL(template).format(
            document=column,
            steps=Composed(
                SQL(f" OPERATOR(pg_catalog.{'->>' if step.text else '->'}) {{key}}").format(
                    key=Parameter(step.key)
                )
                for step in value.steps
            ),
        )
    mark = Mark(value.path, value.column.name, cast=True)
    for each in value.applied:
        if isinstance(each, Type):
            column = Composed([mark, cast(column, each.sql)])
        elif isinstance(each, TextRank):
            column = _ranked(each, column)
        elif isinstance(each, Distance):
            hint = f"{value.column.declared} may have no distance here"
            column = SQL("({value} {mark}{operator} {other})").format(
                value=column,
                mark=Mark(each.other.path, value.column.name, hint),
                operator=operator(each.operator),
                other=Parameter(each.other),
            )
        else:
            column = _applied(each, column)
    return column


def _ranked(rank: TextRank, value: Composable) -> Composable:
    vector, query = _text_search(value, rank, "websearch_to_tsquery")
    return SQL("pg_catalog.ts_rank({}, {})").format(vector, query)


def _text_search(
    value: Composable, test: TextRank | Search, function: str
) -> tuple[Composable, Composable]:
    """Build the two sides of a text search: the value as tsvector, and the query by `function`."""
    config = SQL("{}, ").format(Parameter(test.config)) if test.config else EMPTY
    if test.vector:
        value = SQL("pg_catalog.to_tsvector({config}{value})").format(config=config, value=value)
    return value, SQL("pg_catalog.{function}({config}{query})").format(
        function=SQL(function), config=config, query=Parameter(test.query)
    )


def _applied(call: Applied, value: Composable) -> Composable:
    unit = [Literal(call.unit)] if call.unit else []
    zone: list[Composable] = []
    if call.zone:
        zone.append(Parameter(call.bound) if call.bound else Literal(call.zone))
    arguments = COMMA.join([*unit, value, *zone])
    return SQL(f"pg_catalog.{call.function}({{arguments}})").format(arguments=arguments)


_FOR = {
    **dict.fromkeys(("sum", "avg", "stddev", "variance", "percentile_cont"), "numeric"),
    **dict.fromkeys(("bool_and", "bool_or"), "boolean"),
}
"""Types that aggregate functions take, for the hint of an error; text is that of all others."""


def measure_value(measure: PlannedMeasure) -> Composable:
    """Build an aggregate, as `CAST(f(DISTINCT x, ',') FILTER (WHERE …) AS type)`."""
    column = measure.operand.column.name if measure.operand else ""
    hint = f'a cast may help, as in "column::{_FOR.get(measure.function, "text")}"'
    separator = EMPTY
    if measure.separator is not None:
        bytes_ = measure.operand is not None and measure.operand.type.form == "binary"
        # string_agg of bytea takes its separator as bytea.
        template = ", pg_catalog.convert_to({}, 'UTF8')" if bytes_ else ", {}"
        separator = SQL(template).format(Parameter(measure.separator))
    where = EMPTY
    if measure.where is not None:
        where = SQL(" FILTER (WHERE {})").format(condition(measure.where))
    operand = expression(measure.operand) if measure.operand else SQL("*")
    template = "{mark}{function}({distinct}{operand}{separator}{order}){where}"
    if measure.within:
        template = "{mark}{function}({fraction}) WITHIN GROUP (ORDER BY {operand}){where}"
    value: Composable = SQL(template).format(
        mark=Mark(measure.path, column, hint),
        function=SQL(f"{schema_sql(measure.schema)}.{measure.function}"),
        distinct=SQL("DISTINCT " if measure.distinct and measure.operand else ""),
        operand=operand,
        separator=separator,
        fraction=Parameter(measure.fraction) if measure.fraction else EMPTY,
        order=order_by(measure.order),
        where=where,
    )
    if measure.cast:
        type, path = measure.cast
        value = Composed([Mark(path, column, cast=True), cast(value, type.sql)])
    return value


def parameter(value: Bound | Expression) -> Composable:
    """Build the right side of a comparison: a parameter, or another value of the row."""
    return Parameter(value) if isinstance(value, Bound) else expression(value)


def condition(where: Condition) -> Composable:
    """Build a condition, in parentheses where precedence requires them."""
    if isinstance(where, Compare):
        return _compare(where)
    if isinstance(where, IsTest):
        return SQL(f"{{value}} IS {where.word}").format(value=expression(where.left))
    if isinstance(where, Search):
        return _search(where)
    if isinstance(where, Exists):
        related = related_rows(where.link, where.condition)
        return SQL("EXISTS (SELECT 1 FROM {related})").format(related=related)
    if isinstance(where, NotNullRow):
        return _is_present(where.source)
    if isinstance(where, Not):
        return SQL("NOT ({condition})").format(condition=condition(where.condition))
    if not where.conditions:
        return SQL("false" if where.any else "true")
    terms = SQL(" OR " if where.any else " AND ").join(map(condition, where.conditions))
    return SQL("({terms})").format(terms=terms)


def where_clause(where: Condition | None) -> Composable:
    """Build a WHERE clause, or nothing."""
    return EMPTY if where is None else SQL(" WHERE {where}").format(where=condition(where))


def order_by(keys: Sequence[SortKey], last: Composable | None = None) -> Composable:
    """Build an ORDER BY clause, or nothing; `last` is a further key behind the others."""
    found = [*map(_sort_key, keys), *([last] if last else [])]
    return SQL(" ORDER BY {keys}").format(keys=COMMA.join(found)) if found else EMPTY


def limit_offset(limit: Bound | None, offset: Bound | None) -> Composable:
    """Build LIMIT and OFFSET clauses, or nothing."""
    return Composed(
        SQL(template).format(Parameter(bound))
        for template, bound in ((" LIMIT {}", limit), (" OFFSET {}", offset))
        if bound is not None
    )


def aliased(values: Iterable[tuple[Composable, str]]) -> Composable:
    """Build a select list of values with their aliases."""
    return COMMA.join(Composed([value, AS, Identifier(name)]) for value, name in values)


def output_list(outputs: Iterable[Output]) -> Composable:
    """Build a select list of outputs."""
    return aliased((expression(output.expression), output.name) for output in outputs)


def relation_name(relation: Relation) -> Identifier:
    """Build the qualified name of a relation."""
    return Identifier(relation.schema, relation.name)


def cast(value: Composable, type: str) -> Composable:
    """Build a value cast to a type, whose name is formatted by PostgreSQL."""
    return SQL("CAST({value} AS {type})").format(value=value, type=catalog_sql(type))


def operator(found: Operator) -> Composable:
    """Build a qualified operator."""
    # For an unqualified one PostgreSQL prefers exact types over the order of the search_path: a role that
    # may create operators in a served schema could run code with the rights of every caller.
    return SQL(f"OPERATOR({schema_sql(found.schema)}.{found.name})")


def schema_sql(schema: str) -> str:
    """Return a schema as the qualifier of a name."""
    return schema if schema == PG_CATALOG else doubled(quoted(schema))


def compared(
    left: Composable, found: Operator, right: Composable, mark: Composable = EMPTY
) -> Composable:
    """Build `left operator right`, with a mark in front of the operator."""
    return SQL("{left} {mark}{operator} {right}").format(
        left=left, mark=mark, operator=operator(found), right=right
    )


def all_equal(
    pairs: Iterable[tuple[Composable, Operator, Composable]], nulls: bool = False
) -> Composable:
    """Build the condition that the values of each pair are equal; with `nulls`, two nulls are equal too."""
    return AND.join(not_distinct(*pair) if nulls else compared(*pair) for pair in pairs)


def not_distinct(
    left: Composable, equal: Operator, right: Composable, mark: Composable = EMPTY
) -> Composable:
    """
    Build the condition that two values are equal or both null.

    IS NOT DISTINCT FROM looks its operator up in the search_path, and cannot be given a qualified one.
    """
    return SQL(
        "coalesce({left} {mark}{equal} {right},"
        " pg_catalog.num_nulls({left}, {right}) OPERATOR(pg_catalog.=) 2)"
    ).format(left=left, mark=mark, equal=operator(equal), right=right)


def related_rows(
    link: Link, where: Condition | None = None, joins: Composable = EMPTY
) -> Composable:
    """
    Build the FROM item of related rows, with its WHERE clause.

    Args:
        link: Link from a row to its related rows.
        where: Further condition on the related rows.
        joins: Joins behind the related rows.
    """
    pairs, other, junction = link.pairs, link.source, EMPTY
    if link.junction is not None:
        pairs, other = link.junction.outer_pairs, link.junction.source
        junction = SQL(" JOIN {relation} AS {alias} ON {pairs}").format(
            relation=relation_name(link.junction.relation),
            alias=Identifier(link.junction.source),
            pairs=_joined_on(link.junction.source, link.source, link.junction.related_pairs),
        )
    conditions = [_joined_on(link.outer, other, pairs)] if pairs else []
    rows: Composable = relation_name(link.relation)
    if link.function is not None:
        rows = _row_function(link.function, link.outer, link.row)
        # A function of one row returns NULL if it finds none, which FROM makes a row of nulls.
        if not pairs and not link.function.many:
            conditions.append(_is_present(link.source))
    if where is not None:
        conditions.append(condition(where))
    return SQL("{rows} AS {alias}{junction}{joins}{where}").format(
        rows=rows,
        alias=Identifier(link.source),
        junction=junction,
        joins=joins,
        where=SQL(" WHERE {}").format(AND.join(conditions)) if conditions else EMPTY,
    )


def json_value(value: Composable, type: Type) -> Composable:
    """Build a value such that PostgreSQL's JSON of it is that of the answer."""
    template = "{value}"
    if type.form == "binary":
        # encode() inserts a newline after each 76 characters.
        template = "pg_catalog.translate(pg_catalog.encode({value}, 'base64'), E'\\n', '')"
    elif type.schema == PG_CATALOG and type.name in ("timestamptz", "_timestamptz"):
        template = (
            "CAST(pg_catalog.replace(CAST(pg_catalog.to_json({value}) AS text), '+00:00', 'Z')"
            " AS json)"
        )
    elif type.schema == PG_CATALOG and type.name in ("oid", "_oid"):
        # to_json writes an oid as a string.
        template = "CAST({value} AS int8[])" if type.name == "_oid" else "CAST({value} AS int8)"
    return SQL(template).format(value=value)


def json_text(value: Composable, type: Type) -> Composable:
    """Build the JSON text of a value; of NULL it is 'null'."""
    return SQL("coalesce(CAST(pg_catalog.to_json({value}) AS text), 'null')").format(
        value=json_value(value, type)
    )


def _is_present(source: str) -> Composable:
    """Build the condition that a function of one row has returned a row, rather than nulls."""
    # NOT (… IS NULL), because IS NOT NULL is true only if no column of the row is null.
    return SQL("NOT ({row}.* IS NULL)").format(row=Identifier(source))


def _joined_on(left: str, right: str, pairs: Equals) -> Composable:
    """Build the condition of a join of two aliases."""
    return all_equal(
        (Identifier(left, one), equal, Identifier(right, other)) for one, other, equal in pairs
    )


def _row_function(
    function: Function, source: str, row: str, arguments: Sequence[PlannedArgument] = ()
) -> Composable:
    """Build a call of a function whose argument is a row, or the column `row` of a composite type."""
    # "t".* because "t" would be taken for a column of that name if there is one.
    return SQL("{function}({row}{rest})" if row else "{function}({row}.*{rest})").format(
        function=Identifier(function.schema, function.name),
        row=Identifier(source, row) if row else Identifier(source),
        rest=Composed(Composed([COMMA, argument(each)]) for each in arguments),
    )


def argument(given: PlannedArgument) -> Composable:
    """Build an argument of a function."""
    template = "{name} => {value}" if given.name else "{value}"
    return SQL(f"VARIADIC {template}" if given.variadic else template).format(
        name=Identifier(given.name),
        value=Parameter(given.value) if given.value else SQL("NULL"),
    )


def _compare(test: Compare) -> Composable:
    left, right = expression(test.left), parameter(test.right)
    if test.not_distinct:
        return not_distinct(left, test.operator, right, _mark_between(test))
    if test.quantifier:
        right = SQL(f"{test.quantifier.upper()} ({{candidates}})").format(
            candidates=_candidates(test, right)
        )
    return compared(left, test.operator, right, _mark_between(test))


def _mark_between(test: Compare) -> Composable:
    """Build the mark in front of an operator that may not exist for the types of two columns."""
    if isinstance(test.right, Bound):
        return EMPTY
    name = test.right.column.name
    return Mark(test.right.path, name, 'a cast may help, as in {"$column": "name::text"}')


def _candidates(test: Compare, array: Composable) -> Composable:
    # With a null in the array, <> ALL would never be true; null is tested in a condition of its own.
    present = SQL(" WHERE c IS NOT NULL" if test.nulls else "")
    # PostgreSQL has no arrays of arrays, so candidates that are arrays are sent as text.
    if test.candidate is not None:
        return SQL("SELECT {value} FROM pg_catalog.unnest({array}) AS c{present}").format(
            value=cast(SQL("c"), test.candidate.sql), array=array, present=present
        )
    if test.nulls:  # an array that is built once, so that an index can be used
        return SQL("ARRAY(SELECT c FROM pg_catalog.unnest({array}) AS c{present})").format(
            array=array, present=present
        )
    return array


def _search(test: Search) -> Composable:
    vector, query = _text_search(expression(test.left), test, test.function)
    return SQL("{} OPERATOR(pg_catalog.@@) {}").format(vector, query)


def _sort_key(key: SortKey) -> Composable:
    # With DISTINCT, sort keys must be in the select list; a key with a parameter is given by position,
    # because PostgreSQL takes a parameter that occurs twice for two different values.
    value = SQL(f"{key.position}") if key.position else expression(key.expression)
    # PostgreSQL's default is NULLS LAST for ASC, and NULLS FIRST for DESC.
    nulls = f" NULLS {key.nulls.upper()}" if (key.nulls == "first") != key.descending else ""
    return SQL(f"{{value}}{' DESC' if key.descending else ''}{nulls}").format(value=value)


GIVEN = "p"
"""Alias of the source that an update is joined to: the rows picked by a query, or given in the call."""

JSON_KIND = "coalesce(pg_catalog.jsonb_typeof({value}), 'null')"
IS_NULL = f"{JSON_KIND} OPERATOR(pg_catalog.=) 'null'"
REFUSALS = {
    "object": "pg_catalog.to_jsonb(ARRAY(SELECT pg_catalog.jsonb_object_keys({value})))",
    "array": "pg_catalog.to_jsonb(pg_catalog.jsonb_array_length({value}))",
}
"""
By kind, an expression that fails for JSON of another kind, with an error that says so.

`||` would not fail: it makes arrays of operands that do not match.
"""
NULL_STAYS = frozenset(["add", "multiply", "remove"])
"""Operations whose result is null if the value is null."""


def new_value(value: Bound | Computed | ValuesColumn | CaseValue | None) -> Composable:
    """Build the new value of a column of the row "t"."""
    if value is None:
        return SQL("DEFAULT")
    if isinstance(value, Computed):
        return computed_value(value)
    if isinstance(value, CaseValue):
        # An UPDATE has one SET for a column, although each row may change it in its own way. A value of the
        # row selects the way, so that the text grows with the number of ways, not of rows.
        ways = [
            SQL("WHEN {selector} OPERATOR(pg_catalog.=) {number} THEN {value}").format(
                selector=_operand(value.selector), number=SQL(f"{at:d}"), value=new_value(each)
            )
            for at, each in enumerate(value.ways, 1)
        ]
        return SQL("CASE {ways} ELSE {old} END").format(
            ways=SQL(" ").join(ways), old=Identifier(NAME, value.column.name)
        )
    return _operand(value)


def _operand(value: Bound | ValuesColumn) -> Composable:
    return Parameter(value) if isinstance(value, Bound) else Identifier(GIVEN, value.name)


def computed_value(value: Computed) -> Composable:
    """Build a value that is computed from the column of the row "t"."""
    found: Composable = Identifier(NAME, value.column.name)
    if value.document and (value.type.name == "json" or value.column.type != value.type.oid):
        found = cast(found, "jsonb")
    for each in value.parts:
        made = _document(found, each, each.steps) if value.document else _plain(found, each)
        found = Composed([Mark(each.path, value.column.name, cast=True), made])
    return cast(found, "json") if value.type.name == "json" else found


def _plain(value: Composable, part: Part) -> Composable:
    """Build a computed number, time or array."""
    others = list(map(_operand, part.operands))
    if part.computing == "remove":
        for each in others:
            value = SQL("pg_catalog.array_remove({array}, {value})").format(array=value, value=each)
        return value
    if part.operator is not None:
        return SQL("{value} {operator} {other}").format(
            value=value, operator=operator(part.operator), other=others[0]
        )
    pair = [value, *others] if part.computing == "append" else [*others, value]
    return SQL("pg_catalog.array_cat({arrays})").format(arrays=COMMA.join(pair))


def _document(
    document: Composable, part: Part, steps: Sequence[PathStep], depth: int = 1
) -> Composable:
    """
    Build a jsonb document with a part of it changed.

    Each step of the path is a subselect, which names the document that it changes once, because changes of
    one column nest. OFFSET 0 keeps the planner from pulling the subselects up: it would repeat the
    document wherever its name stands, and eight paths would take more than four seconds.
    """
    if not steps and not part.computing:
        # For a NULL value, jsonb_set would return NULL in place of the document.
        return SQL("coalesce({value}, 'null')").format(value=_operand(part.operands[0]))
    value = Identifier(f"d{depth}", "v")
    if steps:
        first, *others = steps
        path = SQL("ARRAY[{key}]").format(key=Parameter(first.key))
        # #> takes a path: its "0" is a position in an array and a key of an object, as the data has it.
        current = SQL("{value} OPERATOR(pg_catalog.#>) {path}").format(value=value, path=path)
        null_stays = part.computing in NULL_STAYS
        body: Composable = SQL(
            "pg_catalog.jsonb_set({document}, {path}, coalesce({new}, 'null'){only})"
        ).format(
            document=value if null_stays else _filled(value, "[]" if first.index else "{}"),
            path=path,
            new=_document(current, part, others, depth + 1),
            only=SQL(", false") if null_stays else EMPTY,
        )
        if null_stays:
            body = SQL(f"CASE WHEN {IS_NULL} THEN {{value}} ELSE {{body}} END").format(
                value=value, body=body
            )
    else:
        body = _changed(value, part)
    return SQL('(SELECT {body} FROM (SELECT {document} AS "v" OFFSET 0) AS {source})').format(
        body=body, document=document, source=Identifier(f"d{depth}")
    )


def _changed(value: Composable, part: Part) -> Composable:
    """Build the result of an operation on a JSON value."""
    other = _operand(part.operands[0])
    if part.computing in NULL_STAYS:
        current: Composable = SQL(
            f"CASE WHEN {JSON_KIND} OPERATOR(pg_catalog.<>) 'null' THEN {{value}} END"
        ).format(value=value)
        if part.operator is None:
            return SQL("{current} OPERATOR(pg_catalog.-) {keys}").format(
                current=current, keys=other
            )
        return SQL("pg_catalog.to_jsonb({current} {operator} {other})").format(
            current=cast(current, "numeric"), operator=operator(part.operator), other=other
        )
    current = (
        _filled(value, "{}", "object")
        if part.computing == "merge"
        else _filled(value, "[]", "array")
    )
    pair = [other, current] if part.computing == "prepend" else [current, other]
    return SQL(" OPERATOR(pg_catalog.||) ").join(pair)


def _filled(value: Composable, empty: str, kind: str = "") -> Composable:
    """Build a JSON value, or an empty one if it is null; the SQL fails if it is not of a given kind."""
    otherwise = (
        f"WHEN {JSON_KIND} OPERATOR(pg_catalog.=) '{kind}' THEN {{value}} ELSE {REFUSALS[kind]}"
        if kind
        else "ELSE {value}"
    )
    template = f"CASE WHEN {IS_NULL} THEN {{empty}} {otherwise} END"
    return SQL(template).format(value=value, empty=Literal(empty))
