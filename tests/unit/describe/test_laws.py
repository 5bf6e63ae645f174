"""
Properties of `describe`: arguments that a verb accepts match its schema, for generated arguments.
"""

from __future__ import annotations

from functools import cache, partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from twisted.internet.testing import MemoryReactorClock

from service import errors
from service.api.dispatcher import Dispatcher
from service.api.verbs import VERBS
from service.db.codec import Codec
from service.db.database import Database
from service.db.pool import PgPool
from service.describe.document import describe, errors_by_procedure, shared
from service.describe.json_schema import Definitions
from service.describe.json_schema import given as given_for
from service.errors import DETAILS, InvalidArgument
from service.request.arguments import IDEMPOTENCY_KEY, idempotency_key_of
from service.request.read_request import (
    Limits,
    check_format,
    parse_aggregate,
    parse_chunk,
    parse_count,
    parse_find,
    parse_format,
    parse_get,
    parse_unpaged,
    parse_watch_options,
    parse_watched,
)
from service.request.write_request import (
    parse_create,
    parse_delete,
    parse_import,
    parse_update,
    parse_update_rows,
    parse_upsert,
)
from tests.amounts import amount
from tests.db.described import Described
from tests.unit.samples import catalog

LIMITS = Limits()


def parse_stream(args, kwargs):
    """Parse the arguments of `stream`."""
    _, rest = parse_chunk(kwargs)
    return parse_unpaged(args, rest, LIMITS, "x")


def parse_export(args, kwargs):
    """Parse the arguments of `export`."""
    format, rest = parse_format(kwargs)
    check_format(format, parse_stream(args, rest).request.embeds)


def parse_any_update(args, kwargs):
    """Parse the arguments of `update`."""
    (parse_update_rows if "rows" in kwargs else parse_update)(args, kwargs, LIMITS)


def parse_watch(args, kwargs):
    """Parse the arguments of `watch`."""
    _, rest = parse_watch_options(kwargs)
    parse_watched(args, rest, LIMITS, "x", 100)


