"""docs/statements.md: the SQL below each call is what the service sends for it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.api.verbs import VERBS as ALL_VERBS
from service.db.statements import DECLARE
from service.plan.call_plan import plan_call, plan_called
from service.plan.nested_rows import plan_tree
from service.plan.plans import Bound, ReadPlan
from service.plan.read_plan import plan_aggregate, plan_all, plan_count, plan_find, plan_get
from service.plan.returning import plan_answer
from service.plan.update_rows import plan_update_rows
from service.plan.watch_plan import plan_watch
from service.plan.write_plan import plan_create, plan_delete, plan_import, plan_update
from service.request.arguments import Values
from service.request.call_request import parse_call, parse_called
from service.request.read_request import (
    Limits,
    parse_aggregate,
    parse_count,
    parse_find,
    parse_get,
    parse_unpaged,
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
from service.sql.modify import copy_in, modify
from service.sql.saved_rows import call
from service.sql.select import aggregate, count, exists, select
from service.sql.step_sql import answer_statement, step_statement
from tests.unit.samples import demo_catalog

PAGE = Path(__file__).parents[3] / "docs" / "statements.md"
EXAMPLES = re.findall(r"^`(\S[^\n]*)`\n\n```sql\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
CATALOG = demo_catalog()
LIMITS = Limits()


def read(name: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Build the statements of a find, with its count if one is requested."""
    relation = CATALOG.relation("public", name)
    request = parse_find([], kwargs, LIMITS, name).request
    counted = [count(plan_all(CATALOG, relation, request)).text] if request.count else []
    return [select(plan_find(CATALOG, relation, request)).text, *counted]


def streamed(name: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Build the statement of a stream, whose cursor is read by FETCH."""
    request = parse_unpaged([], kwargs, LIMITS, name).request
    plan = plan_find(CATALOG, CATALOG.relation("public", name), request)
    statement = select(replace(plan, keyset=False)).prefixed(DECLARE)
    return statement.text.split(";")


def watched(name: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Build the statement of a watched query."""
    request = parse_watched([], kwargs, LIMITS, name, 10_000).request
    plan = plan_watch(CATALOG, CATALOG.relation("public", name), request).read
    assert isinstance(plan, ReadPlan)
    return [select(plan).text]


def imported(name: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Build the statements of an import of rows."""
    request = parse_import([], kwargs)
    named = [(each, "rows") for each in request.rows[0]]
    relation = CATALOG.relation("public", name)
    copy = copy_in(plan_import(CATALOG, relation, named, False, False, request.conflict))
    found = [copy.before, copy.copy_with_defaults or copy.copy, copy.after]
    return [each for each in found if each]


def called(name: str, args: list[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Build the statement of a function call, or of a find on its rows."""
    name, _, verb = name.partition(".")
    functions = CATALOG.function("public", name)
    if verb != "find":
        return [
            call(
                plan_call(CATALOG, parse_call(functions, args, kwargs, CATALOG).request), 1001
            ).text
        ]
    parsed = parse_called(
        functions, args, kwargs, CATALOG, lambda rest, rows: parse_find([], rest, LIMITS, rows)
    )
    return [select(plan_called(CATALOG, parsed.request, plan_find)).text]


def nested(name: str, args: list[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Build the statements of a nested create."""
    relation, parsed = CATALOG.relation("public", name), parse_create(args, kwargs, LIMITS)
    rows = [(str(at), row) for at, row in enumerate(parsed.request.rows)]
    tree = plan_tree(CATALOG, relation, rows, Values(parsed.values), 8, relation.primary_key)
    returning = replace(parsed.request.returning, embeds=tree.embeds)
    steps = [step_statement(step.plan(CATALOG)).text for step in tree.steps]
    answer = plan_answer(CATALOG, relation, returning, relation.primary_key)
    written = Bound(0, CATALOG.types_by_name["json"], "values")
    return [*steps, answer_statement(relation, answer, written).text]


VERBS: dict[str, tuple[Any, Any, Any]] = {
    "get": (parse_get, plan_get, select),
    "count": (parse_count, plan_count, count),
    "exists": (parse_count, plan_count, exists),
    "aggregate": (parse_aggregate, plan_aggregate, aggregate),
    "create": (parse_create, plan_create, modify),
    "upsert": (parse_upsert, plan_create, modify),
    "update": (parse_update, plan_update, modify),
    "delete": (parse_delete, plan_delete, modify),
}
ROWS = parse_update_rows, plan_update_rows, modify
SEVERAL = {"find": read, "stream": streamed, "watch": watched, "import": imported}


def statements(example: str) -> list[str]:
    """Build the statements of a call written in Python."""
    # "import" is a keyword of Python
    parsed = ast.parse(example.replace(".import(", ".import_("), mode="eval").body
    assert isinstance(parsed, ast.Call)
    args = [ast.literal_eval(each) for each in parsed.args]
    kwargs = {each.arg or "": ast.literal_eval(each.value) for each in parsed.keywords}
    name = ast.unparse(parsed.func).replace("import_", "import")
    if name.startswith("fn."):
        return called(name.removeprefix("fn."), args, kwargs)
    relation, verb = name.split(".")
    if verb in SEVERAL:
        return SEVERAL[verb](relation, kwargs)
    if verb == "create" and "[{" in example.partition("[{")[2]:
        return nested(relation, args, kwargs)
    parse, plan, build = ROWS if "rows" in kwargs else VERBS[verb]
    planned = plan(
        CATALOG, CATALOG.relation("public", relation), parse(args, kwargs, LIMITS).request
    )
    return [build(planned).text]


def plain(sql: str) -> list[str]:
    """Return statements with line breaks replaced by spaces, and without spaces inside of brackets."""
    sql = re.sub(r"\s+", " ", sql)
    sql = re.sub(r"(?<=[(]) | (?=[)])", "", sql)
    return [each.strip() for each in sql.split(";") if each.strip()]


@pytest.mark.parametrize(("example", "sql"), EXAMPLES)
def test_statement_of_the_page_is_what_is_sent(example: str, sql: str) -> None:
    """Line breaks are ignored."""
    assert plain(sql) == plain(";".join(statements(example)))


def test_page_has_every_verb_that_sends_a_statement() -> None:
    """Each verb has an example; a function has two, called alone and as rows."""
    shown = {re.match(r"[\w.]+", example)[0] for example, _ in EXAMPLES}  # type: ignore[index]
    missing = f"{PAGE} has an example of each verb, which VERBS or SEVERAL above builds"
    found = {
        ("fn.find" if name.endswith(".find") else "fn")
        if name.startswith("fn.")
        else name.rpartition(".")[2]
        for name in shown
    }
    # an export has the statement of a stream
    assert found == ALL_VERBS.keys() - {"export"} | {"fn", "fn.find"}, missing
