"""
Parse the arguments of the verbs that read: get, find, count, exists, aggregate, stream, export, watch,
describe.

The tokens `next` and `prev` are the bounds of a page. A token holds the sort keys of its last or first row
in PostgreSQL's text format, or an offset if the rows have no key, and a digest of the query, so that it is
not used with another query by mistake. It is neither secret nor signed: its contents are bound as
parameters, like all values of a call.
"""

from __future__ import annotations

import binascii
import json
import marshal
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

from service.errors import InvalidArgument, UnknownName, counted
from service.request.arguments import (
    MAX_INTEGER,
    UNSTORABLE,
    Arguments,
    Values,
    items_with_paths,
    unwrap,
)
from service.request.embeds import EmbedParser, Embeds, PlainEmbed, parse_measures, plain_embed
from service.request.filters import MAX_SHAPED, MAX_SHAPES, FilterParser, shape_of_filter
from service.request.requests import (
    After,
    AggregateRequest,
    CountMode,
    CountRequest,
    Embed,
    FindRequest,
    Form,
    GetRequest,
    KeyMatch,
    Measure,
    Operand,
    Reference,
)
from service.request.select_list import (
    MAX_KEYS,
    parse_names,
    parse_order,
    parse_reference,
    parse_select,
    unquoted,
)

MAX_TOKEN = 1 << 20
"""Characters; sort keys may be long strings."""

MAX_DIGESTS = 256
"""Shapes of queries whose digest is kept."""
MAX_SHAPE = 16_384
"""Characters of the longest of these shapes. Callers choose the shape, so this bounds memory."""
_digests: dict[Hashable, str] = {}


def digest_of(shape: Hashable, values: Sequence[Any] = ()) -> str:
    """
    Return a digest of a query; equal queries have equal digests.

    Args:
        shape: What calls with other values share.
        values: The values of the call.

    Raises:
        InvalidArgument: A value is nested too deep.
    """
    try:
        return _digest(f"{_digest_of_shape(shape)} {values!r}")
    except RecursionError:
        raise InvalidArgument("a value of this call is nested too deep") from None


def _digest_of_shape(shape: Hashable) -> str:
    # Kept, because the repr of a find's dataclasses takes ten times as long as their hash.
    found = _digests.get(shape)
    if found is None:
        text = repr(shape)
        found = _digest(text)
        if len(text) <= MAX_SHAPE:
            if len(_digests) >= MAX_DIGESTS:
                _digests.clear()
            _digests[shape] = found
    return found


def _digest(text: str) -> str:
    # A caller's string may contain a lone surrogate, which UTF-8 cannot encode.
    return blake2b(text.encode(errors="replace"), digest_size=9).hexdigest()


def write_token(digest: str, keys: Sequence[str | None] | int) -> str:
    """Return a token that holds the sort keys of a row, or an offset."""
    text = _TOKEN.encode([digest, keys if isinstance(keys, int) else list(keys)])
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