PARSERS = {
    "get": partial(parse_get, limits=LIMITS),
    "find": partial(parse_find, limits=LIMITS, relation="x"),
    "count": partial(parse_count, limits=LIMITS),
    "exists": partial(parse_count, limits=LIMITS),
    "stream": parse_stream,
    "export": parse_export,
    "watch": parse_watch,
    "aggregate": partial(parse_aggregate, limits=LIMITS),
    "create": partial(parse_create, limits=LIMITS),
    "upsert": partial(parse_upsert, limits=LIMITS),
    "update": parse_any_update,
    "delete": partial(parse_delete, limits=LIMITS),
    "import": parse_import,
}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 4),
    st.sampled_from([2**31, 2**63, 2**64, 1.0, 1.5, -0.5, 1e300]),
    st.sampled_from(["", "a", "-a", "a:b", "a->b", "*", "first", "one", "csv", "exact", "lists"]),
    st.sampled_from(
        ["not null", "12", " 7 ", "true", "sad", "[1,2)", "{1}", "(1)", "empty", "x" * 9]
    ),
)
KEYS = st.sampled_from(
    [
        *("a", "b.c", "and", "or", "not", "eq", "gt", "in", "any", "between", "is", "fts", "query"),
        *("config", "column", "as", "cast", "by", "desc", "nulls", "relation", "via", "direction"),
        *("select", "where", "order", "limit", "embed", "inner", "measures", "group", "count"),
        *(
            "sum",
            "distinct",
            "separator",
            "$default",
            "$value",
            "$add",
            "$append",
            "$remove",
            "$merge",
            "$nothing",
            "like",
            "has_any",
            "cs",
            "isdistinct",
            "length",
            "starts",
            "jsonpath",
            "",
            "$column",
            "args",
            "trunc",
            "rank",
            "near",
        ),
    ]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda each: st.one_of(st.lists(each, max_size=3), st.dictionaries(KEYS, each, max_size=3)),
    max_leaves=8,
)
COLUMN = st.sampled_from(["a", "b", "c.d", "a->b", "a::int"])
ARGS = st.dictionaries(COLUMN, SCALARS, max_size=2) | ANYTHING
TRUNC = {"trunc": st.sampled_from(["day", "minutes", None]), "zone": SCALARS, "args": ARGS}
ITEM = COLUMN | st.fixed_dictionaries(
    {"column": COLUMN}, optional={"as": SCALARS, "cast": SCALARS, **TRUNC}
)
KEY = COLUMN | st.fixed_dictionaries(
    {"by": COLUMN},
    optional={"desc": SCALARS, "rank": SCALARS, "config": SCALARS, "near": ANYTHING, **TRUNC},
)
WHERE = st.dictionaries(
    COLUMN,
    st.one_of(
        SCALARS,
        st.dictionaries(COLUMN, SCALARS, max_size=2),
        st.lists(SCALARS, max_size=2),
        st.dictionaries(
            st.sampled_from(
                [
                    "eq",
                    "gt",
                    "in",
                    "is",
                    "not",
                    "fts",
                    "between",
                    "like",
                    "cs",
                    "length",
                    "ends",
                    "jsonpath",
                    "args",
                ]
            ),
            ANYTHING,
            min_size=1,
            max_size=2,
        ),
        st.fixed_dictionaries(
            {"args": ARGS}, optional={"eq": SCALARS, "not": ANYTHING, "in": ANYTHING, "b": SCALARS}
        ),
    ),
    max_size=2,
)
MEASURES = st.dictionaries(
    COLUMN,
    st.fixed_dictionaries(
        {}, optional={"count": COLUMN, "sum": COLUMN, "where": WHERE, "distinct": SCALARS}
    )
    | st.fixed_dictionaries(
        {"percentile": COLUMN, "fraction": SCALARS}, optional={"discrete": SCALARS, "where": WHERE}
    )
    | st.fixed_dictionaries(
        {"array_agg": COLUMN}, optional={"order": ANYTHING, "distinct": SCALARS}
    ),
    max_size=2,
)
ROW = st.dictionaries(COLUMN, SCALARS, min_size=1, max_size=2)
LIKELY = {
    "where": WHERE,
    "having": WHERE,
    "measures": MEASURES,
    "select": st.lists(ITEM, max_size=3),
    "group": st.lists(ITEM, max_size=3),
    "order": st.lists(KEY, max_size=3),
    "embed": st.dictionaries(
        COLUMN,
        st.one_of(
            st.just(True),
            st.fixed_dictionaries(
                {},
                optional={"select": ANYTHING, "where": WHERE, "inner": SCALARS, "limit": SCALARS},
            ),
        ),
        max_size=2,
    ),
    "values": st.one_of(ROW, st.lists(ROW, max_size=2)),
    "changes": ROW
    | st.dictionaries(COLUMN, st.dictionaries(KEYS, SCALARS, max_size=2), max_size=2),
    "expect": ROW,
    "rows": st.lists(ROW, max_size=2),
    "key": st.integers(1, 9),
    "keys": st.lists(st.integers(1, 9) | ROW, max_size=3),
    "all": st.booleans(),
    "by": st.lists(COLUMN, max_size=2),
    "limit": SCALARS,
    "skip_locked": st.booleans(),
}


@cache
def described() -> Described:
    """Return the definitions that all descriptions share."""
    return Described({"$defs": shared(VERBS)})


def takes(verb, kwargs):
    """Return whether a verb's parser accepts these arguments."""
    try:
        idempotency_key_of(kwargs.get(IDEMPOTENCY_KEY))  # as the dispatcher does
        PARSERS[verb]((), kwargs)
    except InvalidArgument:
        return False
    return True


def faults(verb, kwargs):
    """Return the validation errors of arguments by the schema of a verb."""
    schema = {"$ref": f"#/$defs/arguments.{verb}"}
    return list(described().validator(schema, verb).iter_errors(kwargs))


def database():
    """Return a database without connections."""
    reactor = MemoryReactorClock()
    return Database(PgPool("", reactor), reactor)


def test_verbs_of_the_service_are_all_tested():
    """This module tests each verb."""
    assert VERBS.keys() == PARSERS.keys(), "PARSERS of this module lacks the parser of a verb"
    assert VERBS.keys() == Dispatcher(database(), LIMITS, 1).verbs.keys()


@settings(max_examples=amount(100, 500), deadline=None)
@given(verb=st.sampled_from(list(PARSERS)), data=st.data())
def test_argument_that_is_taken_is_described(verb, data):
    """Accepted arguments match the schema; so arguments that do not match are refused."""
    names = sorted(VERBS[verb].arguments["properties"])
    needed = VERBS[verb].arguments.get("required", [])
    chosen = data.draw(st.lists(st.sampled_from([*names, "nonsense"]), max_size=4, unique=True))
    kwargs = {
        name: data.draw(st.one_of(LIKELY.get(name, SCALARS), SCALARS, ANYTHING), label=name)
        for name in dict.fromkeys([*needed, *chosen])
    }
    if takes(verb, kwargs):
        assert not faults(verb, kwargs)


