"""
`rowcast call`: arguments on the command line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.command import BadArgument, Printer, arguments, call_target, full_uri, login, run_call
from service.wamp.auth import Anonymous, Cryptosign, Ticket


@pytest.mark.parametrize(
    ("words", "args", "kwargs"),
    [
        ((), [], {}),
        (("42",), [42], {}),
        (
            ("-1.5e3", "true", "null", "yes", "2026-11-29", "007", "0x10", "1_0"),
            [-1500.0, True, None, "yes", "2026-11-29", "007", "0x10", "1_0"],
            {},
        ),
        *(
            ((each,), [each], {})
            for each in [
                "~",
                "Null",
                "NULL",
                "on",
                "No",
                "True",
                ".inf",
                ".nan",
                "0x1F",
                "0o17",
                "1_000",
                "+1",
                "01",
                ".5",
                "=",
                "<<",
                "12:30",
                "#1",
                " ",
                "",
            ]
        ),
        (("{f: ~, g: , =: <<, <<: yes}",), [{"f": "~", "g": "", "=": "<<", "<<": "yes"}], {}),
        (("f: ~", "g=~", "h:"), [], {"f": "~", "g": "~", "h": ""}),
        (("1e3", "1E-1", "-0", "{f: null}"), [1000.0, 0.1, 0, {"f": None}], {}),
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
def test_arguments_as_json_or_relaxed_are_read(
    words: tuple[str, ...], args: list[Any], kwargs: dict[str, Any]
) -> None:
    """As JSON or relaxed, positional and by keyword."""
    assert arguments(words, "create") == (args, kwargs)


@pytest.mark.parametrize("verb", ["find", "count", "exists", "stream", "export"])
def test_arguments_of_verb_without_positional_ones_take_json(verb: str) -> None:
    """A dict can only contain keyword arguments there."""
    assert arguments(['{"limit": 2}'], verb) == ([], {"limit": 2})


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("{limit:2}", 'a blank is missing after the colon in "limit:2"'),
        ("where: {a: {b:1}}", 'a blank is missing after the colon in "b:1"'),
        ("limit:2", '"find" takes its arguments by name: limit=2'),
        ("--limit", "no option --limit; an argument of the call is limit=VALUE"),
        ("where.status=true", '"find" takes its arguments by name: limit=2'),
        ("{1: 2}", '"1" is not the name of an argument'),
        ("{a: [1, 2}", "cannot read at character 10: {a: [1, 2}"),
        ("{a: !!python/object:os.system x}", "cannot read at character"),
    ],
)
def test_arguments_that_cannot_be_read_are_refused(word: str, said: str) -> None:
    """The message has the position, or what is missing."""
    with pytest.raises(BadArgument) as refused:
        arguments([word], "find")
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "words",
    [
        ("limit: 2, limit: 3",),
        ('{"limit": 2, "limit": 3}',),
        ("limit: 2", "limit: 3"),
        ("limit=2", "limit=3"),
        ("limit: 2", "limit=3"),
        ("{limit: 2}", "{limit: 3}"),
        ("{limit: 2}", "limit=3"),
        ('where: {limit: 2, "limit": 3}',),
        ("where={and: [{limit: 2, limit: 2}]}",),
    ],
)
def test_argument_given_twice_is_refused(words: tuple[str, ...]) -> None:
    """Check that no value is dropped, also of a key within an argument."""
    with pytest.raises(BadArgument) as refused:
        arguments(words, "find")
    assert str(refused.value) == '"limit" is given twice'


def test_timeout_as_option_and_as_argument_is_refused() -> None:
    """Check that the option does not replace the argument; the reactor does not run before."""
    target = call_target("ws://127.0.0.1:1/ws", "realm1", Anonymous())
    with pytest.raises(BadArgument, match='"timeout" is given twice'):
        run_call(None, target, "rowcast.actions.find", ["timeout=1"], Printer(False), timeout=2)


def test_positional_argument_beside_keywords_is_named() -> None:
    with pytest.raises(BadArgument, match=r"got extra$"):
        arguments(["{limit: 1}", "extra"], "find")


def test_full_uri_takes_names_with_and_without_prefix() -> None:
    """The router's own procedures too."""
    assert full_uri("rowcast", "actions.find") == "rowcast.actions.find"
    assert full_uri("rowcast", "rowcast.actions.find") == "rowcast.actions.find"
    assert full_uri("rowcast", "wamp.session.count") == "wamp.session.count"


@pytest.mark.parametrize(
    "name",
    ["", "actions.", "..", ".actions.find", "actions..find", "a b.find", "a#b.find", "x.find "],
)
def test_name_of_no_procedure_is_refused(name: str) -> None:
    """Before anything is connected."""
    with pytest.raises(BadArgument, match="is not the name of a procedure"):
        full_uri("rowcast", name)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/ws", "foo", "ws://"])
def test_url_of_no_router_is_refused(url: str) -> None:
    """The message has the expected form."""
    with pytest.raises(BadArgument, match="--url should "):
        call_target(url, "realm1", Anonymous())


def test_key_that_cannot_be_read_is_refused() -> None:
    """Before anything is connected."""
    with pytest.raises(BadArgument, match="--key "):
        call_target("ws://h/ws", "realm1", Cryptosign(None, Path("/nonexistent")))


def test_control_characters_in_a_row_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal would interpret them."""
    Printer(table=True).answer([{"a": "x\x1b]0;y\x07", "b": ["\x9b2J"]}])
    Printer(table=False).answer({"a": "\x1b\x9b2J"})
    printed = capsys.readouterr().out
    assert not set(printed) & {"\x1b", "\x07", "\x9b"}
    assert "x\\x1b]0;y\\x07" in printed
    assert json.loads(printed[printed.index("{") :]) == {"a": "\x1b\x9b2J"}


def test_login_uses_the_given_credentials() -> None:
    """Otherwise a router might take the caller for a guest, or one of two secrets would be ignored."""
    assert isinstance(login(None, None, None), Anonymous)
    assert isinstance(login("a", "t", None), Ticket)
    assert isinstance(login(None, None, "file"), Cryptosign)
    with pytest.raises(BadArgument, match="--ticket needs --authid"):
        login(None, "t", None)
    for authid in ("a", ""):
        with pytest.raises(BadArgument, match="--authid needs --ticket"):
            login(authid, None, None)
    with pytest.raises(BadArgument, match="--ticket and --key are two answers"):
        login("a", "t", "file")


ROWS = [
    {"id": 1, "name": "Ada", "tags": ["a"], "at": None},
    {"id": 20, "name": "Bo", "tags": [], "at": "x"},
]


def test_rows_are_printed_as_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Null is empty, other values than strings are JSON, and the rest of the result follows."""
    Printer(table=True).answer({"rows": ROWS, "next": "abc", "count": None})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["id", "name", "tags", "at"]
    assert lines[2:] == [["1", "Ada", '["a"]'], ["20", "Bo", "[]", "x"], ["next:", '"abc"']]


def test_bytes_are_printed_as_wamp_has_them_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """NUL and base64."""
    Printer(table=False).answer({"data": b"\xff"})
    assert capsys.readouterr().out == '{\n  "data": "\\u0000/w=="\n}\n'