_TOKEN = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def read_token(token: Any, digest: str, name: str = "after") -> list[str | None] | int:
    """
    Return the sort keys, or the offset, that a token holds.

    Args:
        token: The argument, unparsed.
        digest: Digest of the call's query.
        name: Name of the argument: "after" or "before".

    Raises:
        InvalidArgument: It is not a token, or belongs to another query.
    """
    if not isinstance(token, str) or len(token) > MAX_TOKEN:
        raise _not_a_token(name)
    try:
        found = json.loads(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        theirs, keys = found
    # A token may be any text; json raises RecursionError for deeply nested brackets.
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise _not_a_token(name) from None
    if theirs != digest:
        raise InvalidArgument(
            "this token belongs to another query",
            path=name,
            hint="a token goes with the same where, order and distinct as the page before",
        )
    if isinstance(keys, list) and all(map(_is_key, keys)):
        return keys
    if isinstance(keys, int) and not isinstance(keys, bool) and 0 <= keys < 2**63:
        return keys
    raise _not_a_token(name)


def _is_key(key: Any) -> bool:
    return key is None or (isinstance(key, str) and not UNSTORABLE.search(key))


def _not_a_token(name: str) -> InvalidArgument:
    hint = '"after" takes the "next", and "before" the "prev", of another page'
    return InvalidArgument("not a token", path=name, hint=hint)


Request = TypeVar("Request")
FORMS: tuple[Form, ...] = ("dicts", "lists", "json")
COUNTS: tuple[CountMode, ...] = ("exact", "planned", "estimated")
CHUNK, MAX_CHUNK = 500, 5000
"""Rows of one progressive result: default and maximum."""

Format = Literal["csv", "ndjson"]
FORMATS: tuple[Format, ...] = ("csv", "ndjson")
_UNPAGED = ("where", "select", "order", "limit", "offset", "distinct", "embed", "form")
_PAGING = ("after", "before", "count", "measures")
MAX_GROUPS = 5_000
"""Maximum groups of one result: the reactor handles no more rows in one piece."""


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Limits of a call.

    Args:
        max_rows: Rows of one page.
        max_depth: Nesting of a filter's and, or and not.
        max_embed_depth: Nesting of embeds.
        idle: Seconds that an interactive transaction or an upload may be idle.
    """

    max_rows: int = 1000
    max_depth: int = 16
    max_embed_depth: int = 8
    idle: float = 10.0


@dataclass(frozen=True, slots=True)
class Parsed(Generic[Request]):
    """
    A parsed call.

    Args:
        request: The request, which is the shape of the call.
        values: The values of the call, by slot.
        timeout: The caller's timeout in seconds, if any.
        query: For `find`: what its tokens are bound to, a shape and values, as `digest_of` takes them.
        offset: For `find`: rows to skip, given by `offset` or by a token.
        reached: For `find`: the name of the argument whose token determines the page, if any.
    """

    request: Request
    values: tuple[Any, ...]
    timeout: float | None = None
    query: tuple[Any, ...] = ()
    offset: int = 0
    reached: Literal["after", "before"] | None = None


def parse_get(args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits) -> Parsed[GetRequest]:
    """Parse the arguments of `get`."""
    if len(args) + len(kwargs) == 1:
        key = args[0] if args else kwargs.get("key")
        if isinstance(key, int | str):
            return Parsed(BY_BARE_KEY, (key,))  # fast path: most calls; saves 20 function calls
    given = Arguments(args, kwargs, ["key"], ["keys", "select", "embed", "form"])
    values, many = Values(), "keys" in given
    if many and "key" in given:
        raise InvalidArgument('"keys" stands in place of "key"', path="keys")
    request = GetRequest(
        _keys(given.value("keys"), values, limits.max_rows)
        if many
        else parse_key(given.required("key"), values),
        parse_select(given.value("select"), values),
        parse_embed(given, values, limits),
        parse_form(given),
        many,
    )
    return Parsed(request, values.freeze(), given.timeout())


BY_BARE_KEY = GetRequest(KeyMatch((), (Operand(0, "key"),)), None, (), "dicts")
"""The request of a `get` whose only argument is a scalar key."""


def parse_find(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    limits: Limits,
    relation: str,
    known: Sequence[str] = (*_UNPAGED, *_PAGING),
    more: int = 1,
) -> Parsed[FindRequest]:
    """
    Parse the arguments of `find`.

    Args:
        args: Positional arguments; none are allowed.
        kwargs: Keyword arguments.
        limits: Limits of a call.
        relation: Qualified name of the relation, to which tokens are bound.
        known: Names of the arguments that the verb takes.
        more: Number of rows to read beyond the page; the first of them, not returned, tells whether there is
            a next page.
    """
    given = Arguments(args, kwargs, [], known)
    values = Values()
    request, bound, by = _parse_rows(given, values, limits)
    query = (relation, request.where, request.order, request.distinct, by), values.freeze()[:bound]
    limit = given.integer("limit")
    page = limits.max_rows if limit is None else min(limit, limits.max_rows)
    offset, reached = given.integer("offset") or 0, _reached(given)
    keys = read_token(given.value(reached), digest_of(*query), reached) if reached else None
    if isinstance(keys, int):
        if reached == "before":
            offset = max(0, keys - page)
            page = keys - offset
        else:  # OFFSET is a bigint; the sum may be larger
            offset = min(offset + keys, 2**63 - 1)
    values.add(page + more)
    if offset:
        request = replace(request, offset=Operand(values.add(offset), "offset"))
    if reached and isinstance(keys, list):
        operands = tuple(Operand(values.add(key), reached) for key in keys)
        after = After(operands, tuple(key is None for key in keys), reached == "before")
        request = replace(request, after=after)
    return Parsed(request, values.freeze(), given.timeout(), query, offset, reached)


class _Rows(NamedTuple):
    """
    What a find asks for, apart from its page.

    Args:
        request: The request for the first page; its limit is the next value of the call.
        bound: Number of values that tokens are bound to.
        by: The embeds that the rows are sorted by, to which tokens are bound as well.
    """

    request: FindRequest
    bound: int
    by: Embeds


_SHAPING = ("select", "order", "distinct", "embed", "count", "form", "measures")
"""The arguments of `find` that determine its shape, besides the filter."""
MAX_SHAPING = 2_048
"""Bytes of the longest of these that are kept: parsed they take 25 times as much memory."""
_rows: dict[Hashable, _Rows] = {}
"""Cache of what finds ask for, by shape and depth limits, if all values are those of the filter."""


def _parse_rows(given: Arguments, values: Values, limits: Limits) -> _Rows:
    """Parse what a find asks for, apart from its page: once for calls that differ only in values."""
    depths, scalars = (limits.max_embed_depth, limits.max_depth), list[Any]()
    key = _shape_of_rows(given, scalars)
    kept = _rows.get((key, depths)) if key else None
    if kept is not None:
        values.extend(scalars)
        return kept
    where = FilterParser(values, limits.max_depth).parse(given.value("where"))
    order = parse_order(given.value("order"), values)
    distinct = _distinct(given, values)
    asked = len(values)
    embeds = parse_embed(given, values, limits)
    owners = {each.reference.owners[0] for each in order if each.reference.owners}
    # With another `where` in an embed that the rows are sorted by, a token's sort keys would mean something else.
    by = tuple(each for each in embeds if each.name in owners)
    bound = len(values) if by else asked
    select = parse_select(given.value("select"), values)
    measures = _totals(given, values, limits, bool(distinct))
    request = FindRequest(
        where=where,
        select=select,
        order=order,
        distinct=distinct,
        limit=Operand(len(values), "limit"),
        count=cast("CountMode | None", given.choice("count", COUNTS)),
        embeds=embeds,
        form=parse_form(given),
        measures=measures,
    )
    found = _Rows(request, bound, by)
    if key and values.are(scalars):
        if len(_rows) >= MAX_SHAPES:
            _rows.clear()
        _rows[key, depths] = found
    return found


def _shape_of_rows(given: Arguments, scalars: list[Any]) -> Hashable:
    """
    Return all arguments of a find but those for its page and the scalars of its filter, which are appended.

    Returns:
        None if they are too long to be kept, or if parsing depends on a value in the filter.
    """
    where = given.value("where")
    shape = () if where is None else shape_of_filter(where, scalars)
    if shape is None or len(shape) > 3 * MAX_SHAPED:
        return None
    try:
        # Format 2 depends on nothing but the values: later ones depend on references to equal strings.
        others = marshal.dumps([given.value(name) for name in _SHAPING], 2)
    except ValueError:  # a value that a reference of a batch resolved to, or nested too deep
        return None
    return (shape, others) if len(others) <= MAX_SHAPING else None


def _totals(
    given: Arguments, values: Values, limits: Limits, distinct: bool
) -> tuple[Measure, ...]:
    """Parse the measures of `find`, which are over all matching rows, not over the page."""
    measures = given.value("measures")
    if measures is None:
        return ()
    if distinct:
        raise InvalidArgument(
            '"measures" are over rows, and not over distinct ones', path="measures"
        )
    return parse_measures(measures, values, limits.max_depth)


def _reached(given: Arguments) -> Literal["after", "before"] | None:
    """Return the name of the argument that holds a token, if one is given."""
    if given.value("before") is None:
        return None if given.value("after") is None else "after"
    for name in ("after", "offset"):
        if given.value(name) is not None:
            raise InvalidArgument(f'"before" goes without "{name}"', path="before")
    return "before"


def parse_count(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits
) -> Parsed[CountRequest]:
    """Parse the arguments of `count` and `exists`."""
    given = Arguments(args, kwargs, [], ["where"])
    values = Values()
    where = FilterParser(values, limits.max_depth).parse(given.value("where"))
    return Parsed(CountRequest(where), values.freeze(), given.timeout())


def parse_aggregate(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits, _rows: str = ""
) -> Parsed[AggregateRequest]:
    """Parse the arguments of `aggregate`; it has no pages, hence no tokens bound to a relation's name."""
    given = Arguments(
        args,
        kwargs,
        ["measures"],
        ["group", "where", "having", "order", "limit", "offset", "form"],
    )
    values = Values()
    measures = parse_measures(given.required("measures"), values, limits.max_depth)
    group = parse_select(given.value("group"), values, "group") or ()
    if not measures and not group:
        raise InvalidArgument(
            "there is nothing to aggregate", path="measures", hint='as in {"n": {"count": "*"}}'
        )
    limit, offset = given.integer("limit"), given.integer("offset")
    most = MAX_GROUPS + 1 if limit is None else min(limit, MAX_GROUPS + 1)
    request = AggregateRequest(
        measures=measures,
        group=group,
        where=FilterParser(values, limits.max_depth).parse(given.value("where")),
        having=FilterParser(values, limits.max_depth).parse(given.value("having"), "having"),
        order=parse_order(given.value("order"), values),
        limit=Operand(values.add(most), "limit"),
        offset=Operand(values.add(offset), "offset") if offset else None,
        form=parse_form(given),
    )
    return Parsed(request, values.freeze(), given.timeout())


def parse_unpaged(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    limits: Limits,
    rows: str,
    known: Sequence[str] = (*_UNPAGED, "chunk"),
    most: int = MAX_INTEGER - 1,
) -> Parsed[FindRequest]:
    """
    Parse the arguments of a `find` without pages, as `stream` and `export` take them.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments, without those of the verb itself.
        limits: Limits of a call; the maximum number of rows is ignored.
        rows: Qualified name of the relation.
        known: Names of the arguments to list in hints, those of the verb included.
        most: Maximum number of rows.
    """
    for name in _PAGING:
        if name in kwargs:
            raise InvalidArgument(
                f'"{name}" is for pages, and this has none', path=name, hint="find takes it"
            )
    call = parse_find(args, kwargs, replace(limits, max_rows=most), rows, known, more=0)
    if call.request.form == "json":
        raise InvalidArgument(
            "the parts of a stream are not JSON text", path="form", hint="export gives ndjson"
        )
    return call


def parse_chunk(kwargs: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """
    Parse `chunk`, the number of rows of one progressive result.

    Returns:
        The number, and the remaining keywords.
    """
    own, rest = _split_off(kwargs, "chunk")
    chunk = own.integer("chunk")
    if chunk is not None and not 1 <= chunk <= MAX_CHUNK:
        raise InvalidArgument(f'"chunk" is a number of rows from 1 to {MAX_CHUNK}', path="chunk")
    return chunk or CHUNK, rest


def parse_format(kwargs: Mapping[str, Any]) -> tuple[Format, Mapping[str, Any]]:
    """
    Parse `format` of an export, which takes no `form`.

    Returns:
        The format, and the remaining keywords.
    """
    if "form" in kwargs:
        raise UnknownName("argument", "form", ["format"], path="form")
    own, rest = _split_off(kwargs, "format")
    return cast("Format", own.choice("format", FORMATS, "csv")), rest


def check_format(format: Format | None, embeds: Sequence[Embed]) -> None:
    """
    Check that an export's format can hold the embeds.

    Raises:
        InvalidArgument: An embed is spread into CSV, whose columns COPY determines.
    """
    for embed in embeds:
        if embed.spread and format == "csv":
            raise InvalidArgument(
                "the columns of CSV are those of the relation: nothing can be spread",
                path=f"{embed.path}.spread",
                hint="select columns of to-one embeds in a view, or export ndjson",
            )


@dataclass(frozen=True, slots=True)
class DescribeRequest:
    """
    Which part of the document `describe` returns; everything if both are None.

    Args:
        relations: Names of relations, as in URIs.
        functions: Names of functions, as in "fn.add".
    """

    relations: tuple[str, ...] | None = None
    functions: tuple[str, ...] | None = None


WHOLE = DescribeRequest()


def parse_describe(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[DescribeRequest, float | None]:
    """Parse the arguments of `describe`; return the caller's timeout in seconds as well."""
    given = Arguments(args, kwargs, [], ["relations", "functions"])
    relations, functions = given.value("relations"), given.value("functions")
    if relations is None and functions is None:
        return WHOLE, given.timeout()
    names = parse_names(relations, "relations"), parse_names(functions, "functions")
    return DescribeRequest(*names), given.timeout()


def parse_key(key: Any, values: Values, path: str = "key") -> KeyMatch:
    """Parse a key: a scalar, a list in the primary key's order, or a dict of a unique key's columns."""
    if isinstance(key, int | str):
        return KeyMatch((), (Operand(values.add(key), path),))
    columns, parts = _key_parts(key, path)
    return KeyMatch(columns, tuple(Operand(values.add(value), path) for value, path in parts))


def _keys(keys: Any, values: Values, most: int) -> KeyMatch:
    """Parse keys, which must all have one form, into one list of values for each column."""
    keys = unwrap(keys)
    if not isinstance(keys, list | tuple):
        raise InvalidArgument('"keys" is a list of keys', path="keys")
    if len(keys) > most:
        raise InvalidArgument(
            f"a call gets at most {counted(most, 'row')} by their keys", path="keys"
        )
    parsed = [_key_parts(key, f"keys.{at}") for at, key in enumerate(keys)]
    columns, parts = parsed[0] if parsed else ((), [])
    for at, (other_columns, other_parts) in enumerate(parsed):
        if other_columns != columns or len(other_parts) != len(parts):
            raise InvalidArgument("keys are all in one form", path=f"keys.{at}")
    lists = [[key[at][0] for _, key in parsed] for at in range(len(parts))]
    return KeyMatch(columns, tuple(Operand(values.add(each), "keys") for each in lists))


def _key_parts(key: Any, path: str) -> tuple[tuple[str, ...], list[tuple[Any, str]]]:
    """Return the columns of a key, empty for the primary key, and its values with their paths."""
    columns: tuple[str, ...] = ()
    key = unwrap(key)
    if isinstance(key, Mapping):
        if not key or not all(isinstance(name, str) for name in key):
            raise InvalidArgument("a key names the columns of a unique key", path=path)
        # Sorted, so that the order of the columns in the call does not make another shape and statement.
        given = sorted(key.items(), key=lambda each: unquoted(each[0]))
        parts = [(value, f"{path}.{name}") for name, value in given]
        columns = tuple(unquoted(name) for name, _ in given)
        if len({*columns}) < len(columns):
            raise InvalidArgument("a key names a column once", path=path)
    elif isinstance(key, list | tuple):
        parts = [(each, f"{path}.{at}") for at, each in enumerate(key)]
    else:
        parts = [(key, path)]
    if not parts:
        raise InvalidArgument("a key has a value for each of its columns", path=path)
    for at, (value, place) in enumerate(parts):
        if value is None:
            raise null_in_key(place, columns[at] if columns else "")
    return columns, parts


def null_in_key(path: str, column: str = "") -> InvalidArgument:
    """
    Return the refusal of a null in a key, which equals no value, with the filter that finds such rows.

    Args:
        path: Path of the null in the call.
        column: Its column, if the key names it; a column of a primary key is never null.
    """
    found = f"where={json.dumps({column: None}, ensure_ascii=False)}"
    hint = f'"find", "update" and "delete" take a filter, as in {found}' if column else None
    return InvalidArgument(
        "a key has a value for each of its columns", path=path, column=column or None, hint=hint
    )


def parse_embed(given: Arguments, values: Values, limits: Limits) -> Embeds:
    """Parse `embed`."""
    embed = given.value("embed")
    if embed is None:
        return ()
    depths = limits.max_embed_depth, limits.max_depth
    plain = plain_embed(embed)
    found = _parse_plain_embed(plain, *depths) if plain is not None else None
    return EmbedParser(values, *depths).parse(embed) if found is None else found


# Building the frozen parts of an embed takes longer than all other parsing of a `get` with it. Cached, and
# plain names as well (`_column_item`), such a call took 0.87 of the service's CPU time.
@lru_cache(256)
def _parse_plain_embed(plain: PlainEmbed, max_embed_depth: int, max_depth: int) -> Embeds | None:
    """Parse an `embed` once for all calls; None if it has values, which each call brings itself."""
    values = Values()
    embed = {name: options if options is True else dict(options) for name, options in plain}
    found = EmbedParser(values, max_embed_depth, max_depth).parse(embed)
    return None if len(values) else found


def parse_form(given: Arguments) -> Form:
    """Parse `form`."""
    return cast("Form", given.choice("form", FORMS, "dicts"))


def _distinct(given: Arguments, values: Values) -> bool | tuple[Reference, ...]:
    distinct = given.value("distinct")
    if distinct is None or isinstance(distinct, bool):
        return bool(distinct)
    names = isinstance(distinct, str | list | tuple)
    columns = items_with_paths(distinct, "distinct", MAX_KEYS) if names else []
    if not columns or not all(isinstance(each, str) for each, _ in columns):
        raise InvalidArgument(
            '"distinct" is true, or a list of one column or more',
            path="distinct",
            hint='true leaves out rows that are alike; ["a"] gives one row for each value of "a"',
        )
    return tuple(parse_reference(each, place, values) for each, place in columns)


def _split_off(kwargs: Mapping[str, Any], *names: str) -> tuple[Arguments, Mapping[str, Any]]:
    """Return some keywords as arguments of their own, and the other keywords."""
    own = {name: kwargs[name] for name in names if name in kwargs}
    return Arguments((), own, [], names), {key: kwargs[key] for key in kwargs if key not in own}


WATCH_OPTIONS = ("since", "tx", "tables")
"""Arguments of `watch` itself."""

QUERY = ("where", "select", "embed", "order", "limit", "offset", "distinct")
GROUPS = ("measures", "group", "having")
"""Arguments that make the query an aggregate."""

MAX_TABLES = 100
"""Maximum length of `tables`."""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """
    The options of a live query.

    Args:
        since: Position of the rows that the caller already has; None to begin with a snapshot.
        tx: Whether messages name the caller's own transactions that they cover.
        tables: Names of tables that a function reads, beside those that its plan shows.
    """

    since: str | None
    tx: bool
    tables: tuple[str, ...]


def parse_watch_options(kwargs: Mapping[str, Any]) -> tuple[WatchOptions, Mapping[str, Any]]:
    """
    Parse the options of `watch`.

    Returns:
        The options, and the remaining keywords, which are the query's.
    """
    for name in ("form", "count", "after", "before"):
        if name in kwargs:
            takes = (*QUERY, *GROUPS, *WATCH_OPTIONS)
            raise UnknownName(
                "argument", name, takes, path=name, hint="find takes it; watch gives rows as dicts"
            )
    given, rest = _split_off(kwargs, *WATCH_OPTIONS)
    since = given.value("since")
    if since is not None and not isinstance(since, str):
        raise InvalidArgument(
            "a position is a string", path="since", hint="give one back as it came"
        )
    tables = items_with_paths(given.value("tables"), "tables", MAX_TABLES)
    for name, place in tables:
        if not isinstance(name, str):
            raise InvalidArgument("a table is named by a string", path=place)
    return WatchOptions(since, given.flag("tx"), tuple(name for name, _ in tables)), rest


def parse_watched(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits, rows: str, most: int
) -> Parsed[FindRequest] | Parsed[AggregateRequest]:
    """
    Parse the query of `watch`.

    Args:
        args: Positional arguments; none are allowed.
        kwargs: Keyword arguments without the options.
        limits: Limits of a call.
        rows: Qualified name of the relation.
        most: Maximum rows of a result; the query asks for one more, to detect a larger result.
    """
    if any(name in kwargs for name in GROUPS):
        if args:  # refused here, because parse_aggregate would take them for measures
            Arguments(args, {}, [], [*QUERY, *WATCH_OPTIONS])
        return parse_aggregate((), {"measures": {}, **kwargs}, limits)
    known = (*QUERY, *GROUPS, *WATCH_OPTIONS)
    return parse_unpaged(args, kwargs, limits, rows, known, most + 1)