@pytest.mark.parametrize(
    ("verb", "kwargs"),
    [
        ("get", {}),
        ("get", {"key": 1, "where": {}}),
        ("get", {"key": 1, "keys": [1]}),
        ("get", {"keys": 1}),
        ("get", {"keys": None}),
        ("find", {"nonsense": 1}),
        ("find", {"limit": "3"}),
        ("find", {"limit": -1}),
        ("find", {"limit": 1.5}),
        ("find", {"limit": True}),
        ("find", {"offset": 2**63}),
        ("find", {"form": "csv"}),
        ("find", {"count": "some"}),
        ("find", {"after": 7}),
        ("find", {"timeout": 0}),
        ("find", {"timeout": "1"}),
        ("find", {"distinct": []}),
        ("find", {"distinct": 1}),
        ("find", {"select": [1]}),
        ("find", {"select": [{"as": "x"}]}),
        ("find", {"select": [{"column": "a", "x": 1}]}),
        ("find", {"select": ["a"] * 1001}),
        ("find", {"order": [{"by": "a", "nulls": "middle"}]}),
        ("find", {"order": ["a"] * 65}),
        ("find", {"order": [{"by": "a", "args": 1}]}),
        ("find", {"order": [{"by": "a", "trunc": "days"}]}),
        ("find", {"select": [{"column": "a", "args": [1]}]}),
        ("find", {"select": [{"column": "a", "args": {"": 1}}]}),
        ("find", {"where": {"a": {"args": {"x": 1}, "gt": None}}}),
        ("find", {"where": {"a": {"args": {"": 1}, "gt": 1}}}),
        ("find", {"where": []}),
        ("find", {"where": {"a": {"has_any": [None]}}}),
        ("find", {"where": {"a": {"b": {"in": 1}}}}),
        ("find", {"where": {"a": {"not": {"b": {"gt": None}}}}}),
        ("find", {"where": {"a": {"or": {"b": 1}}}}),
        ("find", {"where": {"a": {"in": 1}}}),
        ("find", {"where": {"a": {"gt": None}}}),
        ("find", {"where": {"a": {"is": 1}}}),
        ("find", {"where": {"a": {"between": [1]}}}),
        ("find", {"where": {"a": {"between": [1, None]}}}),
        ("find", {"where": {"a": {"fts": {"config": "english"}}}}),
        ("find", {"where": {"a": {"starts": 1}}}),
        ("find", {"where": {"a": {"icontains": {"all": ["a", None]}}}}),
        ("find", {"where": {"a": {"jsonpath": None}}}),
        ("find", {"where": {"or": {"a": 1}}}),
        ("find", {"where": {"not": [{"a": 1}]}}),
        ("find", {"where": {"and": [{"or": [{"a": {"not": {"like": None}}}]}]}}),
        ("find", {"where": {"": 1}}),
        ("find", {"embed": {"a": False}}),
        ("find", {"embed": {"a": {"limits": 1}}}),
        ("find", {"embed": {"a": {"embed": {"b": {"inner": "yes"}}}}}),
        ("find", {"embed": {"a": {"direction": "both"}}}),
        ("stream", {"chunk": 0}),
        ("stream", {"after": "x"}),
        ("export", {"form": "lists"}),
        ("export", {"format": "xml"}),
        ("count", {"limit": 1}),
        ("exists", {"select": ["a"]}),
        ("aggregate", {}),
        ("aggregate", {"measures": {"n": {}}}),
        ("aggregate", {"measures": {"n": {"count": "*", "sum": "a"}}}),
        ("aggregate", {"measures": {"n": {"median": "a"}}}),
        ("aggregate", {"measures": [{"count": "*"}]}),
        ("update", {"key": 1}),
        ("update", {"key": 1, "changes": {}, "where": {"a": 1}}),
        ("update", {"changes": {}, "where": {"a": 1}, "expect": {"a": 1}}),
        ("delete", {"where": {"a": 1}, "all": 1}),
        ("upsert", {"values": {}, "on_conflict": []}),
        ("create", {"values": {}, "on_conflict": ["a"]}),
        ("create", {"values": {}, "where": {"a": 1}}),
        ("upsert", {"values": {}, "where": "a = 1"}),
        ("create", {"values": {}, "returning": 0}),
        ("import", {"rows": {}}),
        ("import", {"rows": [], "columns": []}),
        ("import", {"csv": 1}),
    ],
)  # fmt: skip
def test_argument_not_described_is_refused(verb, kwargs):
    """The schemas are not trivially true."""
    assert faults(verb, kwargs)
    assert not takes(verb, kwargs)


