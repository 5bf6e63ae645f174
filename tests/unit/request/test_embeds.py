"""The grammar of embeds."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidArgument
from service.request.arguments import Values
from service.request.embeds import MAX_EMBEDS, EmbedParser, default_embed
from service.request.requests import Embed


def parsed(embed: Any, max_depth: int = 2) -> tuple[Embed, ...]:
    """Parse an embed."""
    return EmbedParser(Values(), max_depth, 16).parse(embed)


def test_true_is_all_of_the_related_rows() -> None:
    """As are no options, and as a filter that names them means them."""
    assert parsed({"a": True}) == parsed({"a": {}}) == (default_embed("a", "embed.a"),)
    assert parsed(None) == ()


def test_embed_of_an_embed_has_its_path() -> None:
    """Whatever is refused later is refused with it."""
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
    """What does not follow the grammar, nests too deep or asks for too much."""
    with pytest.raises(InvalidArgument) as refused:
        parsed(embed)
    assert refused.value.details["path"] == path


def test_list_of_names_is_refused_with_the_dict_that_is_meant() -> None:
    """It is what other tools take."""
    with pytest.raises(InvalidArgument) as refused:
        parsed(["a", "b"])
    assert refused.value.details["hint"] == 'as in {"a": true, "b": true}'
