"""
Keyword arguments of `describe` to what is wanted of the document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.request.arguments import Arguments
from service.request.write import names_of


@dataclass(frozen=True, slots=True)
class Part:
    """
    What is wanted of the document: everything, or, once something is named, that alone.

    Args:
        relations: Names of relations, as in URIs; None for all.
        functions: Names of functions, as in "fn.add"; None for all.
    """

    relations: tuple[str, ...] | None = None
    functions: tuple[str, ...] | None = None


WHOLE = Part()


def parse_describe(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Part, float | None]:
    """Parse the arguments of `describe`; returns the caller's time limit in seconds as well."""
    given = Arguments(args, kwargs, [], ["relations", "functions"])
    relations, functions = given.value("relations"), given.value("functions")
    if relations is None and functions is None:
        return WHOLE, given.timeout()
    part = Part(names_of(relations, "relations"), names_of(functions, "functions"))
    return part, given.timeout()
