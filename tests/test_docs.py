"""
The README and docs/ agree with the code: names, tables, links and examples.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from configparser import ConfigParser
from http.client import HTTPConnection
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from twisted.internet import reactor

from service import errors, payload
from service.api import import_, write
from service.api.verbs import VERBS
from service.app import Serving
from service.db import json as json_codec
from service.db import literals
from service.describe.document import errors_by_procedure
from service.embedded.crossbar import FILE
from service.request import (
    arguments,
    embeds,
    filters,
    read_request,
    row_values,
    select_list,
)
from service.request.names import RESERVED
from service.settings import Settings, variable
from service.waiting import in_thread
from tests.conftest import ROOT, Router, execute
from tests.db.test_stubs import compiler
from tests.deferreds import until
from tests.wamp import test_clients
from tests.wamp.callers import Caller, join
from tests.wamp.programs import program
from tests.wamp.service import served

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [
    README,
    *sorted(DOCS.glob("*.md")),
    ROOT / "examples/README.md",
    *sorted((ROOT / "examples").glob("*/README.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
]
HERE = "127.0.0.1:8080"
"""The router's address in examples."""

node = test_clients.node


def rows(page: Path, *header: str) -> list[list[str]]:
    """Return the cells of the only table with this header."""
    first = "| " + " | ".join(header).rstrip() + " |\n"
    (after,) = page.read_text("utf-8").split(first)[1:]
    body = after.partition("\n")[2].partition("\n\n")[0]
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body.splitlines()]
    return [[cell.strip().replace("\\|", "|") for cell in line] for line in lines]


def code(page: Path, language: str) -> list[str]:
    """Return the code blocks in a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.DOTALL)
    return [body for name, body in blocks if name == language]


def quoted(cell: str) -> list[str]:
    """Return the texts in backticks."""
    return re.findall(r"`([^`]+)`", cell)


@pytest_twisted.async_yield_fixture(scope="module")
async def service(migrated: str, router: Router) -> AsyncIterator[Serving]:
    """Serve the project's own schema, with the procedure of docs/applications.md."""
    example, _ = code(DOCS / "applications.md", "python")
    module = sys.modules["page"] = ModuleType("page")
    exec(compile(example, "docs/applications.md", "exec"), vars(module))
    try:
        async with served(migrated, router, app=("app", module.__name__)) as serving:
            yield serving
    finally:
        del sys.modules[module.__name__]


@pytest_twisted.async_yield_fixture(scope="module")
async def caller(service: Serving, router: Router) -> AsyncIterator[Caller]:
    session = await join(router, "websocket json")
    yield session
    await session.close()


