"""Plans of filters: PostgreSQL's operator, the row that a condition is about, and its operand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.catalog import Catalog, Type
from service.errors import InvalidArgument
from service.plan.clauses import both, plan_filter
from service.plan.plans import BoolExpr, Compare, Condition, Exists, IsTest, Not
from service.plan.scope import Scope
from service.request.arguments import Values
from service.request.filters import FilterParser
from tests.unit.samples import catalog, demo_catalog

SAMPLE, DEMO = catalog(), demo_catalog()


def planned(where: Any, known: Catalog = SAMPLE, name: str = "actions") -> Condition | None:
    """Plan a filter."""
    parsed = FilterParser(Values(), 16).parse(where)
    return plan_filter(Scope(known, known.relation("public", name)), parsed)


def compared(where: Any, known: Catalog = SAMPLE) -> Compare:
    """Plan a filter that is one comparison."""
    found = planned(where, known)
    assert isinstance(found, Compare)
    return found


@pytest.mark.parametrize(
    ("where", "operator", "type"),
    [
        ({"id": {"gte": 1}}, ">=", "integer"),
        ({"action": {"ilike": "a%"}}, "~~*", "text"),
        ({"tags": {"ov": ["a"]}}, "&&", "text[]"),
        ({"span": {"cs": 1}}, "@>", "integer"),
        ({"span": {"cs": "[1,2)"}}, "@>", "int4range"),
        ({"doc": {"has_key": "a"}}, "?", "text"),
        ({"doc": {"has_all": ["a"]}}, "?&", "text[]"),
        ({"raw": {"eq": {"a": 1}}}, "=", "jsonb"),
        ({"doc->>a": {"lt": "x"}}, "<", "text"),
        ({"doc->a": {"eq": 1}}, "=", "jsonb"),
    ],
)
def test_operator_and_its_operand_follow_from_the_column(
    where: Any, operator: str, type: str
) -> None:
    """The operand has the type of the column, of its element, or of the operator's right side."""
    found = compared(where)
    assert (found.operator.name, found.operator.schema) == (operator, "pg_catalog")
    assert found.right.type.sql == type


def test_operator_of_an_extension_is_named_in_its_schema() -> None:
    """A domain is cast to its base type, because an operator of the domain might be preferred."""
    citext = Type(9400, "ext", "citext", "ext.citext", "base", "S")
    email = Type(9401, "public", "email", "public.email", "domain", "S", base=9400)
    relation = SAMPLE.relation("public", "actions")
    column = replace(relation.columns["action"], type=9401)
    known = replace(
        SAMPLE,
        types={**SAMPLE.types, 9400: citext, 9401: email},
        operators={("=", 9400, 9400): "ext"},
        relations={
            ("public", "actions"): replace(relation, columns={**relation.columns, "action": column})
        },
    )
    found = compared({"action": "x"}, known)
    assert (found.operator.schema, found.left.applied) == ("ext", (citext,))
    assert compared({"action": {"gt": "x"}}, known).operator.schema == "pg_catalog"


def test_candidates_are_an_array_of_the_type() -> None:
    """If the type has no array type, they are texts, each cast to it; nulls are a separate test."""
    found = compared({"id": [1, 2]})
    assert (found.quantifier, found.right.type.sql, found.candidate) == ("any", "integer[]", None)
    spans = compared({"span": ["[1,2)"]})
    assert spans.right.type.sql == "text[]"
    assert spans.candidate is not None
    assert spans.candidate.sql == "int4range"
    either = planned({"id": [1, None]})
    assert isinstance(either, BoolExpr)
    assert either.any
    assert [type(each) for each in either.conditions] == [Compare, IsTest]


def test_distinct_from_is_the_negation_of_equal_with_null_like_others() -> None:
    """Unlike IS DISTINCT FROM, this has an operator with an explicit schema."""
    found = planned({"id": {"isdistinct": 1}})
    assert isinstance(found, Not)
    assert isinstance(found.condition, Compare)
    assert found.condition.not_distinct


def test_condition_on_related_rows_is_exists() -> None:
    """By a name before the column, or by a dict; null means that there are none."""
    for where in ({"drivers.name": "Ada"}, {"drivers": {"name": "Ada"}}):
        found = planned(where, DEMO, "vehicles")
        assert isinstance(found, Exists)
        assert found.link.relation.name == "drivers"
        assert (found.link.outer, found.link.source) == ("t", "t1")
    none = planned({"drivers": None}, DEMO, "vehicles")
    assert isinstance(none, Not)
    assert isinstance(none.condition, Exists)
    assert none.condition.condition is None


def test_conditions_on_related_rows_have_an_alias_each() -> None:
    """Two conditions may hold for two different related rows."""
    found = planned({"vehicles.seats": 4, "vehicles.model": "bus"}, DEMO, "drivers")
    assert isinstance(found, BoolExpr)
    sources = [each.link.source for each in found.conditions if isinstance(each, Exists)]
    assert sources == ["t1", "t2"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"drivers": "Ada"}, "is related rows, and no column"),
        ({"seats": {"is": True}}, "only a boolean"),
        ({"seats": {"has_key": "a"}}, "asks for keys of json"),
        ({"seats->a": 1}, "steps into json"),
        ({"seats": {"name": 1}}, "no operator"),
    ],
)
def test_condition_that_does_not_go_with_its_column_is_refused(where: Any, message: str) -> None:
    """The error has the path."""
    with pytest.raises(InvalidArgument, match=message) as refused:
        planned(where, DEMO, "vehicles")
    assert refused.value.details["path"].startswith("where.")


def test_conjunction_of_one_condition_is_that_condition() -> None:
    """A conjunction of none always holds."""
    one = compared({"id": 1})
    assert both(None, None) is None
    assert both(None, one) is one
    assert both(one, one) == BoolExpr(False, (one, one))
    assert planned({}) is None
