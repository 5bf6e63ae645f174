"""
Calls of database functions, and which overload is meant by the arguments.

An overload is chosen by argument names first, then by how closely the values fit their types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.catalog import Argument, Catalog, Function, Type
from service.datatypes import with_form
from service.errors import InvalidArgument, UnknownName
from service.request.arguments import IDEMPOTENCY_KEY, RECEIPT, Arguments, Values, opened
from service.request.read_request import Parsed, digest_of, parse_form
from service.request.requests import AggregateRequest, FindRequest, Form, Operand

Request = TypeVar("Request", FindRequest, AggregateRequest)
OPTIONS = ("form", "max_affected", "timeout", IDEMPOTENCY_KEY, RECEIPT)
ARGS = "args"


@dataclass(frozen=True, slots=True)
class Given:
    """
    What a call gives a function.

    Args:
        positional: Values by position.
        named: Values by name.
        path: What stands before the names in the call.
    """

    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    path: str = ""


@dataclass(frozen=True, slots=True)
class CallRequest:
    """
    A call of a function.

    Args:
        function: Which one.
        positional: What is given by position.
        named: What is given by name, in the order of the names.
        generic: The name of the type that stands for the polymorphic ones, if there are any.
        lists: Names and positions of what is given as a list for those.
        form: Of rows in the answer.
        max_affected: How many rows may come back.
        receipt: Whether the transaction's id is answered, too.
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
class CalledRequest(Generic[Request]):
    """A request for rows, and the function that returns them."""

    call: CallRequest
    of: Request


def parse_call(
    functions: Sequence[Function],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    catalog: Catalog,
) -> Parsed[CallRequest]:
    """
    Parse a plain call: all keywords are the function's, but the options of the call.

    Args:
        functions: Those of the name.
        args: By position.
        kwargs: By name.
        catalog: For the types of arguments.
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
) -> Parsed[CalledRequest[Request]]:
    """
    Parse a call of a verb on a function's rows; what the function is given stands in `args`.

    Args:
        functions: Those of the name.
        args: By position: they are the function's.
        kwargs: By name: they are the verb's.
        catalog: For the types of arguments.
        parse: Parses the arguments of the verb; takes them and a name of the rows.
    """
    rest = {name: value for name, value in kwargs.items() if name != ARGS}
    given = _given(args, {}, kwargs.get(ARGS), f"{ARGS}.")
    # the rows of other arguments are another query
    home = f"{functions[0].schema}.fn.{functions[0].name}"
    query = f"{home} {digest_of(given.positional, sorted(given.named.items()))}"
    try:
        parsed = parse(rest, query)
    except InvalidArgument as refusal:
        _explain(refusal, functions, args, rest)
        raise
    values = Values(parsed.values)
    call = bind_call(functions, given, values, catalog)
    request = CalledRequest(call, parsed.request)
    return Parsed(
        request, values.freeze(), parsed.timeout, parsed.query, parsed.offset, parsed.reached
    )


def bind_call(
    functions: Sequence[Function],
    given: Given,
    values: Values,
    catalog: Catalog,
    form: Form = "dicts",
    max_affected: int | None = None,
    receipt: bool = False,
) -> CallRequest:
    """Build the request for the overload that arguments mean; they join the values of the call."""
    function = resolve_overload(functions, given, catalog)
    generic, lists = polymorphic_type(function, given, catalog)
    return CallRequest(
        function,
        tuple(Operand(values.add(each), f"{at}") for at, each in enumerate(given.positional)),
        tuple(
            (name, Operand(values.add(given.named[name]), f"{given.path}{name}"))
            # Sorted, so that calls which differ in the order of names have one kept statement.
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
    """Return the function's arguments, and the options of the call."""
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


def _given(args: Sequence[Any], named: Mapping[str, Any], apart: Any, path: str = "") -> Given:
    """Parse what a function is given: by position, by name, or `apart` from a verb's arguments."""
    # All of it are values.
    args, named, apart = tuple(map(opened, args)), _opened(named), opened(apart)
    if apart is None:
        return Given(args, named, path)
    if isinstance(apart, list | tuple):
        if args:
            raise InvalidArgument("values by position are given twice", path=ARGS)
        return Given(tuple(apart), named)
    if not isinstance(apart, Mapping) or not all(isinstance(name, str) for name in apart):
        raise InvalidArgument(
            '"args" is a dict of names and values, or a list of values', path=ARGS
        )
    return Given(args, apart, f"{ARGS}.")


def _opened(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: opened(value) for name, value in named.items()}


def _explain(
    refusal: InvalidArgument,
    functions: Sequence[Function],
    args: Sequence[Any],
    rest: Mapping[str, Any],
) -> None:
    """Add to a refusal which arguments are the function's, and which the verb's."""
    path = refusal.details.get("path")
    if isinstance(refusal, UnknownName):
        if path in rest and any(path in function.names for function in functions):
            refusal.details["hint"] = f'arguments of the function go into "{ARGS}"'
    elif args and path == "measures" and path not in rest:
        refusal.details.setdefault(
            "hint", "by position go arguments of the function, those of the verb by name"
        )