@pytest.fixture
def actions(service: Serving, migrated: str) -> Iterator[None]:
    """Insert three actions for the examples."""
    execute(migrated, "INSERT INTO actions (action, path) SELECT 'run', '/' || i"
                      " FROM generate_series(1, 3) i")  # fmt: skip
    yield
    execute(migrated, "TRUNCATE actions")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_link_of_a_page_leads_to_an_existing_heading(page: Path) -> None:
    """Links within the project lead to an existing file, and to an existing heading if they have a fragment."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if urlsplit(target).scheme:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_and_errors_that_pages_name_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    settings = {variable(field) for field in Settings.model_fields}
    assert set(re.findall(r"\bROWCAST_[A-Z_]*[A-Z]", text)) <= settings
    uris = {each.uri for each in vars(errors).values() if hasattr(each, "uri")}
    assert set(re.findall(r"(?:rowcast|wamp)\.error\.[a-z_]+", text)) <= uris


def test_settings_of_the_readme_have_the_defaults_of_the_code() -> None:
    fields = {variable(name): field for name, field in Settings.model_fields.items()}
    found = rows(README, "variable", "default", "")
    assert len(found) > 5
    for name, default, _ in found:
        actual = fields[name.strip("`")].default
        if not default.startswith("`"):
            assert actual in (None, ()), name
            continue
        documented = default.strip("`")
        if isinstance(actual, tuple):
            assert documented == ",".join(actual)
        else:
            assert type(actual)(documented) == actual


def test_page_of_filters_has_each_operator_once() -> None:
    named = [name for cell, *_ in rows(DOCS / "filters.md", "operator", "SQL", "operand")
             for name in quoted(cell)]  # fmt: skip
    assert len(named) == len(set(named))
    assert {*named, "not"} == filters.OPERATORS


def test_page_of_procedures_lists_the_reserved_words() -> None:
    text = (DOCS / "procedures.md").read_text("utf-8")
    (listed,) = re.findall(r"word of the service\s+\((.*?)\)", text, re.DOTALL)
    assert set(quoted(listed)) == RESERVED


def test_page_of_the_architecture_lists_packages_in_the_order_of_the_contract() -> None:
    text = (ROOT / "setup.cfg").read_text("utf-8").partition("\nlayers =\n")[2]
    lines = [each.strip() for each in text.partition("\n\n")[0].splitlines()]
    order = [re.sub(r" \| \((\w+)\)", "", each) for each in lines]
    page = (DOCS / "architecture.md").read_text("utf-8")
    assert " › ".join(order) in " ".join(page.split())


def test_modules_that_pages_name_exist() -> None:
    """Except for modules of examples, and the old names in the table of moved modules."""
    for page in PAGES:
        text = re.sub(r"^\| `.*` \|$", "", page.read_text("utf-8"), flags=re.M)
        for name in re.findall(r"`((?:\w+/)+\w+\.py)`", text):
            there = any((folder / name).exists() for folder in (ROOT, ROOT / "service"))
            assert there or name == "schema/depot.py", name


def test_modules_that_the_code_names_exist() -> None:
    """As in `db/pool.py` or `db/pool`: comments and docstrings of the service, and of what stands beside it."""
    packages = "|".join(each.parent.name for each in (ROOT / "service").glob("*/__init__.py"))
    named = re.compile(rf"(?<![\w./])(?:service/)?((?:{packages})/[a-z]\w+)(?!\w|/)")
    found = set[str]()
    for folder in ("app", "bench", "migrations", "router", "schema", "service", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= {*named.findall(path.read_text("utf-8"))}
    assert len(found) > 10
    assert {each for each in found if not (ROOT / "service" / f"{each}.py").exists()} == set()


def test_methods_that_the_architecture_names_exist() -> None:
    methods: set[tuple[str, str]] = set()
    functions: set[str] = set()
    for path in (ROOT / "service").rglob("*.py"):
        for step in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(step, ast.ClassDef):
                methods |= {(step.name, getattr(each, "name", "")) for each in step.body}
            elif isinstance(step, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.add(step.name)
    page = (DOCS / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"\b([A-Z][a-z]\w+)\.(_?[a-z]\w+)", page))
    assert len(named) > 10
    assert named <= methods
    assert set(re.findall(r"\b\w+_txn\b", page)) <= functions


def test_changelog_begins_with_the_version_of_the_package() -> None:
    """Or with Unreleased. Versions are sorted, each with its date."""
    versions = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    if versions[0] == "Unreleased":
        del versions[0]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", each) for each in versions)
    numbers = [[int(n) for n in each.split(" ")[0].split(".")] for each in versions]
    assert numbers == sorted(numbers, reverse=True)
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert versions[0].split(" ")[0] == setup["metadata"]["version"]


def test_changelog_has_plain_lists() -> None:
    """It uses the headings of Keep a Changelog, without empty sections, duplicates and long lines."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    known = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for version in re.split(r"^## .*$", text, flags=re.M)[1:]:
        headings = re.findall(r"^### (.*)$", version, re.M)
        assert headings == [each for each in known if each in headings]
        for body in re.split(r"^### .*$", version, flags=re.M)[1:]:
            assert "\n\n" not in body.strip()
            assert all(line.startswith(("- ", "  ")) for line in body.strip().splitlines())
    entries = re.split(r"^- ", text, flags=re.M)
    assert len(entries) == len(set(entries))
    assert max(map(len, text.splitlines())) <= 110


