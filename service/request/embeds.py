"""
Parse `embed` and `measures`: related rows embedded in each row of a result, and aggregates over rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from service.errors import InvalidArgument, UnknownName, clip, nearest
from service.request.arguments import Values, flag_of, integer_of, unknown_word
from service.request.filters import FilterParser
from service.request.requests import Embed, Item, Measure, Operand
from service.request.select_list import check_name, parse_item, parse_order, parse_select
from service.request.synonyms import synonym_hint

MEASURE_FUNCTIONS = (
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "bool_and",
    "bool_or",
    "stddev",
    "variance",
    "percentile",
    "mode",
    "array_agg",
    "string_agg",
)
SORTED = ("percentile", "mode")
"""Ordered-set aggregates, which sort rows by their argument."""
LISTS = ("array_agg", "string_agg")
"""Aggregates that take an ORDER BY."""
MEASURE_OPTIONS = ("distinct", "separator", "where", "cast", "fraction", "discrete", "order")
MAX_MEASURES = 200
"""Measures of one call; PostgreSQL limits a result to 1,664 columns, groups included."""


def parse_measures(
    measures: Any, values: Values, max_depth: int, path: str = "measures"
) -> tuple[Measure, ...]:
    """
    Parse measures by name.

    Args:
        measures: The argument, unparsed.
        values: Values of the call; operands are appended.
        max_depth: Maximum nesting of and, or and not in their filters.
        path: Path of the argument in the call.
    """
    if not isinstance(measures, Mapping):
        raise InvalidArgument(
            "measures are a dict of names and functions",
            path=path,
            hint='as in {"total": {"sum": "amount"}}',
        )
    if len(measures) > MAX_MEASURES:
        raise InvalidArgument(f"a call has at most {MAX_MEASURES} measures", path=path)
    filters = FilterParser(values, max_depth)  # one parser, so that it counts all their conditions
    found = []
    for name, measure in measures.items():
        if not isinstance(name, str):
            raise InvalidArgument("the keys of measures are names", path=path)
        check_name(name, path)
        found.append(_measure(name, measure, values, filters, f"{path}.{name}"))
    return tuple(found)


def _measure(name: str, measure: Any, values: Values, filters: FilterParser, path: str) -> Measure:
    if not isinstance(measure, Mapping):
        raise InvalidArgument(
            "a measure is a dict of a function and its column",
            path=path,
            hint='as in {"sum": "amount"} or {"count": "*"}',
        )
    function = _function(measure, path)
    item = _operand(function, measure[function], values, f"{path}.{function}")
    distinct = flag_of(measure.get("distinct"), "distinct", f"{path}.distinct")
    cast = measure.get("cast")
    if distinct and item is None:
        raise InvalidArgument("rows are not distinct, columns are", path=f"{path}.distinct")
    if cast is not None and not isinstance(cast, str):
        raise InvalidArgument('"cast" is the name of a type', path=f"{path}.cast")
    if distinct and function in SORTED:
        raise InvalidArgument(f'"{function}" is of all values', path=f"{path}.distinct")
    if measure.get("order") is not None and function not in LISTS:
        raise InvalidArgument(f'"{function}" has no order', path=f"{path}.order")
    return Measure(
        name,
        path,
        function,
        item,
        distinct,
        _separator(function, measure, values, path),
        filters.parse(measure.get("where"), f"{path}.where"),
        cast,
        *_fraction(function, measure, values, path),
        parse_order(measure.get("order"), values, f"{path}.order"),
    )


def _function(measure: Mapping[Any, Any], path: str) -> str:
    found = [str(each) for each in measure if each not in MEASURE_OPTIONS]
    for each in found:
        if each not in MEASURE_FUNCTIONS:
            place = f"{path}.{each}"
            if not set(found).isdisjoint(MEASURE_FUNCTIONS):
                raise unknown_word("option", each, MEASURE_OPTIONS, place)
            hint = synonym_hint("function", each, MEASURE_FUNCTIONS)
            hint = hint or nearest(each, [*MEASURE_FUNCTIONS, *MEASURE_OPTIONS])
            raise unknown_word("function", each, MEASURE_FUNCTIONS, place, hint)
    if len(found) != 1:
        raise InvalidArgument(
            "a measure has one function", path=path, hint=f"one of {', '.join(MEASURE_FUNCTIONS)}"
        )
    return found[0]


def _operand(function: str, operand: Any, values: Values, path: str) -> Item | None:
    """Parse the argument of a function; None means rows, as in `count(*)`."""
    if operand == "*" and function == "count":
        return None
    item = parse_item(operand, path, values)
    if item.alias is not None or item.left_out or item.reference.every:
        raise InvalidArgument(
            f'"{function}" takes a column, perhaps with a path and a cast',
            path=path,
            hint="the name of a measure is its key",
        )
    return item


def _fraction(
    function: str, measure: Mapping[str, Any], values: Values, path: str
) -> tuple[Operand | None, bool]:
    """Parse `fraction` and `discrete` of a percentile."""
    fraction = measure.get("fraction")
    discrete = flag_of(measure.get("discrete"), "discrete", f"{path}.discrete")
    if function != "percentile":
        for name in ("fraction", "discrete"):
            if measure.get(name) is not None:
                raise InvalidArgument(f'"{function}" has no {name}', path=f"{path}.{name}")
        return None, False
    if (
        not isinstance(fraction, int | float)
        or isinstance(fraction, bool)
        or not 0 <= fraction <= 1  # also false for NaN
    ):
        raise InvalidArgument(
            '"fraction" is a number from 0 to 1',
            path=f"{path}.fraction",
            hint='0.5 is the median, as in {"percentile": "seats", "fraction": 0.5}',
        )
    return Operand(values.add(fraction), f"{path}.fraction"), discrete


def _separator(
    function: str, measure: Mapping[str, Any], values: Values, path: str
) -> Operand | None:
    separator = measure.get("separator")
    if function != "string_agg":
        if separator is not None:
            raise InvalidArgument(f'"{function}" has no separator', path=f"{path}.separator")
        return None
    if separator is None:
        separator = ","
    if not isinstance(separator, str):
        raise InvalidArgument('"separator" is a string', path=f"{path}.separator")
    return Operand(values.add(separator), f"{path}.separator")


EMBED_OPTIONS = (
    "relation",
    "via",
    "direction",
    "select",
    "where",
    "order",
    "limit",
    "offset",
    "embed",
    "inner",
    "spread",
    "measures",
    "group",
)
MAX_EMBEDS = 100
"""Embeds of one call; each is a subselect that PostgreSQL has to plan."""


Embeds = tuple[Embed, ...]
PlainEmbed = tuple[tuple[str, Literal[True] | tuple[tuple[str, str | bool], ...]], ...]
"""The items of an `embed`: names, and options that are strings or booleans."""

MAX_PLAIN, MAX_WORD = 16, 128
"""Limits of a plain `embed`, since callers choose the keys of the cache: items, and characters of a string."""


def plain_embed(embed: Any) -> PlainEmbed | None:
    """Return an `embed` in a form that can be hashed; None if it has other options, or is large."""
    if type(embed) is not dict or len(embed) > MAX_PLAIN:
        return None
    plain: list[Any] = []
    for name, options in embed.items():
        if type(name) is not str or len(name) > MAX_WORD:
            return None
        if options is True:
            plain.append((name, True))
            continue
        if type(options) is not dict or len(options) > MAX_PLAIN:
            return None
        for option, value in options.items():
            text = type(value) is str and len(value) <= MAX_WORD
            if type(option) is not str or not (text or type(value) is bool):
                return None
        plain.append((name, tuple(options.items())))
    return tuple(plain)


class EmbedParser:
    """
    Parser of one `embed`.

    Args:
        values: Values of the call; operands are appended.
        max_depth: Maximum nesting of embeds.
        max_filter_depth: Maximum nesting of and, or and not in their filters.
    """

    def __init__(self, values: Values, max_depth: int, max_filter_depth: int) -> None:
        self._values = values
        self._max_depth = max_depth
        self._max_filter_depth = max_filter_depth
        self._count = 0

    def parse(self, embed: Any, path: str = "embed", depth: int = 1) -> tuple[Embed, ...]:
        """Parse an `embed`; None means no embeds."""
        if embed is None:
            return ()
        if not isinstance(embed, Mapping):
            names = [embed] if isinstance(embed, str) else embed if isinstance(embed, list) else []
            pairs = ", ".join(f'"{clip(each)}": true' for each in names[:8]) or '"vehicles": true'
            raise InvalidArgument(
                "embed is a dict of names and options", path=path, hint=f"as in {{{pairs}}}"
            )
        if embed and depth > self._max_depth:
            raise InvalidArgument(f"embeds may nest {self._max_depth} deep", path=path[:200])
        return tuple(
            self._one(name, options, f"{path}.{name}", depth) for name, options in embed.items()
        )

    def _one(self, name: Any, options: Any, path: str, depth: int) -> Embed:
        self._count += 1
        if self._count > MAX_EMBEDS:
            raise InvalidArgument(f"a call has at most {MAX_EMBEDS} embeds", path="embed")
        if not isinstance(name, str):
            raise InvalidArgument("the keys of embed are names", path=path[:200])
        check_name(name, path)
        if options is True:
            options = {}
        if not isinstance(options, Mapping):
            raise InvalidArgument("an embed is true, or a dict of options", path=path)
        for option in options:
            if option not in EMBED_OPTIONS:
                hint = synonym_hint("argument", option, EMBED_OPTIONS)
                if options[option] is True:
                    hint = hint or nearest(option, EMBED_OPTIONS)
                    hint = hint or 'columns stand in "select", related rows in "embed"'
                raise UnknownName(
                    "option", str(option), EMBED_OPTIONS, path=f"{path}.{option}", hint=hint
                )
        measures, group = self._aggregate(options, path)
        where = FilterParser(self._values, self._max_filter_depth)
        return Embed(
            name=name,
            path=path,
            relation=_text(options, "relation", path),
            via=_text(options, "via", path),
            direction=_direction(options, path),
            select=parse_select(options.get("select"), self._values, f"{path}.select"),
            where=where.parse(options.get("where"), f"{path}.where"),
            order=parse_order(options.get("order"), self._values, f"{path}.order"),
            limit=self._integer(options, "limit", path),
            offset=self._integer(options, "offset", path),
            embeds=self.parse(options.get("embed"), f"{path}.embed", depth + 1),
            inner=flag_of(options.get("inner"), "inner", f"{path}.inner"),
            spread=flag_of(options.get("spread"), "spread", f"{path}.spread"),
            measures=measures,
            group=group,
        )

    def _aggregate(
        self, options: Mapping[str, Any], path: str
    ) -> tuple[tuple[Measure, ...], tuple[Item, ...]]:
        measures, group = options.get("measures"), options.get("group")
        if measures is None and group is None:
            return (), ()
        for name in ("select", "embed"):
            if options.get(name) is not None:
                raise InvalidArgument(
                    f'an aggregate has no "{name}"',
                    path=f"{path}.{name}",
                    hint='name columns in "group"; embed rows under another name',
                )
        found = (
            parse_measures({} if measures is None else measures, self._values,
                           self._max_filter_depth, f"{path}.measures"),
            parse_select(group, self._values, f"{path}.group") or (),
        )  # fmt: skip
        if not any(found):
            raise InvalidArgument("there is nothing to aggregate", path=f"{path}.measures")
        return found

    def _integer(self, options: Mapping[str, Any], name: str, path: str) -> Operand | None:
        path = f"{path}.{name}"
        value = integer_of(options.get(name), name, path)
        return None if value is None else Operand(self._values.add(value), path)


def _text(options: Mapping[str, Any], name: str, path: str) -> str | None:
    value = options.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidArgument(f'"{name}" is a name', path=f"{path}.{name}")
    check_name(value, f"{path}.{name}")
    return value


def _direction(options: Mapping[str, Any], path: str) -> Literal["one", "many"] | None:
    value = options.get("direction")
    if value not in (None, "one", "many"):
        raise InvalidArgument('"direction" is "one" or "many"', path=f"{path}.direction")
    return cast('Literal["one", "many"] | None', value)
