"""The union of the catalogs of several roles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.api.reload import union_of
from service.catalog import Argument, Catalog, ForeignKey, Function, UniqueKey
from tests.unit.samples import catalog

KEY = ForeignKey("notes_note_fkey", ("note",), ("public", "actions"), ("id",))
ONCE = UniqueKey("once", ("status",))
NUMBER, TEXT = (Function("public", "f", (Argument("a", oid),), 25) for oid in (23, 25))
SAME = Function("public", "f", (Argument("a", 23),), 25)
OTHER = Function("public", "g", (), 25)


def roles() -> tuple[Catalog, Catalog]:
    """Return the catalogs of two roles, each with an object that the other lacks."""
    clerk, boss = catalog(), catalog()
    relations = dict(clerk.relations)
    actions = relations["public", "actions"]
    keys = {each.name: each.columns for each in actions.unique_keys}
    relations["public", "actions"] = replace(actions, constraints=keys)
    notes = relations.pop(("public", "notes"))
    clerk = replace(
        clerk,
        relations=relations,
        functions={("public", "f"): (NUMBER,), ("public", "g"): (OTHER,)},
    )
    column = replace(notes.columns["note"], selectable=False)
    actions = boss.relations["public", "actions"]
    hidden = replace(actions.columns["owner"], selectable=False, updatable=False)
    relations = {
        ("public", "actions"): replace(
            actions,
            columns={**actions.columns, "owner": hidden},
            primary_key=(),
            unique_keys=(ONCE,),
            constraints={"once": ("status",)},
            foreign_keys=(),
            deletable=False,
            updatable=False,
        ),
        ("public", "notes"): replace(notes, columns={"note": column}, foreign_keys=(KEY,)),
    }
    return clerk, replace(boss, relations=relations, functions={("public", "f"): (TEXT, SAME)})


@pytest.mark.parametrize("turned", [False, True])
def test_union_of_roles_has_all_their_rights_and_functions(turned: bool) -> None:
    """Relations, rights, keys and functions of each role."""
    found = union_of(roles()[::-1] if turned else roles())
    assert set(found.relations) == set(catalog().relations)
    actions = found.relations["public", "actions"]
    assert actions.columns == catalog().relations["public", "actions"].columns
    assert actions.deletable
    assert actions.updatable
    assert actions.foreign_keys
    assert found.relations["public", "notes"].foreign_keys == (KEY,)
    assert not found.relations["public", "notes"].columns["note"].selectable
    keys = [key.name for key in actions.unique_keys]
    assert keys[0] == "actions_pkey"
    assert set(keys) == {"actions_pkey", "actions_ao", "once"}
    assert actions.primary_key == ("id",)
    assert set(actions.constraints) == set(keys)
    assert {each.inputs[0].type for each in found.functions["public", "f"]} == {23, 25}
    assert len(found.functions["public", "f"]) == 2
    assert found.functions["public", "g"] == (OTHER,)


def test_union_of_one_role_is_its_catalog() -> None:
    """It is the same object."""
    alone = catalog()
    assert union_of([alone]) is alone
