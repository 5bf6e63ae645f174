"""
Parse calls of database functions, and choose the overload that the arguments mean.

An overload is chosen by the names of the arguments first, then by how well the values fit the types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.catalog import Argument, Catalog, Function, Type
from service.datatypes import with_form
from service.errors import InvalidArgument, UnknownName
from service.request.arguments import IDEMPOTENCY_KEY, RECEIPT, Arguments, Values, unwrap
from service.request.read_request import Parsed, digest_of, parse_form
from service.request.requests import AggregateRequest, FindRequest, Form, Operand

Request = TypeVar("Request", FindRequest, AggregateRequest)
OPTIONS = ("form", "max_affected", "timeout", IDEMPOTENCY_KEY, RECEIPT)
ARGS = "args"


@dataclass(frozen=True, slots=True)
class FunctionArguments:
    """
    The arguments of a function.

    Args:
        positional: Values by position.
        named: Values by name.
        path: Prefix of the names' paths in the call.
    """

    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    path: str = ""


@dataclass(frozen=True, slots=True)
class CallRequest:
    """
    A call of a function.

    Args:
        function: The chosen overload.
        positional: Arguments by position.
        named: Arguments by name, sorted by name.
        generic: Name of the actual type of polymorphic arguments, empty if there are none.
        lists: Names and positions of polymorphic arguments that are lists.
        form: Form of the rows in the result.
        max_affected: Maximum rows of the result; more are refused.
        receipt: Whether the result includes the transaction id.
    """

    function: Function
    positional: tuple[Operand, ...] = ()
    named: tuple[tuple[str, Operand], ...] = ()
    generic: str = ""
    lists: frozenset[str | int] = frozenset()
    form: Form = "dicts"
    max_affected: int | None = None
    receipt: bool = False


@dataclass(frozen=True, slots=True)
class FunctionRowsRequest(Generic[Request]):
    """A request of a verb on the rows that a function returns."""

    call: CallRequest
    of: Request


def parse_call(
    functions: Sequence[Function],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    catalog: Catalog,
) -> Parsed[CallRequest]:
    """
    Parse a plain call of a function: all keywords but the options are the function's arguments.

    Args:
        functions: Overloads of the name.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        catalog: Source of the arguments' types.
    """
    named, options = _split(functions, kwargs)
    given = _given(args, named, options.pop(ARGS, None))
    call = Arguments([], options, [], OPTIONS)
    values = Values()
    form, most, receipt = parse_form(call), call.integer("max_affected"), call.flag(RECEIPT)
    request = bind_call(functions, given, values, catalog, form, most, receipt)
    return Parsed(request, values.freeze(), call.timeout())


def given_option(functions: Sequence[Function], kwargs: Mapping[str, Any], name: str) -> Any:
    """Return an option of a plain call, unless the keyword is an argument of the function."""
    return _split(functions, kwargs)[1].get(name)


def parse_called(
    functions: Sequence[Function],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    catalog: Catalog,
    parse: Callable[[Mapping[str, Any], str], Parsed[Request]],
) -> Parsed[FunctionRowsRequest[Request]]:
    """
    Parse a call of a verb on a function's rows; the function's arguments are in `args`.

    Args:
        functions: Overloads of the name.
        args: Positional arguments of the call, which are the function's.
        kwargs: Keyword arguments of the call, which are the verb's.
        catalog: Source of the arguments' types.
        parse: Parses the verb's arguments; takes them and a name of the rows, to which tokens are bound.
    """
    rest = {name: value for name, value in kwargs.items() if name != ARGS}
    given = _given(args, {}, kwargs.get(ARGS), f"{ARGS}.")
    # With other arguments the rows are another query, and tokens of pages must not be mixed.
    home = f"{functions[0].schema}.fn.{functions[0].name}"
    query = f"{home} {digest_of((), [given.positional, sorted(given.named.items())])}"
    try:
        parsed = parse(rest, query)
    except InvalidArgument as refusal:
        _explain(refusal, functions, args, rest)
        raise
    values = Values(parsed.values)
    call = bind_call(functions, given, values, catalog)
    request = FunctionRowsRequest(call, parsed.request)
    return Parsed(
        request, values.freeze(), parsed.timeout, parsed.query, parsed.offset, parsed.reached
    )


def bind_call(
    functions: Sequence[Function],
    given: FunctionArguments,
    values: Values,
    catalog: Catalog,
    form: Form = "dicts",
    max_affected: int | None = None,
    receipt: bool = False,
) -> CallRequest:
    """Build the request for the overload that the arguments mean, and add them to the call's values."""
    function = resolve_overload(functions, given, catalog)
    generic, lists = polymorphic_type(function, given, catalog)
    return CallRequest(
        function,
        tuple(Operand(values.add(each), f"{at}") for at, each in enumerate(given.positional)),
        tuple(
            (name, Operand(values.add(given.named[name]), f"{given.path}{name}"))
            # Sorted, so that the order of names in the call does not make another statement.
            for name in sorted(given.named)
        ),
        generic,
        lists,
        form,
        max_affected,
        receipt,
    )