def test_limits_of_the_page_are_those_of_the_code() -> None:
    settings = {f"`{variable(field)}`" for field in Settings.model_fields}
    found = [cell for _, cell in rows(DOCS / "procedures.md", "what", "at most")]
    firsts = [re.findall(r"[\d,]*\d", each)[0] for each in found if each not in settings]
    numbers = [int(each.replace(",", "")) for each in firsts]
    assert numbers == [
        select_list.MAX_LENGTH,
        arguments.MAX_LISTED,
        select_list.MAX_KEYS,
        select_list.MAX_OWNERS,
        embeds.MAX_EMBEDS,
        filters.MAX_TERMS,
        embeds.MAX_MEASURES,
        read_request.MAX_GROUPS,
        read_request.MAX_GROUPS,
        row_values.MAX_NEW_ROWS,
        read_request.MAX_CHUNK,
        row_values.MAX_REMOVED,
        row_values.MAX_STEPS,
        row_values.MAX_PATHS,
        row_values.MAX_ALL_STEPS,
        write.MAX_VALIDATED,
        import_.MAX_RECORD,
        payload.MAX_DEPTH,
        payload.MAX_DEPTH - payload.ENVELOPE,
        json_codec.MAX_DEPTH,
        literals.MAX_DIMENSIONS,
    ]


def verbs() -> dict[str, tuple[list[set[str]], set[str]]]:
    """Return for each documented verb its argument names by position (a set per row), and all names."""
    found: dict[str, tuple[list[set[str]], set[str]]] = {}
    for verb, taken, _ in rows(DOCS / "procedures.md", "verb", "arguments", "answer"):
        before, _, after = taken.partition("\\*")
        leading, named = ({n.strip() for n in part.split(",")} - {""} for part in (before, after))
        positional, names = found.setdefault(verb.strip("`"), ([], set()))
        positional.append(leading)
        names |= leading | named
    return found


@pytest_twisted.ensureDeferred
async def test_documented_verb_takes_the_documented_arguments(
    service: Serving, caller: Caller
) -> None:
    """It exists, and takes no other arguments."""
    documented = verbs()
    differ = "the table of docs/procedures.md does not have exactly the verbs of the service"
    assert documented.keys() == service.dispatcher.verbs.keys(), differ
    candidates = set().union(*(names for _, names in documented.values()), {"timeout", "nonsense"})
    for verb, (positional, names) in documented.items():
        taken = set()
        for name in candidates:
            message = await complaint(caller, verb, **{name: [[0, 0]]})
            if message != f'no argument "{name}"' and not message.startswith(
                f'"{name}" is for pages'
            ):
                taken.add(name)
        assert taken == names | {"timeout"}, verb
        most = max(map(len, positional))
        message = await complaint(caller, verb, *range(most + 1))
        plural = "s"[most == 1 :]
        assert message == f"takes {most or 'no'} positional argument{plural}, got {most + 1}"


async def complaint(caller: Caller, verb: str, *args: Any, **kwargs: Any) -> str:
    """Return the message with which an invalid call is refused."""
    options = CallOptions(on_progress=lambda *_: None)
    with pytest.raises(ApplicationError) as caught:
        await caller.call(f"rowcast.vehicles.{verb}", *args, **kwargs, options=options)
    return str(caught.value.args[0])


@pytest_twisted.ensureDeferred
async def test_documented_procedures_of_the_service_exist(service: Serving, caller: Caller) -> None:
    """The documented procedures of the service itself are these, and those without arguments answer."""
    named = [quoted(cell)[0] for cell, _ in rows(DOCS / "procedures.md", "procedure", "answer")]
    assert named == [
        "describe(*, relations, functions)",
        "health()",
        "transaction(operations, *, isolation, read_only, dry_run)",
        "stats()",
        "why(relation)",
        "explain(operation)",
        "position()",
        "changes(since, *, relations, limit, form)",
    ]
    await until(lambda: service.feed.epoch)  # until then, `position` is refused
    named.remove("explain(operation)")  # off in this service
    for each in named:
        name, _, taken = each.removesuffix(")").partition("(")
        positional = [arg for arg in taken.partition("*")[0].split(", ") if arg]
        if not positional:
            assert await caller.call(f"rowcast.{name}")
        with pytest.raises(ApplicationError) as caught:
            await caller.call(f"rowcast.{name}", *positional, "one more")
        takes = f"takes {len(positional) or 'no'} positional argument"
        assert caught.value.args[0].startswith(takes), name


