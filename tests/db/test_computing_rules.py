"""
Computed values with the validations of a model, and with the rights of a role.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from service.api.roles import Roles
from service.errors import (
    Conflict,
    InvalidArgument,
    InvalidRow,
    NotAuthorized,
    NotFound,
    TooManyRows,
)
from service.models.model import Model
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE accounts (id int PRIMARY KEY, owner text, balance numeric(10, 2) CHECK (balance < 1000),
    limits int[], doc jsonb, noted text);
CREATE TABLE papers (id int PRIMARY KEY, doc jsonb DEFAULT '"none"', made jsonb);
CREATE ROLE rc_adder; CREATE ROLE rc_blind; CREATE ROLE rc_reader;
GRANT SELECT (id, balance), UPDATE (balance) ON accounts TO rc_adder;
GRANT SELECT (id), UPDATE (balance, doc) ON accounts TO rc_blind;
GRANT SELECT, UPDATE (noted) ON accounts TO rc_reader;
CREATE TABLE owned (id int PRIMARY KEY, owner text DEFAULT 'me', n int DEFAULT 1, secret int DEFAULT 5);
COMMENT ON COLUMN owned.secret IS '@hidden';
GRANT SELECT, UPDATE ON owned TO rc_adder;
ALTER TABLE owned ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON owned TO rc_adder USING (owner = 'me') WITH CHECK (n < 10);
"""
BEFORE_EACH = (
    "TRUNCATE accounts, owned, papers; INSERT INTO accounts (id, owner, balance, doc)"
    " VALUES (1, 'a', 10, '{}'), (2, 'a', 20, '{\"n\": 1}'), (3, 'b', NULL, NULL);"
    " INSERT INTO owned (id, owner) VALUES (1, 'me'), (2, 'me'), (3, 'you')"
)
ROLES = Roles({"adder": "rc_adder", "blind": "rc_blind", "reader": "rc_reader"})
ADDER, BLIND, READER = (Caller(1, name, name, "realm1") for name in ("adder", "blind", "reader"))


class Account(Model):
    """A model that refuses a negative balance and records the new balance."""

    TABLENAME = "accounts"
    SEEN: ClassVar[list[tuple[Any, ...]]] = []

    def beforeUpdate(self) -> None:
        """Record the balance."""
        self.SEEN.append((self.id, self.balance, self.doc))
        if self.balance is not None:
            self.noted = f"{self.balance} by {self.owner}"


def covered(account: Account) -> None:
    """Refuse a balance below zero."""
    if account.balance is not None and account.balance < 0:
        account.errors.add("balance", "is overdrawn")


class Paper(Model):
    """A model that sets a document that looks like an operator."""

    TABLENAME = "papers"
    SEEN: ClassVar[list[Any]] = []

    def beforeCreate(self) -> None:
        """Set the document."""
        self.SEEN.append(getattr(self, "doc", None))
        self.made = {"$default": True}


Account.addValidator(covered)
RULED = pytest.mark.serving(written=(Account, Paper))


@RULED
@pytest_twisted.ensureDeferred
async def test_rules_see_the_value_that_postgresql_computes(db: DirectCaller) -> None:
    """Validations see the value rounded as stored; values set by hooks are written, too."""
    Account.SEEN.clear()
    changes = {"balance": {"$multiply": "1.0001"}, "doc->a": {"$value": {"$add": 1}}}
    row = await db.call("accounts.update", 1, changes)
    assert (row["balance"], row["doc"]) == ("10.00", {"a": {"$add": 1}})
    assert row["noted"] == "10.00 by a"
    (seen,) = Account.SEEN
    assert (seen[0], str(seen[1]), seen[2]) == (1, "10.00", {"a": {"$add": 1}})


@RULED
@pytest_twisted.ensureDeferred
async def test_validations_see_imported_values_without_operators(
    db: DirectCaller, dsn: str
) -> None:
    """Validations see the value inside `$value`; values set by hooks are literal, whatever they look like."""
    Paper.SEEN.clear()
    given = [{"id": 1, "doc": {"$value": {"$add": 1}}}, {"id": 2, "doc": {"$default": True}}]
    await db.call("papers.import", given)
    await db.call("papers.import", csv='id,doc\n3,"{""$default"": true}"\n')
    assert Paper.SEEN == [{"$add": 1}, None, {"$default": True}]
    made = {"$default": True}
    assert execute(dsn, "SELECT doc, made FROM papers ORDER BY id") == [
        ({"$add": 1}, made),
        ("none", made),
        ({"$default": True}, made),
    ]
    refused = await failure_of(db.call("papers.import", [{"id": 4}, {"id": 5, "doc": {"$a": 1}}]))
    assert isinstance(refused, InvalidArgument)
    assert (refused.details["line"], refused.details["path"]) == (2, "rows.1.doc.$a")


