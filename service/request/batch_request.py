"""
Parse calls that are arguments: the operations of a batch, with references into earlier results, and the
operation of `explain`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidArgument, UnknownName, clip
from service.request.arguments import (
    BARE,
    IDEMPOTENCY_KEY,
    RECEIPT,
    Arguments,
    flag_of,
    mark_container,
    mark_referenced,
)

ISOLATION = ("read committed", "repeatable read", "serializable")
MAX_OPERATIONS = 1000
"""Operations of one batch: all of them hold one connection."""
REFERENCE = "$ref"
OPERATION = ("call", "args", "kwargs")
OPERATION_NAME, ANALYZE = "operation", "analyze"
"""The argument of `explain`, and its key beside those of an operation."""
# Bounded, because int() raises ValueError for more than 4,300 digits.
_NUMBER = re.compile("0|[1-9][0-9]{0,9}")
_STR = frozenset({str})
KNOWN = ("isolation", "read_only", "dry_run", "inject", IDEMPOTENCY_KEY, RECEIPT)


@dataclass(frozen=True, slots=True)
class Operation:
    """
    One call of a batch.

    Args:
        name: Name of the procedure, without the prefix.
        args: Positional arguments, with references.
        kwargs: Keyword arguments, with references.
        refers: Whether there are any references.
    """

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    refers: bool


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """
    A batch.

    Args:
        operations: The operations, in order.
        isolation: Isolation level; None for the database's default.
        read_only: Whether the transaction is READ ONLY.
        dry_run: Whether it is rolled back at the end.
        failures: Number of attempts to fail with a serialization failure, in development.
        receipt: Whether the result includes the transaction id.
        timeout: The caller's timeout in seconds, if any.
    """

    operations: tuple[Operation, ...]
    isolation: str | None
    read_only: bool
    dry_run: bool
    failures: int
    receipt: bool
    timeout: float | None


def parse_batch(args: Sequence[Any], kwargs: Mapping[str, Any]) -> BatchRequest:
    """
    Parse the arguments of `transaction`.

    Raises:
        InvalidArgument: They are malformed; `path` is the place, `operation` the operation's index.
    """
    given = Arguments(args, kwargs, ["operations"], KNOWN)
    operations = given.required("operations")
    if not isinstance(operations, list | tuple):
        raise InvalidArgument(
            '"operations" is a list',
            path="operations",
            hint='as in [{"call": "relation.create", "args": [{…}]}]',
        )
    if len(operations) > MAX_OPERATIONS:
        raise InvalidArgument(f"a batch has at most {MAX_OPERATIONS} operations", path="operations")
    return BatchRequest(
        tuple(_operation(each, at) for at, each in enumerate(operations)),
        given.choice("isolation", ISOLATION),
        given.flag("read_only"),
        given.flag("dry_run"),
        _failures(given.value("inject")),
        given.flag(RECEIPT),
        given.timeout(),
    )


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """
    A call to explain.

    Args:
        operation: The call.
        analyze: Whether it is run as well, for EXPLAIN ANALYZE.
        timeout: The caller's timeout in seconds, if any.
    """

    operation: Operation
    analyze: bool
    timeout: float | None


def parse_explain(args: Sequence[Any], kwargs: Mapping[str, Any]) -> ExplainRequest:
    """Parse the arguments of `explain`."""
    given = Arguments(args, kwargs, [OPERATION_NAME], [])
    value = given.required(OPERATION_NAME)
    operation = parse_operation(value, OPERATION_NAME, (ANALYZE,))
    path = f"{OPERATION_NAME}.{ANALYZE}"
    return ExplainRequest(operation, flag_of(value.get(ANALYZE), ANALYZE, path), given.timeout())


def _operation(value: Any, at: int) -> Operation:
    try:
        return parse_operation(value, f"operations.{at}")
    except InvalidArgument as error:
        error.details["operation"] = at
        raise


def parse_operation(value: Any, path: str, others: Sequence[str] = ()) -> Operation:
    """
    Parse an operation, {"call": "actions.get", "args": [1]}.

    Args:
        value: The operation, unparsed.
        path: Its path in the call.
        others: Further keys that it may have.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgument("an operation is a dict", path=path)
    for each in _checked_names(value, path):
        if each not in OPERATION and each not in others:
            hint = "what is called takes its arguments, timeout included, from args and kwargs"
            known = (*OPERATION, *others)
            raise UnknownName("key", each, known, "an operation", f"{path}.{each}", hint)
    name, args, kwargs = map(value.get, OPERATION)
    if not isinstance(name, str):
        raise InvalidArgument(
            "an operation names what it calls",
            path=f"{path}.call",
            hint='less the prefix, as in "relation.create"',
        )
    if not isinstance(args, list | tuple | None):
        raise InvalidArgument('"args" is a list', path=f"{path}.args")
    if not isinstance(kwargs, Mapping | None):
        raise InvalidArgument('"kwargs" is a dict', path=f"{path}.kwargs")
    named = _checked_names(kwargs or {}, f"{path}.kwargs")
    return Operation(name, args or (), named, _refers(args) or _refers(named))