def test_test_on_the_page_of_applications_is_that_of_the_example() -> None:
    """The example's test runs on its own. Its setup is at most a dozen lines."""
    _, shown = code(DOCS / "applications.md", "python")
    example = (ROOT / "examples" / "procedure" / "test_desk.py").read_text("utf-8")
    assert shown.strip() == example.partition("\n\n")[2].strip()
    lines = [each for each in shown.splitlines() if each.strip()]
    assert lines.index("        session = service.join()") < 13, lines


@pytest_twisted.ensureDeferred
async def test_example_of_topics_misses_no_change_and_has_none_twice(
    service: Serving, router: Router, migrated: str
) -> None:
    """The page's program receives the changes of its psql session while the service's connection is cut."""
    made: dict[str, Any] = {}
    (shown,) = code(DOCS / "topics.md", "python")
    exec(shown, made)
    (psql,) = code(DOCS / "topics.md", "sql")
    execute(migrated, "INSERT INTO drivers (id, name) OVERRIDING SYSTEM VALUE VALUES (1, 'Grace')")
    changes: list[Any] = []
    await until(lambda: service.feed.leading)
    caller = await join(router, "websocket json")
    await made["follow"](caller, changes.append)
    execute(migrated, psql)
    await until(lambda: changes)
    # Earlier changes arrive too, if no tick had them when the position was read.
    *_, change = changes
    assert (change["op"], change["row"]["name"], change["old"]["name"]) == (
        "update",
        "Ada",
        "Grace",
    )
    for number in range(30):
        execute(migrated, f"UPDATE drivers SET name = 'Ada {number}' WHERE id = 1")
        if number % 10 == 5:
            service.client._transport.abortConnection()
            await until(lambda: not service.client.joined)
            await until(lambda: service.client.joined)
    await until(lambda: changes[-1]["row"]["name"] == "Ada 29")
    names = [change["row"]["name"] for change in changes if change["op"] == "update"]
    assert names == ["Ada", *(f"Ada {number}" for number in range(30))]
    await caller.close()
    execute(migrated, "TRUNCATE drivers CASCADE")


@pytest_twisted.ensureDeferred
async def test_example_of_a_batch_has_the_documented_result(caller: Caller, migrated: str) -> None:
    shown, *_ = code(DOCS / "transactions.md", "python")
    made: dict[str, Any] = {}
    lines = [f"    {line}" for line in shown.replace("await", "return await", 1).splitlines()]
    exec("\n".join(["async def batch(session):", *lines]), made)
    driver, vehicle, page = await made["batch"](caller)
    assert vehicle["driver_id"] == driver["id"]
    assert (page["rows"], page["count"]) == ([vehicle], 1)
    execute(migrated, "TRUNCATE drivers, vehicles")


@pytest_twisted.ensureDeferred
async def test_example_of_an_interactive_transaction_updates_the_row(
    actions: None, caller: Caller, migrated: str
) -> None:
    """It updates the row with a value computed from what it has read."""
    _, shown, *_ = code(DOCS / "transactions.md", "python")
    made: dict[str, Any] = {}
    lines = [f"    {line}" for line in shown.splitlines()]
    exec("\n".join(["async def transact(session):", *lines]), made)
    execute(migrated, "UPDATE actions SET status = false WHERE id = 1")
    await made["transact"](caller)
    assert execute(migrated, "SELECT status FROM actions WHERE id = 1") == [(True,)]


@pytest_twisted.ensureDeferred
async def test_example_of_a_receipt_names_its_transaction(caller: Caller, migrated: str) -> None:
    _, _, shown, _ = code(DOCS / "transactions.md", "python")
    call, read = shown.splitlines()
    made: dict[str, Any] = {}
    exec(f"async def write(session):\n    {call}\n    return {read}", made)
    row, tx = await made["write"](caller)
    assert execute(migrated, "SELECT id, xmin::text FROM vehicles") == [(row["id"], tx)]
    execute(migrated, "TRUNCATE vehicles")