@RULED
@pytest_twisted.ensureDeferred
async def test_computed_value_that_rules_refuse_is_not_written(db: DirectCaller, dsn: str) -> None:
    """Neither its row nor other rows of the call are written."""
    before = execute(dsn, "SELECT * FROM accounts ORDER BY id")
    changes = {"balance": {"$add": "-15"}}
    for target in ({"key": 1}, {"where": {"owner": "a"}}):
        refused = await failure_of(db.call("accounts.update", **target, changes=changes))
        assert isinstance(refused, InvalidRow)
        assert refused.details["fields"] == {"balance": ["is overdrawn"]}
    assert execute(dsn, "SELECT * FROM accounts ORDER BY id") == before


@RULED
@pytest_twisted.ensureDeferred
async def test_rules_see_each_row_with_its_own_value(db: DirectCaller) -> None:
    """One call updates many rows; NULL plus a value is NULL."""
    answer = await db.call(
        "accounts.update",
        all=True,
        changes={"balance": {"$add": 1}, "doc->n": {"$add": 1}},
        select=["balance", "doc", "noted"],
        order=["id"],
    )
    assert answer == {
        "affected": 3,
        "rows": [
            {"balance": "11.00", "doc": {}, "noted": "11.00 by a"},
            {"balance": "21.00", "doc": {"n": 2}, "noted": "21.00 by a"},
            {"balance": None, "doc": None, "noted": None},
        ],
    }


@RULED
@pytest_twisted.ensureDeferred
async def test_concurrent_computed_changes_under_rules_are_all_kept(db: DirectCaller) -> None:
    """Rows are locked while validations run on them."""
    calls = [
        ensureDeferred(db.call("accounts.update", 1, {"balance": {"$add": -1}})) for _ in range(14)
    ]
    found = await gatherResults([each.addErrback(lambda failure: failure.value) for each in calls])
    assert sum(isinstance(each, InvalidRow) for each in found) == 4
    assert (await db.call("accounts.get", 1))["balance"] == "0.00"


@pytest.mark.parametrize("written", [(), (Account,)])
@pytest_twisted.ensureDeferred
async def test_computed_change_is_refused_like_a_plain_one(
    dsn: str, written: tuple[type[Model], ...]
) -> None:
    """The refusals are by `expect`, `max_affected`, a missing key and the surrounding transaction."""
    execute(dsn, BEFORE_EACH)
    more = {"balance": {"$add": "2.5"}}
    async with serving(dsn, written=written) as db:
        refused = await failure_of(db.call("accounts.update", 1, more, expect={"balance": 9}))
        assert isinstance(refused, Conflict)
        assert refused.details["row"]["balance"] == "10.00"
        row = await db.call("accounts.update", 1, more, expect={"balance": 10}, select=["balance"])
        assert row == {"balance": "12.50"}
        assert isinstance(await failure_of(db.call("accounts.update", 9, more)), NotFound)
        refused = await failure_of(
            db.call("accounts.update", all=True, changes=more, max_affected=2)
        )
        assert isinstance(refused, TooManyRows)
        answer = await db.call("accounts.update", 1, more, returning=False)
        assert answer == {"affected": 1}
        moved = {"balance": {"$add": {"$ref": "0.balance"}}}
        results = await db.call(
            "transaction",
            [
                {"call": "accounts.update", "args": [1, more]},
                {"call": "accounts.update", "args": [2, moved]},
            ],
        )
        assert [each["balance"] for each in results] == ["17.50", "37.50"]
        too_much = {"balance": {"$add": 999}}
        refused = await failure_of(
            db.call(
                "transaction",
                [
                    {"call": "accounts.update", "args": [1, more]},
                    {"call": "accounts.update", "args": [2, too_much]},
                ],
            )
        )
        assert refused.details["operation"] == 1
        rows = (await db.call("accounts.find", select=["balance"], order=["id"]))["rows"]
        assert [each["balance"] for each in rows] == ["17.50", "37.50", None]


