"""The cache of statements of a catalog snapshot."""

from __future__ import annotations

from math import inf

from service.api.call import MAX_STATEMENTS, MAX_TEXT, Snapshot
from service.request.requests import Item, Reference
from service.sql.statement import Statement
from tests.unit.samples import catalog


class NoModels:
    """Models that are not used."""

    def bound(self, relation):
        """Return None."""


class Maker:
    """A function that counts its calls; a request is the length of its statement."""

    def __init__(self):
        self.made = 0

    def __call__(self, catalog, subject, request):
        """Build a statement."""
        self.made += 1
        return Statement("x" * request, (), "test")


def test_call_of_a_known_shape_is_planned_once():
    """The second call of a shape uses the cached statement."""
    served, make = Snapshot(catalog(), None, NoModels()), Maker()
    assert served.statement(make, "actions", 5) is served.statement(make, "actions", 5)
    assert make.made == 1
    served.statement(make, "notes", 5)
    assert make.made == 2


def test_statements_beyond_the_bound_are_not_kept():
    """Long statements are not cached, and unused ones are removed first."""
    served, make = Snapshot(catalog(), None, NoModels()), Maker()
    for _ in range(2):
        served.statement(make, "actions", MAX_TEXT + 1)
    assert make.made == 2
    for length in range(MAX_STATEMENTS):
        served.statement(make, "actions", length)
        served.statement(make, "actions", 0)
    made = make.made
    served.statement(make, "actions", MAX_STATEMENTS)
    served.statement(make, "actions", 0)
    assert make.made == made + 1
    served.statement(make, "actions", 1)
    assert make.made == made + 2


def test_maximum_size_of_rows_with_short_columns_is_known():
    """The maximum size follows from the types of plain columns."""
    served = Snapshot(catalog(), None, NoModels())
    relations = served.catalog.relations
    odd = relations["app", 'odd %."name']
    assert served.max_row_bytes(relations["public", "actions"], None) == inf
    assert 64 < served.max_row_bytes(odd, None) < 1000
    name = next(iter(odd.columns))
    plain = Item(Reference(name, "select.0"))
    assert served.max_row_bytes(odd, [plain, plain]) == 2 * served.max_row_bytes(odd, [plain])
    assert served.max_row_bytes(
        odd, [Item(Reference("*", "select.0", every=True))]
    ) == served.max_row_bytes(odd, None)
    for wide in (
        Item(Reference("computed", "select.0")),
        Item(Reference(name, "select.0", ("owner",))),
        Item(Reference(name, "select.0", cast="text")),
    ):
        assert served.max_row_bytes(odd, [wide]) == inf