@pytest_twisted.ensureDeferred
async def test_example_of_an_idempotency_key_creates_one_row(
    service: Serving, router: Router, migrated: str
) -> None:
    """Calling it again creates no second row."""
    *_, shown = code(DOCS / "transactions.md", "python")
    first, call = shown.splitlines()
    made: dict[str, Any] = {"uuid4": uuid4}
    exec(first, made)
    exec(f"async def write(session):\n    return {call}", made)
    session = await join(router, "service cbor")
    found = [await made["write"](session) for _ in range(2)]
    await session.close()
    assert found[0] == found[1]
    assert execute(migrated, "SELECT count(*) FROM vehicles") == [(1,)]
    execute(migrated, "TRUNCATE vehicles")


@pytest_twisted.ensureDeferred
async def test_example_of_a_procedure_has_the_documented_result(
    caller: Caller, migrated: str
) -> None:
    """It runs in one transaction."""
    driver = await caller.call("rowcast.drivers.create", {"name": "Ada"})
    plates = ["B-RC 1", "B-RC 2"]
    for plate in plates:
        values = {"plate": plate, "model": "van", "driver_id": driver["id"]}
        await caller.call("rowcast.vehicles.create", values)
    vehicle = await caller.call("rowcast.vehicles.get", {"plate": plates[0]})
    assert vehicle["driver_id"] == driver["id"]
    gone = await caller.call("rowcast.drivers.retire", driver["id"])
    assert gone["id"] == driver["id"]
    assert execute(migrated, "SELECT count(*), count(driver_id) FROM vehicles") == [(2, 0)]
    assert execute(migrated, "SELECT count(*) FROM drivers") == [(0,)]
    with pytest.raises(ApplicationError) as caught:
        await caller.call("rowcast.drivers.retire", driver["id"])
    assert caught.value.error == "rowcast.error.not_found"


def example(page: Path, language: str, router: Router) -> str:
    """Return the only example in a language, with this router's address."""
    (found,) = code(page, language)
    assert HERE in found
    return found.replace(HERE, f"127.0.0.1:{router.port}")


async def printed(environ: dict[str, str], *command: str) -> str:
    """Run a program to its end; return its output."""
    with program({"PATH": os.environ["PATH"], **environ}, *command) as started:
        status = await in_thread(reactor, "example", started.ends, None, 30)
        assert status == 0, started.output
        return started.output


@pytest_twisted.ensureDeferred
async def test_python_of_the_readme_runs_unchanged(
    actions: None, router: Router, tmp_path: Path
) -> None:
    file = tmp_path / "example.py"
    file.write_text(example(README, "python", router), "utf-8")
    environ = {"HOME": str(tmp_path)}
    page, row = re.findall(r"[\[{].*'path': .*", await printed(environ, sys.executable, str(file)))
    assert "'path': '/3'" in page
    assert page.rpartition("] ")[2] != "None", "there is another page"
    assert "'action': 'deploy'" in row
    assert "'status': True" in row


@pytest_twisted.ensureDeferred
async def test_javascript_of_the_readme_runs_unchanged(
    actions: None, node: str, router: Router, tmp_path: Path
) -> None:
    file = tmp_path / "example.js"
    file.write_text(example(README, "js", router), "utf-8")
    environ = {"HOME": str(tmp_path), "NODE_PATH": str(test_clients.NODE / "node_modules")}
    found = await printed(environ, node, str(file))
    assert "path: '/2'" in found
    assert "action: 'run'" in found


def first_example(page: Path, language: str, router: Router) -> str:
    """Return the first example of a page in a language, with this router's address."""
    return code(page, language)[0].replace(HERE, f"127.0.0.1:{router.port}")


@pytest.mark.parametrize("options", [False, True], ids=["plain", "transport options"])
@pytest_twisted.ensureDeferred
async def test_python_of_the_client_kits_prints_each_change(
    options: bool, actions: None, migrated: str, router: Router, tmp_path: Path
) -> None:
    """It prints the number of rows, and prints it again when a row is written."""
    example = first_example(DOCS / "clients.md", "python", router)
    if options:
        (more,) = (each for each in code(DOCS / "clients.md", "python") if "max_retries" in each)
        more = more.replace(HERE, f"127.0.0.1:{router.port}").strip()
        example, times = re.subn(r"^component = .*", lambda _: more, example, flags=re.M)
        assert times == 1
    (tmp_path / "example.py").write_text(example, "utf-8")
    shutil.copy(ROOT / "clients" / "python" / "rowcast.py", tmp_path)
    await follows(migrated, tmp_path, sys.executable, "example.py")