@pytest.mark.parametrize(
    ("verb", "kwargs"),
    [
        ("find", {"select": "id", "order": "-id", "distinct": "id"}),
        ("find", {"order": {"by": "id"}, "select": {"column": "id"}}),
        (
            "find",
            {"order": [{"by": "f", "args": {"x": 1}}], "select": [{"column": "f", "args": None}]},
        ),
        ("find", {"where": {"f": {"args": {"x": None}, "not": {"gt": 1}}}}),
        ("find", {"where": {"r": {"args": {"gt": 1}}, "s": {"args": 1, "eq": 2}}}),
        ("aggregate", {"measures": {"n": {"count": "*"}}, "group": "id"}),
        ("upsert", {"values": {"id": 1}, "on_conflict": "id", "update": "a"}),
    ],
)
def test_item_in_place_of_a_list_is_taken(verb, kwargs):
    assert takes(verb, kwargs)
    assert not faults(verb, kwargs)


@pytest.mark.parametrize("verb", PARSERS)
def test_positional_arguments_beyond_those_named_are_refused(verb):
    """Only the documented number of positional arguments is accepted."""
    many = len(VERBS[verb].positional)
    takes = f"takes {many or 'no'} positional argument{'s'[many == 1 :]}, got 9"
    with pytest.raises(InvalidArgument, match=takes):
        PARSERS[verb](range(9), {})


@settings(max_examples=amount(60, 300), deadline=None)
@given(type=st.sampled_from(list(catalog().types.values())), value=ANYTHING)
def test_value_that_the_codec_takes_fits_its_schema(type, value):
    """A value that the codec accepts for a type matches the type's schema."""
    held = catalog()
    defs = Definitions(held, shared(VERBS))
    schema = given_for(defs, type, nullable=True)
    try:
        Codec(held).encode(type, value, "value")
    except InvalidArgument:
        return
    if type.kind == "enum" and isinstance(value, str) and value not in type.labels:
        return  # PostgreSQL refuses it
    assert not Described({"$defs": defs.finish()}).faults(schema, value)


ANSWERED = [
    ("stream", {"rows": 1}, ["rows"]),
    ("stream", {"rows": 1, "columns": ["id"]}, ["rows"]),
    ("export", {"rows": 1, "bytes": 9}, ["rows", "bytes"]),
    ("import", {"rows": 1}, ["rows"]),
    ("import", {"upload": "x"}, ["upload"]),
]
SHARED = [
    ("lists", {"columns": ["id"], "rows": [[1]]}),
    ("affected", {"affected": 1}),
    ("written", {"rows": [], "affected": 0}),
    ("page", {"rows": [], "next": None}),
]


@pytest.mark.parametrize(("name", "answer"), SHARED)
def test_answer_lacks_none_of_its_keys(name, answer):
    """Each key of a shared result schema is required; that of find has `next`, too."""
    validator = described().validator({"$ref": f"#/$defs/{name}"}, f"shared.{name}")
    assert validator.is_valid(answer)
    for key in answer:
        assert not validator.is_valid({each: answer[each] for each in answer if each != key})


def test_lists_of_find_have_next():
    validator = described().validator({"$ref": "#/$defs/result.find"}, "result.find")
    lists = {"columns": ["id"], "rows": [[1]]}
    assert validator.is_valid({**lists, "next": None})
    assert not validator.is_valid(lists)


@pytest.mark.parametrize(("verb", "answer", "needed"), ANSWERED)
def test_answer_has_its_keys_and_no_others(verb, answer, needed):
    """A result with a missing key or an additional one does not match its schema."""
    validator = described().validator({"$ref": f"#/$defs/result.{verb}"}, f"result.{verb}")
    assert validator.is_valid(answer)
    assert not validator.is_valid({**answer, "other": 1})
    for name in needed:
        assert not validator.is_valid({key: answer[key] for key in answer if key != name})


