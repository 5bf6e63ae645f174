"""
`rowcast call`: arguments as they stand on the command line.
"""

from __future__ import annotations

from typing import Any

import pytest

from service.command import BadArgument, Printer, arguments, full_uri, login
from service.wamp.login import Anonymous, Cryptosign, Ticket


@pytest.mark.parametrize(
    ("words", "args", "kwargs"),
    [
        ((), [], {}),
        (("42",), [42], {}),
        (
            ("-1.5e3", "true", "null", "yes", "2026-11-29", "007"),
            [-1500.0, True, None, "yes", "2026-11-29", "007"],
            {},
        ),
        (("a:b", "a == b"), ["a:b", "a == b"], {}),
        (("{action: x y, path: /a}",), [{"action": "x y", "path": "/a"}], {}),
        (('{"id": 1, "tags": ["a", "b"]}',), [{"id": 1, "tags": ["a", "b"]}], {}),
        (("[1, 2]",), [[1, 2]], {}),
        (("limit: 2, where: {status: false}",), [], {"limit": 2, "where": {"status": False}}),
        (("limit=2", "order=[-id]"), [], {"limit": 2, "order": ["-id"]}),
        (("7", "status=true"), [7], {"status": True}),
        (('"12"',), ["12"], {}),
        (("name=",), [], {"name": ""}),
    ],
)
def test_arguments_are_read(
    words: tuple[str, ...], args: list[Any], kwargs: dict[str, Any]
) -> None:
    """As JSON or relaxed, positional and by keyword."""
    assert arguments(words, "create") == (args, kwargs)


@pytest.mark.parametrize("verb", ["find", "count", "exists", "stream", "export"])
def test_arguments_of_verb_without_positional_ones_take_json(verb: str) -> None:
    """A dict can only be of keywords there."""
    assert arguments(['{"limit": 2}'], verb) == ([], {"limit": 2})


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("{limit:2}", 'a blank is missing after the colon in "limit:2"'),
        ("where: {a: {b:1}}", 'a blank is missing after the colon in "b:1"'),
        ("{a: [1, 2}", "cannot read at character 10: {a: [1, 2}"),
        ("{a: !!python/object:os.system x}", "cannot read at character"),
    ],
)
def test_arguments_that_cannot_be_read_are_refused(word: str, said: str) -> None:
    """With the place, or what is missing."""
    with pytest.raises(BadArgument) as refused:
        arguments([word], "find")
    assert str(refused.value).startswith(said)


def test_full_uri_takes_names_with_and_without_prefix() -> None:
    """The router's own procedures too."""
    assert full_uri("rowcast", "actions.find") == "rowcast.actions.find"
    assert full_uri("rowcast", "rowcast.actions.find") == "rowcast.actions.find"
    assert full_uri("rowcast", "wamp.session.count") == "wamp.session.count"


def test_login_is_by_what_is_given() -> None:
    """A ticket alone says nobody's name."""
    assert isinstance(login(None, None, None), Anonymous)
    assert isinstance(login("a", "t", None), Ticket)
    assert isinstance(login(None, None, "file"), Cryptosign)
    with pytest.raises(BadArgument, match="--ticket needs --authid"):
        login(None, "t", None)


ROWS = [
    {"id": 1, "name": "Ada", "tags": ["a"], "at": None},
    {"id": 20, "name": "Bo", "tags": [], "at": "x"},
]


def test_rows_are_printed_as_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Null is empty, what is no string is JSON; what stands beside the rows follows."""
    Printer(table=True).answer({"rows": ROWS, "next": "abc", "count": None})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["id", "name", "tags", "at"]
    assert lines[2:] == [["1", "Ada", '["a"]'], ["20", "Bo", "[]", "x"], ["next:", '"abc"']]


def test_bytes_are_printed_as_wamp_has_them_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """NUL and base64."""
    Printer(table=False).answer({"data": b"\xff"})
    assert capsys.readouterr().out == '{\n  "data": "\\u0000/w=="\n}\n'