def _split(
    functions: Sequence[Function], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keywords into the function's arguments and the options of the call."""
    names = {name for function in functions for name in function.names}
    apart = isinstance(kwargs.get(ARGS), Mapping)
    named: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in kwargs.items():
        option = name in OPTIONS or name == ARGS
        if option and (apart or name not in names):
            options[name] = value
        elif apart:
            raise UnknownName("option", name, (*OPTIONS, ARGS), path=name)
        else:
            named[name] = value
    return named, options


def _given(
    args: Sequence[Any], named: Mapping[str, Any], apart: Any, path: str = ""
) -> FunctionArguments:
    """Parse a function's arguments: by position, by name, or in `apart`, the keyword `args`."""
    # All of them are values, so referenced ones need no marks.
    args, named, apart = tuple(map(unwrap, args)), _unwrap_values(named), unwrap(apart)
    if apart is None:
        return FunctionArguments(args, named, path)
    if isinstance(apart, list | tuple):
        if args:
            raise InvalidArgument("values by position are given twice", path=ARGS)
        return FunctionArguments(tuple(apart), named)
    if not isinstance(apart, Mapping) or not all(isinstance(name, str) for name in apart):
        raise InvalidArgument(
            '"args" is a dict of names and values, or a list of values', path=ARGS
        )
    return FunctionArguments(args, apart, f"{ARGS}.")


def _unwrap_values(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: unwrap(value) for name, value in named.items()}


def _explain(
    refusal: InvalidArgument,
    functions: Sequence[Function],
    args: Sequence[Any],
    rest: Mapping[str, Any],
) -> None:
    """Add a hint to a refusal if arguments of the function and of the verb may have been confused."""
    path = refusal.details.get("path")
    if isinstance(refusal, UnknownName):
        if path in rest and any(path in function.names for function in functions):
            refusal.details["hint"] = f'arguments of the function go into "{ARGS}"'
    elif args and path == "measures" and path not in rest:
        refusal.details.setdefault(
            "hint", "by position go arguments of the function, those of the verb by name"
        )


def resolve_overload(
    functions: Sequence[Function], given: FunctionArguments, catalog: Catalog
) -> Function:
    """
    Return the overload that the arguments mean.

    As in PostgreSQL, it is the one that uses the fewest defaults. Among several, it is the one whose
    types fit every value at least as well as those of each other overload.

    Raises:
        InvalidArgument: No overload takes these arguments, or several do; `candidates` names them.
    """
    fitting = [each for each in functions if _fits(each, given)]
    if not fitting:
        raise _misfit(functions, given, catalog)
    fewest = min(_defaults_used(each, given) for each in fitting)
    found = [each for each in fitting if _defaults_used(each, given) == fewest]
    closest = found if len(found) == 1 else _closest(found, given, catalog)
    if len(closest) != 1:
        raise InvalidArgument(
            f'several functions "{found[0].name}" take these arguments',
            candidates=[signature(each, catalog) for each in found],
            hint="an overload is chosen by the names of arguments, then by the types of their values",
        )
    return closest[0]


def signature(function: Function, catalog: Catalog) -> str:
    """Return a function's signature: "add(a integer, [b integer])", with brackets for a default."""
    parameters = []
    for at, each in enumerate(function.inputs, 1):
        word = f"{each.name or f'${at}'} {catalog.type(each.type).sql}"
        parameters.append(f"[{word}]" if each.has_default else word)
    return f"{function.name}({', '.join(parameters)})"


def _closest(
    functions: Sequence[Function], given: FunctionArguments, catalog: Catalog
) -> list[Function]:
    """Return the functions whose every type is at least as close to its value as in each other one."""
    distances = [
        [
            distance(value, catalog.type(argument.type), catalog)
            for argument, value in _paired(each, given)
        ]
        for each in functions
    ]
    least = [min(column) for column in zip(*distances, strict=True)]
    return [each for each, far in zip(functions, distances, strict=True) if far == least]


def _paired(function: Function, given: FunctionArguments) -> Iterator[tuple[Argument, Any]]:
    """Return each value with its argument, in the order of the call."""
    yield from zip(function.inputs, given.positional, strict=False)
    by_name = {each.name: each for each in function.inputs}
    for name, value in given.named.items():
        yield by_name[name], value


def _fits(function: Function, given: FunctionArguments) -> bool:
    unnamed, inputs = function.unnamed, function.inputs
    by_position = len(given.positional)
    if by_position > unnamed or not given.named.keys() <= function.names:
        return False
    # a name among those given by position would be given twice
    first = {each.name for each in inputs[:by_position] if each.name}
    if first & given.named.keys():
        return False
    return all(
        each.has_default or (each.name and each.name in given.named)
        for each in inputs[by_position:]
    )


def _defaults_used(function: Function, given: FunctionArguments) -> int:
    return len(function.inputs) - len(given.positional) - len(given.named)


def _misfit(
    functions: Sequence[Function], given: FunctionArguments, catalog: Catalog
) -> InvalidArgument:
    names = {name for function in functions for name in function.names}
    name = functions[0].name
    for each in given.named:
        if each not in names:
            found = UnknownName(
                "argument", each, sorted(names), f'function "{name}"', f"{given.path}{each}"[:200]
            )
            found.details.setdefault("hint", _takes(functions, catalog))
            return found
    if len(functions) > 1:
        return InvalidArgument(
            f'no function "{name}" takes these arguments',
            candidates=[signature(each, catalog) for each in functions],
        )
    (function,) = functions
    if len(given.positional) > function.unnamed:
        return InvalidArgument(
            f'"{name}" takes {function.unnamed or "no"} arguments by position,'
            f" got {len(given.positional)}",
            hint=_takes(functions, catalog),
        )
    for at, argument in enumerate(function.inputs):
        if at < len(given.positional) and argument.name in given.named and argument.name:
            return InvalidArgument(f'"{argument.name}" is given twice', path=argument.name)
        if at >= len(given.positional) and not argument.has_default:
            if not argument.name:
                break
            if argument.name not in given.named:
                return InvalidArgument(
                    f'the argument "{argument.name}" is missing',
                    path=f"{given.path}{argument.name}",
                    hint=_takes(functions, catalog),
                )
    return InvalidArgument(
        f'"{name}" takes {function.unnamed} arguments by position, got {len(given.positional)}',
        hint=_takes(functions, catalog),
    )


def _takes(functions: Sequence[Function], catalog: Catalog) -> str:
    return f"it is {' or '.join(signature(each, catalog) for each in functions[:5])}"


TEXTS = with_form("string")
INTEGER_RANGES = with_form("integer")
DECIMALS = with_form("decimal", "float")
FLOATS = tuple(sorted(DECIMALS, key="float8".__ne__))  # float8 first: it is Python's float
SPELLED, GENERIC, DOCUMENT, FAR = 10, 20, 30, 99
"""Distances of: a string, which may spell a value of any type; a polymorphic type; JSON; any other."""


def distance(value: Any, type: Type, catalog: Catalog) -> int:
    """Return how far a value is from a type: 0 for its own type, `FAR` if the type has other forms."""
    if value is None:
        return 0
    type = catalog.plain(type)
    if type.kind == "pseudo":
        return GENERIC
    if type.kind == "array":
        return _of_items(value, catalog.type(type.element), catalog)
    if type.kind == "composite":
        return 0 if isinstance(value, Mapping) else FAR
    name = type.data_type.name
    if isinstance(value, str):
        return TEXTS.index(name) if name in TEXTS else SPELLED
    own = _own(value)
    if name in own:
        return own.index(name)
    if type.form == "json" and not isinstance(value, bytes | bytearray | memoryview):
        return 1 if isinstance(value, Mapping) else DOCUMENT
    return FAR


def _of_items(value: Any, element: Type, catalog: Catalog) -> int:
    """Return the largest distance of a list's items; nested lists are further dimensions."""
    if not isinstance(value, list | tuple):
        return FAR
    plain = (each for each in value if not isinstance(each, list | tuple))
    return max((distance(each, element, catalog) for each in plain), default=0)


def _own(value: Any) -> tuple[str, ...]:
    """Return the names of the types that a value may be of, the closest first."""
    # bool is a subclass of int, so it is tested first.
    if isinstance(value, bool):
        return with_form("boolean")
    if isinstance(value, int):
        # An integer beyond int4 is taken for the second of them, int8.
        return (*(INTEGER_RANGES if -(2**31) <= value < 2**31 else INTEGER_RANGES[1:2]), *DECIMALS)
    if isinstance(value, float):
        return (*FLOATS, *(INTEGER_RANGES if value.is_integer() else ()))
    if isinstance(value, bytes | bytearray | memoryview):
        return with_form("binary")
    return with_form("hstore") if isinstance(value, Mapping) else ()


DIMENSIONS = 6
"""Maximum dimensions of an array (PostgreSQL's MAXDIM)."""

INTEGERS = ("int4", "int8", "numeric")


def polymorphic_type(
    function: Function, given: FunctionArguments, catalog: Catalog
) -> tuple[str, frozenset[str | int]]:
    """
    Return the common type of the values given for polymorphic arguments.

    Args:
        function: The chosen overload.
        given: Its arguments.
        catalog: Source of the arguments' types.

    Returns:
        The name of the type, empty if no argument is polymorphic; and the names and positions of the
        polymorphic arguments that are lists.
    """
    generic = [catalog.type(each.type).kind == "pseudo" for each in function.inputs]
    if not any(generic):
        return "", frozenset()
    values: dict[str | int, Any] = {}
    for at, argument in enumerate(function.inputs):
        if generic[at]:
            if at < len(given.positional):
                values[at] = given.positional[at]
            elif argument.name in given.named:
                values[argument.name] = given.named[argument.name]
    leaves = [leaf for value in values.values() for leaf in _leaves(value)]
    lists = frozenset(key for key, value in values.items() if isinstance(value, list | tuple))
    return _common([_type_of(leaf) for leaf in leaves]), lists


def _leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value if depth < DIMENSIONS else ():
            yield from _leaves(each, depth + 1)
    elif value is not None:
        yield value


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        fits = (at for at, most in enumerate((2**31, 2**63)) if -most <= value < most)
        return INTEGERS[next(fits, 2)]
    if isinstance(value, float):
        return "float8"
    if isinstance(value, Mapping):
        return "jsonb"
    return "bytea" if isinstance(value, bytes) else "text"


def _common(types: list[str]) -> str:
    found = set(types)
    if len(found) == 1:
        return types[0]
    if found and found <= set(INTEGERS):
        return max(found, key=INTEGERS.index)
    if found and found <= {*INTEGERS, "float8"}:
        return "numeric" if "numeric" in found else "float8"
    return "text"
