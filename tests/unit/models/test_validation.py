"""
Validations and hooks of models.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from twisted.internet.defer import succeed

from service.db.codec import Codec
from service.errors import InvalidArgument, InvalidRow, NotAuthorized
from service.models.meta import Meta
from service.models.model import Model, not_blank
from service.models.served import BoundModel
from tests.deferreds import failure_of, result_of
from tests.unit.samples import catalog

CATALOG = catalog()
CODEC = Codec(CATALOG)
RELATION = CATALOG.relation("public", "actions")


def model(**declared: Any) -> type[Model]:
    """Return a model class of actions with these validations and hooks."""
    made = type("Action", (Model,), {"TABLENAME": "actions", **declared})
    made.META = Meta(RELATION, CATALOG, CODEC, frozenset(dir(made)))
    return made


def bound(made: type[Model]) -> BoundModel:
    """Bind a model to the catalog."""
    return BoundModel(made, made.meta())


def test_model_with_validations_or_hooks_has_rules() -> None:
    """Without validations and hooks for a kind of write, no object is built and no row is read."""

    def kinds(made: type[Model]) -> list[bool]:
        return [made.has_rules(creating) for creating in (True, False)]

    assert kinds(Model) == kinds(model()) == [False, False]
    assert kinds(model(VALIDATIONS=[not_blank("action")])) == [True, True]
    assert kinds(model(beforeSave=lambda self: None)) == [True, True]
    assert kinds(model(beforeCreate=lambda self: None)) == [True, False]
    assert kinds(model(beforeUpdate=lambda self: None)) == [False, True]
    assert kinds(model(afterInit=lambda self: None)) == [False, False]
    later = model()
    later.addValidator(not_blank("action"))
    assert kinds(later) == [True, True]


def test_unchanged_values_are_sent_as_the_same_wire_values() -> None:
    """Unchanged values remain the same wire values, so they are written as sent."""
    values = {"action": "x" * 3, "doc": {"a": [1]}, "owner": "5"}
    validated = result_of(bound(model()).validate(values, CODEC, "values"))
    assert validated == values
    assert all(validated[name] is values[name] for name in values)


def test_rules_on_wire_values_see_python_values() -> None:
    """Validations see a timestamp as datetime and a numeric string as number."""
    seen: dict[str, Any] = {}

    def look(subject: Any) -> None:
        seen.update(made=subject.made, owner=subject.owner, status=subject.status)

    values = {"made": "2026-11-21T14:03:00Z", "owner": "5"}
    result_of(bound(model(VALIDATIONS=[look])).validate(values, CODEC, "values"))
    assert seen == {"made": datetime(2026, 11, 21, 14, 3, tzinfo=UTC), "owner": 5, "status": None}


def test_values_set_by_hooks_are_written() -> None:
    """Both beforeCreate and beforeSave may change and add values, synchronously or asynchronously."""

    async def before_create(self: Any) -> None:
        self.owner = 7

    def before_save(self: Any) -> Any:
        self.action = self.action.upper()
        return succeed(None)

    made = model(beforeCreate=before_create, beforeSave=before_save)
    validated = result_of(bound(made).validate({"action": "a", "mood": "ok"}, CODEC, "values"))
    assert validated == {"action": "A", "mood": "ok", "owner": 7}


def test_columns_that_fail_are_all_named() -> None:
    """All validations run before the row is refused."""
    made = model(VALIDATIONS=[not_blank("action", "raw"), not_blank("mood")])
    error = result_of(failure_of(bound(made).validate({"action": " "}, CODEC, "values.3")))
    assert isinstance(error, InvalidRow)
    assert error.details["path"] == "values.3"
    assert error.details["fields"] == {
        name: ["cannot be blank"] for name in ("action", "raw", "mood")
    }


def test_hook_that_refuses_a_row_makes_it_invalid() -> None:
    """A hook refuses by returning False or by adding errors to columns."""
    refusing = model(beforeSave=lambda self: False)
    error = result_of(failure_of(bound(refusing).validate({}, CODEC, "values")))
    assert isinstance(error, InvalidRow)
    assert error.details["fields"] == {"*": ["refused by beforeSave"]}
    naming = model(beforeSave=lambda self: self.errors.add("owner", "is away."))
    error = result_of(failure_of(bound(naming).validate({}, CODEC, "values")))
    assert isinstance(error, InvalidRow)
    assert error.details["fields"] == {"owner": ["is away"]}


def test_change_of_a_row_is_validated_with_the_entire_row() -> None:
    """Validations see the row with its changes; further changes by hooks are added."""

    def before_update(self: Any) -> None:
        if self.status and self.owner == 1:
            self.action = f"{self.action}!"

    current = {"id": 1, "action": "go", "status": False, "owner": 1, "doc": {"n": 1}}
    made = model(beforeUpdate=before_update)
    validated = result_of(bound(made).validate({"status": True}, CODEC, "changes", current))
    assert validated == {"status": True, "action": "go!"}

    def in_place(self: Any) -> None:
        self.doc["n"] += 1

    validated = result_of(
        bound(model(beforeSave=in_place)).validate({"owner": 2}, CODEC, "changes", current)
    )
    assert validated == {"owner": 2, "doc": {"n": 2}}


def test_value_of_the_wrong_type_is_refused_with_its_path() -> None:
    """It is refused before any validation runs."""
    error = result_of(failure_of(bound(model()).validate({"owner": "five"}, CODEC, "values.0")))
    assert isinstance(error, InvalidArgument)
    assert error.details["path"] == "values.0.owner"


def test_object_that_was_changed_has_its_wire_form() -> None:
    """Values that were read are unchanged; values that were set are in wire form."""
    made = model()
    (found,) = made.hydrate(
        [(1, "a", False, {"x": 1}, *[None] * 5, "2026-01-01T00:00:00Z")], made.META
    )
    found.action = "b"
    assert found.owner is None
    assert found.made.year == 2026
    wire = found.wire(CODEC)
    assert wire["id"] == 1
    assert (wire["action"], wire["made"], wire["doc"]) == ("b", "2026-01-01T00:00:00Z", {"x": 1})


@pytest.mark.parametrize("value", ["", "  ", None])
def test_value_of_white_space_is_blank(value: str | None) -> None:
    """A string of whitespace counts as blank."""
    made = model(VALIDATIONS=[not_blank("action")])
    subject = made(action=value)
    assert result_of(subject.isValid()) is False


def swallow(subject: Any) -> None:
    """Read a value of the row, and ignore that it is missing."""
    try:
        subject.owner  # noqa: B018
    except Exception:
        return


async def later(subject: Any) -> None:
    """Accept everything, asynchronously."""


def set_owner(subject: Any) -> None:
    """Change the row."""
    subject.owner = 3


UNSEEN: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({"VALIDATIONS": [not_blank("action", "raw")]}, {"status": True}, True),
    ({"VALIDATIONS": [not_blank("action")]}, {"action": "go"}, True),
    ({"VALIDATIONS": [not_blank("action")]}, {"action": " "}, False),
    ({"VALIDATIONS": [lambda self: self.owner]}, {"status": True}, False),
    ({"VALIDATIONS": [swallow]}, {"status": True}, False),
    ({"VALIDATIONS": [later]}, {"status": True}, False),
    ({"VALIDATIONS": [lambda self: succeed(None)]}, {"status": True}, False),
    ({"VALIDATIONS": [set_owner]}, {"status": True}, False),
    ({"VALIDATIONS": [set_owner]}, {"owner": 4}, False),
    ({"VALIDATIONS": [lambda self: None]}, {"owner": "five"}, False),
    ({"beforeSave": lambda self: None}, {"status": True}, False),
    ({"beforeUpdate": lambda self: None}, {"status": True}, False),
    ({"beforeCreate": lambda self: None}, {"status": True}, True),
]


@pytest.mark.parametrize(("rules", "changes", "accepted"), UNSEEN)
def test_change_is_accepted_unseen_if_no_rule_asks_for_the_row(
    rules: dict[str, Any], changes: dict[str, Any], accepted: bool
) -> None:
    """If the result is not certain, the validations run again with the entire row."""
    assert bound(model(**rules)).accepts_unseen(changes, CODEC) is accepted


NEW: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({"VALIDATIONS": [not_blank("action")]}, {"action": "go"}, True),
    ({"VALIDATIONS": [not_blank("action")]}, {"action": " "}, False),
    ({"VALIDATIONS": [not_blank("action")]}, {"status": True}, False),
    ({"VALIDATIONS": [lambda self: self.action]}, {"action": "go"}, True),
    ({"VALIDATIONS": [later]}, {"status": True}, False),
    ({"VALIDATIONS": [lambda self: succeed(None)]}, {"status": True}, False),
    ({"VALIDATIONS": [set_owner]}, {"status": True}, False),
    ({"VALIDATIONS": [set_owner]}, {"owner": 4}, False),
    ({"VALIDATIONS": [lambda self: None]}, {"owner": "five"}, False),
    ({"beforeSave": lambda self: None}, {"status": True}, False),
    ({"beforeCreate": lambda self: None}, {"status": True}, False),
    ({"beforeUpdate": lambda self: None}, {"status": True}, True),
]


@pytest.mark.parametrize(("rules", "values", "accepted"), NEW)
def test_new_row_is_accepted_at_once_if_no_rule_waits_or_sets_anything(
    rules: dict[str, Any], values: dict[str, Any], accepted: bool
) -> None:
    assert bound(model(**rules)).accepts_new(values, CODEC) is accepted


def test_rule_that_waits_is_not_run_at_once_again() -> None:
    """It may have sent a query that was of no use."""
    asked: list[Any] = []

    def waits(subject: Any) -> Any:
        asked.append(subject)
        return succeed(None)

    made = bound(model(VALIDATIONS=[waits]))
    for _ in range(3):
        assert not made.accepts_new({"status": True}, CODEC)
    assert len(asked) == 1


def test_stored_blank_is_not_validated_unless_it_is_read() -> None:
    """Once it was asked for, or set, it is looked at; so is what is no column."""
    made = model(VALIDATIONS=[not_blank("action")])
    row = [None] * len(made.META.position)
    (found,) = made.hydrate([tuple(row)], made.META)
    assert result_of(found.isValid()) is True
    assert found.action is None
    assert result_of(found.isValid()) is False
    of_no_column = model(title=property(lambda self: ""), VALIDATIONS=[not_blank("title")])
    (found,) = of_no_column.hydrate([tuple(row)], of_no_column.META)
    assert result_of(found.isValid()) is False


def test_column_that_was_not_read_is_refused_in_a_stored_row_only() -> None:
    """A rule does not take it for NULL; in a new row it has no value, and set it can be read."""
    made = model(beforeDelete=lambda self: self.owner is None)
    columns = {**RELATION.columns, "owner": replace(RELATION.columns["owner"], selectable=False)}
    made.META = Meta(replace(RELATION, columns=columns), CATALOG, CODEC, frozenset(dir(made)))
    assert made().owner is None
    (found,) = made.hydrate([tuple(made.META.columns)], made.META)
    for ask in (lambda: found.owner, lambda: getattr(found, "owner", None)):
        with pytest.raises(NotAuthorized):
            ask()
    assert isinstance(result_of(failure_of(found.delete())), NotAuthorized)
    refused = result_of(failure_of(bound(made).validate_delete({"id": 1})))
    assert isinstance(refused, NotAuthorized)
    found.owner = 7
    assert found.owner == 7
    blank = model(VALIDATIONS=[not_blank("owner")])
    blank.META = made.META
    (found,) = blank.hydrate([tuple(made.META.columns)], made.META)
    assert result_of(found.isValid()), "it does not change, so it need not be read"


def test_value_given_for_an_unread_column_is_written() -> None:
    """Only to read the stored value needs the right to read it."""
    changed = bound(model(beforeSave=lambda self: setattr(self, "mood", "ok")))
    validated = result_of(changed.validate({"owner": 5}, CODEC, "changes", {"id": 1}))
    assert validated == {"owner": 5, "mood": "ok"}
    complete = bound(model(beforeSave=lambda self: self.wire(CODEC)))
    refused = failure_of(complete.validate({"owner": 5}, CODEC, "changes", {"id": 1}))
    assert isinstance(result_of(refused), NotAuthorized)


def test_model_with_a_delete_hook_knows_it() -> None:
    """Without a beforeDelete hook no row is read."""
    assert not model(beforeSave=lambda self: None).has_delete_hook()
    assert model(beforeDelete=lambda self: None).has_delete_hook()
    assert not Model.has_delete_hook()


def test_hook_that_refuses_a_delete_makes_it_invalid() -> None:
    """A hook refuses by returning False or by adding an error; it sees the row."""
    current = {"id": 1, "action": "go", "made": "2026-11-21T14:03:00Z"}
    seen: list[Any] = []
    made = model(beforeDelete=lambda self: seen.append((self.id, self.made.year)))
    assert result_of(bound(made).validate_delete(current)) is None
    assert seen == [(1, 2026)]
    error = result_of(
        failure_of(bound(model(beforeDelete=lambda self: succeed(False))).validate_delete(current))
    )
    assert isinstance(error, InvalidRow)
    assert error.details["fields"] == {"*": ["refused by beforeDelete"]}
    naming = model(beforeDelete=lambda self: self.errors.add("owner", "is away."))
    error = result_of(failure_of(bound(naming).validate_delete(current)))
    assert isinstance(error, InvalidRow)
    assert error.details["fields"] == {"owner": ["is away"]}