@pytest_twisted.ensureDeferred
async def test_javascript_of_the_client_kits_prints_each_change(
    actions: None, node: str, migrated: str, router: Router, tmp_path: Path
) -> None:
    (tmp_path / "example.mjs").write_text(first_example(DOCS / "clients.md", "js", router), "utf-8")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(test_clients.NODE / "node_modules")
    shutil.copy(ROOT / "clients" / "javascript" / "rowcast.js", tmp_path)
    await follows(migrated, tmp_path, node, "example.mjs")


async def follows(dsn: str, home: Path, *command: str) -> None:
    """Run a program that prints the number of open actions, and check its output while it changes."""
    many = execute(dsn, "SELECT count(*) FROM actions WHERE NOT status")[0][0]
    with program({"PATH": os.environ["PATH"], "HOME": str(home)}, *command) as started:
        await until(lambda: str(many) in started.output.split(), 60)
        execute(dsn, "INSERT INTO actions (action, path) VALUES ('run', '/live')")
        await until(lambda: str(many + 1) in started.output.split(), 60)
    execute(dsn, "DELETE FROM actions WHERE path = '/live'")


@pytest_twisted.ensureDeferred
async def test_curl_of_the_readme_returns_rows(actions: None, router: Router) -> None:
    (command,) = [each for each in code(README, "") if each.startswith("curl")]
    assert f"{HERE}/$(cat .rowcast/{FILE})" in command
    program, flag, header, _, data, body = shlex.split(command.replace("\\\n", ""))
    assert (program, flag, data) == ("curl", "-H", "-d")

    def post() -> Any:
        connection = HTTPConnection("127.0.0.1", router.port, timeout=10)
        name, _, value = header.partition(":")
        connection.request("POST", urlsplit(router.http).path, body, {name: value.strip()})
        answer = json.load(connection.getresponse())
        connection.close()
        return answer

    answer = await in_thread(reactor, "curl", post)
    assert [row["path"] for row in answer["args"][0]["rows"]] == ["/1", "/2"]


DESCRIBING = DOCS / "describing.md"


def test_errors_of_each_verb_on_the_page_are_those_described() -> None:
    text = DESCRIBING.read_text("utf-8")
    every = {uri for uri in re.findall(r"`((?:rowcast|wamp)\.error\.[a-z_]+)`", text)}
    every -= {"rowcast.error.too_large"}
    found: dict[str, set[str]] = {}
    for cell, listed in rows(DESCRIBING, "procedure", "errors"):
        own = {f"rowcast.error.{name}" for name in quoted(listed)}
        names = quoted(cell)
        if "of functions" in cell:
            names = [f"fn.{name}" for name in names]
        named = names or [{"functions": "fn"}.get(cell, "written")]
        found |= dict.fromkeys(named, own)
    found["written"] = set().union(*found.values())
    own_procedures = {"describe", "health", "stats", "transaction.begin", "why", "position"}
    described = errors_by_procedure(VERBS.values())
    differ = f"the table of {DESCRIBING.name} lacks a procedure, or has one too many"
    assert found.keys() == described.keys() - own_procedures, differ
    for verb, kinds in described.items():
        uris = {kind.uri for kind in kinds}
        if verb not in own_procedures:
            assert uris == every | found[verb], verb
        else:
            assert uris <= every | {"rowcast.error.too_large"}


async def output_of_command(dsn: str, *command: str) -> str:
    """Return the output of a command of the service."""
    environ = {"HOME": str(ROOT), "DATABASE_URL": dsn, "ROWCAST_APP": "app"}
    return await printed(environ, sys.executable, "-m", "service", *command)