@pytest_twisted.ensureDeferred
async def test_computed_change_needs_select_on_its_column(dsn: str) -> None:
    """It needs SELECT besides UPDATE on the column; the refusal says so, and names no hidden column."""
    execute(dsn, BEFORE_EACH)
    add, back = {"balance": {"$add": 1}}, {"select": ["id"]}
    async with serving(dsn, roles=ROLES) as db:
        row = await db.call_as(ADDER, "accounts.update", 1, add, select=["balance"])
        assert row == {"balance": "11.00"}
        for changes in (add, {"balance": {"$multiply": 2}}, {"doc->a": 1}, {"doc": {"$merge": {}}}):
            for target in ({"key": 1}, {"where": {"id": 1}}):
                refused = await failure_of(
                    db.call_as(BLIND, "accounts.update", **target, changes=changes, **back)
                )
                assert isinstance(refused, NotAuthorized), refused
                assert "may not be read" in str(refused)
                assert "right to select" in refused.details["hint"]
        assert await db.call_as(BLIND, "accounts.update", 1, {"balance": 5}, **back) == {"id": 1}
        refused = await failure_of(db.call_as(READER, "accounts.update", 1, add, **back))
        assert isinstance(refused, NotAuthorized), refused
        for name in ("owner", "nothing", "doc"):
            refused = await failure_of(
                db.call_as(ADDER, "accounts.update", 1, {name: {"$merge": {}}}, **back)
            )
            assert f'no column "{name}"' in str(refused)


@pytest.mark.parametrize("old", [None, "old", "both"])
@pytest_twisted.ensureDeferred
async def test_change_of_no_row_needs_the_rights_of_a_change(dsn: str, old: str | None) -> None:
    """The role's rights are checked, whatever `returning` says."""
    execute(dsn, BEFORE_EACH)
    call: Any = {"where": {"id": 99}, "changes": {"owner": "x"}, "returning": old}
    async with serving(dsn, roles=ROLES) as db:
        refused = await failure_of(db.call_as(READER, "accounts.update", **call))
        assert isinstance(refused, NotAuthorized), refused
        call["changes"] = {"balance": {"$add": 1}}
        assert (await db.call_as(ADDER, "accounts.update", **call))["affected"] == 0


@pytest_twisted.ensureDeferred
async def test_policies_and_hidden_columns_hold_for_computed_values(dsn: str) -> None:
    """Rows that the role may not read or write are not computed."""
    execute(dsn, BEFORE_EACH)
    async with serving(dsn, roles=ROLES) as db:
        answer = await db.call_as(
            ADDER, "owned.update", all=True, changes={"n": {"$add": 3}}, returning=False
        )
        assert answer == {"affected": 2}
        refused = await failure_of(db.call_as(ADDER, "owned.update", 1, {"n": {"$add": 9}}))
        assert isinstance(refused, NotAuthorized)
        refused = await failure_of(db.call_as(ADDER, "owned.update", 1, {"secret": {"$add": 9}}))
        assert 'no column "secret"' in str(refused)
        refused = await failure_of(db.call_as(ADDER, "owned.update", 3, {"n": {"$add": 1}}))
        assert isinstance(refused, NotFound)
    assert execute(dsn, "SELECT id, n, secret FROM owned ORDER BY id") == [
        (1, 4, 5),
        (2, 4, 5),
        (3, 1, 5),
    ]


@RULED
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("accounts.update", {"key": 1, "changes": {"owner": {"$default": True}}}),
        ("accounts.update", {"where": {"id": 1}, "changes": {"owner": {"$default": True}}}),
        ("accounts.update", {"rows": [{"id": 1, "owner": {"$default": True}}]}),
        ("accounts.upsert", {"values": {"id": 1, "owner": "b"}, "update": {"owner": {"$default": True}}}),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_rules_do_not_see_the_value_that_a_default_replaces(
    db: DirectCaller, dsn: str, name: str, kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a new row, they see None."""
    seen = []
    monkeypatch.setattr(
        Account, "beforeUpdate", lambda self: seen.append(self.owner), raising=False
    )
    await db.call(name, **kwargs)
    assert seen == [None]