def resolve_overload(functions: Sequence[Function], given: Given, catalog: Catalog) -> Function:
    """
    Return the overload that arguments mean.

    The one that leaves least to defaults is meant, as in PostgreSQL. Of several that take the
    same names, it is the one whose types go at least as well with every value as those of any
    other.

    Raises:
        InvalidArgument: None takes these arguments, or several do; `candidates` names them.
    """
    fitting = [each for each in functions if _fits(each, given)]
    if not fitting:
        raise _misfit(functions, given, catalog)
    fewest = min(_left_out(each, given) for each in fitting)
    found = [each for each in fitting if _left_out(each, given) == fewest]
    closest = found if len(found) == 1 else _closest(found, given, catalog)
    if len(closest) != 1:
        raise InvalidArgument(
            f'several functions "{found[0].name}" take these arguments',
            candidates=[signature(each, catalog) for each in found],
            hint="an overload is chosen by the names of arguments, then by the types of their values",
        )
    return closest[0]


def signature(function: Function, catalog: Catalog) -> str:
    """Return what a function takes: "add(a integer, [b integer])", brackets for a default."""
    parameters = []
    for at, each in enumerate(function.inputs, 1):
        word = f"{each.name or f'${at}'} {catalog.type(each.type).sql}"
        parameters.append(f"[{word}]" if each.has_default else word)
    return f"{function.name}({', '.join(parameters)})"


def _closest(functions: Sequence[Function], given: Given, catalog: Catalog) -> list[Function]:
    """Return the functions to whose types no value is closer in another one."""
    distances = [
        [
            distance(value, catalog.type(argument.type), catalog)
            for argument, value in _paired(each, given)
        ]
        for each in functions
    ]
    least = [min(column) for column in zip(*distances, strict=True)]
    return [each for each, far in zip(functions, distances, strict=True) if far == least]


def _paired(function: Function, given: Given) -> Iterator[tuple[Argument, Any]]:
    """Return each value with its argument, in the order of the call."""
    yield from zip(function.inputs, given.positional, strict=False)
    by_name = {each.name: each for each in function.inputs}
    for name, value in given.named.items():
        yield by_name[name], value


def _fits(function: Function, given: Given) -> bool:
    unnamed, inputs = function.unnamed, function.inputs
    by_position = len(given.positional)
    if by_position > unnamed or not given.named.keys() <= function.names:
        return False
    # what stands before an unnamed argument must be given, in one way or the other
    first = {each.name for each in inputs[:by_position] if each.name}
    if first & given.named.keys():
        return False
    return all(
        each.has_default or (each.name and each.name in given.named)
        for each in inputs[by_position:]
    )


def _left_out(function: Function, given: Given) -> int:
    return len(function.inputs) - len(given.positional) - len(given.named)


def _misfit(functions: Sequence[Function], given: Given, catalog: Catalog) -> InvalidArgument:
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
FLOATS = tuple(sorted(DECIMALS, key="float8".__ne__))  # the first is the one closest to Python's
SPELLED, GENERIC, DOCUMENT, FAR = 10, 20, 30, 99
"""A string, which may spell a value of any type; what takes anything; JSON; all others."""


def distance(value: Any, type: Type, catalog: Catalog) -> int:
    """Return how far a value is from a type: 0 is its own, `FAR` one that has other forms."""
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
    """Return the largest distance of a list's items; a list among them is a further dimension."""
    if not isinstance(value, list | tuple):
        return FAR
    plain = (each for each in value if not isinstance(each, list | tuple))
    return max((distance(each, element, catalog) for each in plain), default=0)


def _own(value: Any) -> tuple[str, ...]:
    """Return the names of the types that a value is a form of, the closest first."""
    # Before int, of which bool is a subclass.
    if isinstance(value, bool):
        return with_form("boolean")
    if isinstance(value, int):
        # Beyond int4 it is taken for the second of them, int8.
        return (*(INTEGER_RANGES if -(2**31) <= value < 2**31 else INTEGER_RANGES[1:2]), *DECIMALS)
    if isinstance(value, float):
        return (*FLOATS, *(INTEGER_RANGES if value.is_integer() else ()))
    if isinstance(value, bytes | bytearray | memoryview):
        return with_form("binary")
    return with_form("hstore") if isinstance(value, Mapping) else ()


DIMENSIONS = 6
"""Of an array, at most (PostgreSQL's MAXDIM)."""

INTEGERS = ("int4", "int8", "numeric")


def polymorphic_type(
    function: Function, given: Given, catalog: Catalog
) -> tuple[str, frozenset[str | int]]:
    """
    Return the one type of all that is given for polymorphic arguments.

    Args:
        function: The one that is called.
        given: What it is given.
        catalog: For the types of arguments.

    Returns:
        The name of the type, empty if nothing is polymorphic; and the names and positions
        of what is given as a list.
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