@pytest_twisted.ensureDeferred
async def test_examples_of_describing_have_the_documented_output(
    service: Serving, caller: Caller, migrated: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """The command writes the same document as the call returns; the page's examples are right."""
    document = json.loads(await output_of_command(migrated, "describe"))
    described = await caller.call("rowcast.describe")
    by_hand = "drivers.retire"  # the procedure on docs/applications.md
    assert described["procedures"].pop(by_hand)["positional"] == ["key"]
    assert document == described
    monkeypatch.chdir(tmp_path)
    Path("api.json").write_text(json.dumps(document))
    judged, parts = code(DESCRIBING, "python")
    capsys.readouterr()
    await in_thread(
        reactor, "example", lambda: exec(compile(judged, "docs/describing.md", "exec"), {})
    )
    documented = re.findall(r"# (True|False)$", judged, re.M)
    assert capsys.readouterr().out.split() == documented
    body = "".join(f"    {line}\n" for line in parts.splitlines())
    space: dict[str, Any] = {}
    exec(f"async def run(session):\n{body}    return names, part", space)
    names, part = await space["run"](caller)
    assert names == document["names"]
    assert part["relations"] == document["relations"]


async def compiled(command: list[str], folder: Path) -> None:
    """Run a compiler in a thread, because the router drops callers whose reactor is blocked."""

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    found = await in_thread(reactor, "compiler", run)
    assert found.returncode == 0, found.stdout


@pytest_twisted.ensureDeferred
async def test_examples_of_typed_clients_compile(migrated: str, tmp_path: Path) -> None:
    """The examples of typed clients compile with the types that the command prints."""
    (tmp_path / "rowcast.ts").write_text(await output_of_command(migrated, "types", "--lang", "ts"))
    (example,) = code(DESCRIBING, "ts")
    declared = "declare const connection: { session: object };\n"
    (tmp_path / "example.ts").write_text(example.replace("\n\n", f"\n\n{declared}", 1))
    options = ["--strict", "--noEmit", "--target", "es2022", "--module", "es2022"]
    tsc = [*compiler(), *options, "--moduleResolution", "bundler", "example.ts"]
    await compiled(tsc, tmp_path)
    (tmp_path / "rowcast.py").write_text(await output_of_command(migrated, "types", "--lang", "py"))
    (example,) = code(DESCRIBING, "py")
    body = "".join(f"    {line}\n" for line in example.splitlines()[2:])
    head = "from rowcast import Caller, Service\n\nasync def use(session: Caller) -> None:\n"
    (tmp_path / "example.py").write_text(head + body)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "example.py"]
    await compiled(mypy, tmp_path)


@pytest_twisted.ensureDeferred
async def test_command_with_role_describes_what_the_role_may_use(migrated: str) -> None:
    execute(migrated, "CREATE ROLE web_anon; GRANT USAGE ON SCHEMA public TO web_anon;"
                      "GRANT SELECT (id, plate) ON vehicles TO web_anon")  # fmt: skip
    try:
        document = json.loads(await output_of_command(migrated, "describe", "--role", "web_anon"))
        assert document["relations"].keys() == {"vehicles"}
        assert document["$defs"]["row.vehicles"]["required"] == ["id", "plate"]
        assert "create" not in document["relations"]["vehicles"]["verbs"]
        typed = await output_of_command(migrated, "types", "--lang", "py", "--role", "web_anon")
        assert "vehicles.create" not in typed
        environ = {"HOME": str(ROOT), "DATABASE_URL": migrated, "PATH": os.environ["PATH"]}
        command = [sys.executable, "-m", "service", "describe", "--role", "nobody_here"]
        with program(environ, *command) as started:
            assert await in_thread(reactor, "command", started.ends, None, 30) == 1
            assert "nobody_here" in started.output
    finally:
        execute(migrated, "DROP OWNED BY web_anon; DROP ROLE web_anon")


@pytest_twisted.ensureDeferred
async def test_example_of_a_live_query_receives_rows_and_a_delta(
    actions: None, caller: Caller, migrated: str
) -> None:
    """It receives the open actions, then a message that one of them has left the result."""
    shown, *_ = code(DOCS / "live.md", "python")
    messages: list[dict[str, Any]] = []
    made = {"session": caller, "CallOptions": CallOptions, "take": messages.append}
    exec(shown, made)
    await until(lambda: messages)
    assert len(messages[0]["rows"]) == 3
    done = messages[0]["rows"][0]["id"]
    execute(migrated, f"UPDATE actions SET status = true WHERE id = {done}")
    await until(lambda: len(messages) > 1)
    assert messages[1]["leave"] == [done]
    made["watching"].addErrback(lambda _: None).cancel()