def test_schema_of_every_part_is_valid():
    """A document is valid JSON Schema (2020-12), and contains all schemas that it refers to."""
    document = describe(catalog(), "rowcast", "1", VERBS, {})
    found = Described(document)
    found.validator({}).check_schema(document)
    references = set(_references(document))
    assert len(references) > 50
    for each in references:
        assert found.resolved({"$ref": each}) is not None


def test_errors_of_any_class_are_described():
    """The description has each error URI and the details that an error may have."""
    assert shared(VERBS)["carried"]["properties"] == DETAILS
    known = {each.uri for each in vars(errors).values() if hasattr(each, "uri")}
    listed = {kind.uri for kinds in errors_by_procedure(VERBS.values()).values() for kind in kinds}
    assert known == listed


def _references(value):
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


EXACT = {
    "count": [3],
    "exists": [True],
    "stream": [{"rows": 3}, {"rows": 3, "columns": ["a"]}],
    "export": [{"rows": 3, "bytes": 5}],
    "import": [{"rows": 3}, {"upload": "x"}],
}
"""Results of verbs that have one or two forms of result."""
WRONG = [None, [], "x", -1, {}, {"rows": -1}, {"rows": "3"}, {"upload": 1}, {"bytes": 5}]


def judge_of(name):
    """Return a validator for a shared schema."""
    return Draft202012Validator({**shared(VERBS)[name], "$defs": shared(VERBS)})


@pytest.mark.parametrize("verb", EXACT)
def test_results_match_their_schema_and_no_others(verb):
    """A result matches; with an additional, missing or differently typed key it does not."""
    judge = judge_of(f"result.{verb}")
    for answer in EXACT[verb]:
        assert judge.is_valid(answer)
        if isinstance(answer, dict):
            assert not judge.is_valid({**answer, "more": 1}), answer
            for key in answer.keys() - {"columns"}:
                assert not judge.is_valid({k: v for k, v in answer.items() if k != key})
    assert [each for each in WRONG if judge.is_valid(each)] == []


@pytest.mark.parametrize("verb", VERBS)
def test_arguments_match_their_schema_and_no_others(verb):
    """A call with an unknown argument does not match."""
    given = {"key": 1, "values": {}, "changes": {}, "measures": {"n": {"count": "*"}}}
    takes = VERBS[verb].arguments
    required = takes.get("required", ())
    assert given.keys() >= {*required}, "`given` of this test lacks a required argument"
    kwargs = {name: given[name] for name in required}
    if verb == "import":  # requires rows, in one of several ways
        kwargs = {"rows": []}
    if verb == "get":
        kwargs = {"key": 1}
    if verb == "update":
        kwargs = {"changes": {}}
    judge = judge_of(f"arguments.{verb}")
    assert judge.is_valid(kwargs)
    assert not judge.is_valid({**kwargs, "mores": 1})
    for name in kwargs:
        assert not judge.is_valid({each: kwargs[each] for each in kwargs if each != name})


@pytest.mark.parametrize(
    ("name", "fits", "does_not"),
    [
        ("affected", [{"affected": 0}], [{}, {"affected": 0, "rows": []}, {"affected": None}]),
        ("written", [{"rows": [], "affected": 0}], [{"rows": []}, {"affected": 0}, {"rows": [1]}]),
        ("lists", [{"columns": ["a"], "rows": [[1]]}], [{"rows": []}, {"columns": [1], "rows": []}]),
        ("page", [{"rows": [], "next": None}, {"rows": [{}], "next": "x", "count": 1}],
         [{"rows": []}, {"next": None}, {"rows": [1], "next": None}]),
        ("progress.stream", [[], [{"a": 1}], [[1]]], [{}, [1]]),
        ("progress.export", ["a,b"], [[], None]),
        ("default", [{"$default": True}], [{}, {"$default": False}, {"$default": True, "a": 1}]),
    ],
)  # fmt: skip
def test_shared_schema_accepts_valid_values_only(name, fits, does_not):
    """Each shared schema of arguments and results matches the valid values and no others."""
    judge = judge_of(name)
    assert [each for each in fits if not judge.is_valid(each)] == []
    assert [each for each in does_not if judge.is_valid(each)] == []


def test_table_of_verbs_has_a_schema_for_each_progressive_result():
    """Verbs with progressive results cannot be operations of a batch."""
    assert {name for name, verb in VERBS.items() if verb.progress} == {"stream", "export", "watch"}