def _checked_names(value: Mapping[Any, Any], path: str) -> Mapping[str, Any]:
    if not _STR.issuperset(map(type, value)):
        raise InvalidArgument("the names of arguments are strings", path=path)
    return value


def _failures(inject: Any) -> int:
    if inject is None:
        return 0
    given = inject if isinstance(inject, Mapping) else {}
    many = given.get("serialization_failure")
    if len(given) != 1 or isinstance(many, bool) or not isinstance(many, int) or many < 0:
        raise InvalidArgument(
            '"inject" is how many attempts fail, as in {"serialization_failure": 2}', path="inject"
        )
    return many


def _refers(value: Any) -> bool:
    # Runs for each value of each operation, and isinstance(value, Mapping) is slow: check scalars first.
    if type(value) in BARE:
        return False
    if isinstance(value, Mapping):
        return REFERENCE in value or any(map(_refers, value.values()))
    return isinstance(value, list | tuple) and any(map(_refers, value))


def resolve(value: Any, results: Sequence[Any], path: str) -> Any:
    """
    Return a value with each reference replaced by the value it refers to, marked as data.

    Args:
        value: An argument, any JSON value. `{"$ref": "0.rows.0.id"}` is the `id` of the first row
            in the result of the first operation.
        results: Results of the operations so far.
        path: Path of the value in the call.

    Raises:
        InvalidArgument: A reference is to a later operation, or to nothing.
    """
    if isinstance(value, Mapping):
        if len(value) == 1 and REFERENCE in value:
            return mark_referenced(_referred(value[REFERENCE], results, path))
        return mark_container(
            {name: resolve(each, results, f"{path}.{name}") for name, each in value.items()}
        )
    if isinstance(value, list | tuple):
        return mark_container(
            [resolve(each, results, f"{path}.{at}") for at, each in enumerate(value)]
        )
    return value


def _referred(reference: Any, results: Sequence[Any], path: str) -> Any:
    first, dot, rest = reference.partition(".") if isinstance(reference, str) else ("", "", "")
    if not _NUMBER.fullmatch(first):
        raise InvalidArgument(
            "a reference begins with the number of an operation",
            path=path,
            hint='as in {"$ref": "0.id"}',
        )
    if int(first) >= len(results):
        raise InvalidArgument("a reference is to an operation before its own", path=path)
    found = results[int(first)]
    while dot:
        if isinstance(found, Mapping) and rest in found:  # a name may have dots
            return found[rest]
        name, dot, rest = rest.partition(".")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and _NUMBER.fullmatch(name) and int(name) < len(found):
            found = found[int(name)]
        else:
            raise InvalidArgument(
                f'the result of operation {int(first)} has no "{clip(str(reference))}"',
                path=path,
                hint=f"there is {clip(', '.join(map(str, found)))}"
                if isinstance(found, Mapping)
                else None,
            )
    return found
