"""The grammar of embeds."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidArgument
from service.request.arguments import Values
from service.request.embeds import MAX_EMBEDS, EmbedParser, parse_measures
from service.request.read_request import Limits, Parsed, parse_get
from service.request.requests import Embed, GetRequest


def parsed(embed: Any, max_depth: int = 2) -> tuple[Embed, ...]:
    """Parse an embed."""
    return EmbedParser(Values(), max_depth, 16).parse(embed)


def test_true_is_all_of_the_related_rows() -> None:
    """So is an empty dict, and a filter that names the relationship."""
    assert parsed({"a": True}) == parsed({"a": {}}) == (Embed("a", "embed.a"),)
    assert parsed(None) == ()


def test_embed_of_an_embed_has_its_path() -> None:
    """Later errors name it."""
    (outer,) = parsed({"a": {"embed": {"b": {"where": {"x": 1}, "limit": 2, "inner": True}}}})
    (inner,) = outer.embeds
    assert inner.path == "embed.a.embed.b"
    assert inner.inner
    assert inner.limit is not None
    assert inner.limit.path == "embed.a.embed.b.limit"


@pytest.mark.parametrize(
    ("embed", "path"),
    [
        ("a", "embed"),
        (["a"], "embed"),
        ({1: True}, "embed.1"),
        ({"a": False}, "embed.a"),
        ({"a": {"wher": {}}}, "embed.a.wher"),
        ({"a": {"direction": "up"}}, "embed.a.direction"),
        ({"a": {"via": 1}}, "embed.a.via"),
        ({"a": {"limit": -1}}, "embed.a.limit"),
        ({"a": {"inner": 1}}, "embed.a.inner"),
        ({"a": {"measures": {}}}, "embed.a.measures"),
        ({"a": {"measures": {"n": {"count": "*"}}, "select": ["x"]}}, "embed.a.select"),
        ({"a": {"embed": {"b": {"embed": {"c": True}}}}}, "embed.a.embed.b.embed"),
        ({f"a{at}": True for at in range(MAX_EMBEDS + 1)}, "embed"),
    ],
)
def test_malformed_embed_is_refused_with_its_path(embed: Any, path: str) -> None:
    """Wrong grammar, embeds that nest too deep, and too many of them."""
    with pytest.raises(InvalidArgument) as refused:
        parsed(embed)
    assert refused.value.details["path"] == path


def test_list_of_names_is_refused_with_the_equivalent_dict() -> None:
    """Other tools accept a list."""
    with pytest.raises(InvalidArgument) as refused:
        parsed(["a", "b"])
    assert refused.value.details["hint"] == 'as in {"a": true, "b": true}'


def in_call(embed: Any) -> Parsed[GetRequest]:
    """Parse the call of a `get` with an embed."""
    return parse_get((), {"key": 7, "embed": embed}, Limits())


@pytest.mark.parametrize("embed", [{"a": True}, {"a": {"relation": "b", "inner": True}, "c": {}}])
def test_embed_without_values_is_parsed_once(embed: Any) -> None:
    """The result equals that without the cache."""
    first, second = (in_call(dict(embed)).request.embeds for _ in range(2))
    assert first is second
    assert first == EmbedParser(Values(), Limits().max_embed_depth, Limits().max_depth).parse(embed)


@pytest.mark.parametrize(
    ("embed", "values"),
    [
        ({"a": {"limit": 3}}, (7, 3)),
        ({"a": {"select": "data->>x"}}, (7, "x")),
        ({"a": {"where": {"b": "y"}}}, (7, "y")),
        ({"a": {"embed": {"b": {"limit": 2}}}}, (7, 2)),
    ],
)
def test_embed_adds_its_values_to_each_call(embed: Any, values: tuple[Any, ...]) -> None:
    assert [in_call(embed).values for _ in range(3)] == [values] * 3


@pytest.mark.parametrize(
    "embed", [{"a": {"inner": 1}}, {"a": {"relation": "x" * 999 + "\0"}}, {"": True}]
)
def test_wrong_embed_is_refused_each_time(embed: Any) -> None:
    """Also after one that compares equal: 1 and true are equal, and have the same hash."""
    in_call({"a": {"inner": True}})
    for _ in range(3):
        with pytest.raises(InvalidArgument):
            in_call(embed)


@pytest.mark.parametrize(
    ("measure", "message", "hint"),
    [
        ({"count": "*", "foo": 1}, 'no option "foo"', "one of distinct, separator"),
        ({"foo": 1, "count": "*"}, 'no option "foo"', "one of distinct, separator"),
        ({"count": "*", "distnct": 1}, 'no option "distnct"', 'did you mean "distinct"?'),
        ({"foo": 1}, 'no function "foo"', "one of count, sum"),
        ({"average": "x"}, 'no function "average"', 'did you mean "avg"'),
        ({"distnct": True}, 'no function "distnct"', 'did you mean "distinct"?'),
    ],
)
def test_unknown_key_of_a_measure_is_an_option_beside_a_function(
    measure: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_measures({"n": measure}, Values(), 2)
    assert refused.value.message == message
    assert refused.value.details["hint"].startswith(hint)
    wrong = next(each for each in measure if each not in {"count"})
    assert refused.value.details["path"] == f"measures.n.{wrong}"
