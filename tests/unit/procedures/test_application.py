"""Loading applications: the models and procedures of modules, and errors for modules that cannot be used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.describe.document import OWN, described_procedure
from service.models.model import Model
from service.procedures.registry import Application, InvalidApplication, load_application

HEAD = """
from service.models.model import Model
from service.procedures.registry import procedure
"""
ITEMS = f"""{HEAD}
class Item(Model):
    TABLENAME = "items"

@procedure("items.sell", Item)
async def sell(call, key): ...
"""

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return a function that writes a module; all of them are unloaded when the test ends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def make(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        importlib.invalidate_caches()

    yield make
    for name in sys.modules.keys() - before:
        del sys.modules[name]


def held(app: Application) -> tuple[set[str], set[str]]:
    """Return the names of models and procedures."""
    return {each.__name__ for each in app.models}, set(app.procedures)


def refusal(*names: str) -> str:
    """Return the error of loading."""
    with pytest.raises(InvalidApplication) as caught:
        load_application(names)
    return str(caught.value)


def test_load_without_names_is_empty() -> None:
    """Even if other code has imported models."""
    import app.actions

    assert app.actions.Action
    assert load_application(()) == Application()


def test_load_of_module_has_models_and_procedures(write: Write) -> None:
    """The module is in the working directory, which need not be on Python's path."""
    write("shop.py", ITEMS)
    app = load_application(["shop"])
    assert held(app) == ({"Item"}, {"items.sell"})
    assert app.procedures["items.sell"].needs == app.models
    assert load_application(["shop"]).models == app.models, "once more: the same classes"


def test_load_of_package_has_all_its_modules_but_tests(write: Write) -> None:
    """They need not be imported in `__init__.py`."""
    write("shop/__init__.py", "")
    write("shop/items.py", ITEMS)
    write("shop/sub/__init__.py", "")
    write("shop/sub/deep.py", ITEMS.replace("item", "deed").replace("Item", "Deed"))
    write("shop/testing_ground.py", ITEMS.replace("item", "toy").replace("Item", "Toy"))
    for name in ("test_items", "tests", "conftest", "__main__"):
        write(f"shop/{name}.py", "raise AssertionError")
    found = {"Item", "Deed", "Toy"}, {"items.sell", "deeds.sell", "toys.sell"}
    assert held(load_application(["shop"])) == found
    assert held(load_application(["shop.sub"])) == ({"Deed"}, {"deeds.sell"}), (
        "nothing of the other modules"
    )


def test_load_takes_what_is_imported_by_name(write: Write) -> None:
    """Two applications may share models; a module of a package does not load the others."""
    write("rules.py", ITEMS)
    write("shop.py", "from rules import Item, sell")
    write("other.py", "import rules")
    assert held(load_application(["shop"])) == ({"Item"}, {"items.sell"})
    assert held(load_application(["other"])) == (set(), set())
    assert held(load_application(["shop", "rules"])) == ({"Item"}, {"items.sell"})


def test_load_omits_classes_without_a_table(write: Write) -> None:
    """A base class of models, and classes defined inside of functions."""
    text = f"{HEAD}class Base(Model): ...\nclass Item(Base): TABLENAME = 'items'\n"
    write("shop.py", f"{text}def make():\n    class Inner(Model): TABLENAME = 'inner'\nmake()")
    assert held(load_application(["shop"])) == ({"Item"}, set())


def test_declared_function_stays_a_function(write: Write) -> None:
    """It can be called by other code, and may be declared under two names."""
    write("shop.py", f"{HEAD}@procedure('a')\n@procedure('b')\nasync def sell(call): return call\n")
    assert held(load_application(["shop"]))[1] == {"a", "b"}
    with pytest.raises(StopIteration, match=r"^7$"):
        sys.modules["shop"].sell(7).send(None)


def test_missing_module_is_named_with_way_out(write: Write) -> None:
    write("shop/__init__.py", "")
    there = f"in {Path.cwd()} or elsewhere on Python's path"
    assert refusal("shopp").startswith(f'ROWCAST_APP: there is no module "shopp" {there} → start')
    assert f'no module "shop.item" {there}' in refusal("shop.item")
    assert 'no module "no" ' in refusal("no.such")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("shop.py", "shop"), ("./shop/items.py", "shop.items"), ("shop-1", "shop-1"), (".", "app")],
)
def test_name_that_is_no_module_is_refused(name: str, meant: str) -> None:
    message = f'ROWCAST_APP: "{name}" is no module → name modules as in an import: {meant}'
    assert refusal(name) == message


@pytest.mark.parametrize(
    ("text", "message", "line", "cure"),
    [
        ("\n1 / 0", "ZeroDivisionError: division by zero", 2, "mend it"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'", 1, "pip install"),
        ("\n\ndef", "SyntaxError: invalid syntax", 3, "mend it"),
    ],
)
def test_module_that_raises_is_named_with_line(
    text: str, message: str, line: int, cure: str, write: Write
) -> None:
    write("shop.py", text)
    start = (
        f"ROWCAST_APP: shop cannot be imported: {message} ({Path.cwd()}/shop.py, line {line}) → "
    )
    assert refusal("shop").startswith(start + cure)


def test_procedures_of_one_name_are_refused(write: Write) -> None:
    """Otherwise the order of imports would decide."""
    write("one.py", ITEMS)
    write("two.py", ITEMS.replace("items.sell", "sell"))
    write("three.py", ITEMS.replace('TABLENAME = "items"', 'TABLENAME = "others"'))
    head = "ROWCAST_APP: two"
    models = f'{head} models are of the table "items": one.Item and two.Item → leave one of them'
    assert refusal("one", "two") == models
    both = "one.sell and three.sell"
    assert refusal("one", "three") == (
        f'{head} procedures are called "items.sell": {both} → leave one of them'
    )


SPACES = """a name is a URI like "drivers.retire": no space, "#" or "..\""""
OURS = "the service has a procedure of this name itself"
FIRST = "the first parameter is not one for the ProcedureCall"
ASYNC = "the function is not declared with async def"


@pytest.mark.parametrize(
    ("arguments", "function", "message"),
    [
        *((f"{name!r}", "async def f(call)", SPACES) for name in ("a b.c", "a#", "a..b", "", ".a", "a.", "a\n", 5)),
        *((f"{name!r}", "async def f(call)", OURS) for name in (*OWN, "tx.begin")),
        ("'a', None", "async def f(call)", "None is no Model with a TABLENAME"),
        ("'a', 'Item'", "async def f(call)", "Item is no Model with a TABLENAME"),
        ("'a', Model", "async def f(call)", f"{Model} is no Model with a TABLENAME"),
        ("'a'", "def f(call)", ASYNC),
        ("'a'", "class f(Model)", ASYNC),
        ("'a'", "async def f()", FIRST),
        ("'a'", "async def f(*args)", FIRST),
        ("'a'", "async def f(*, call)", FIRST),
    ],
)  # fmt: skip
def test_procedure_that_cannot_be_called_is_refused_with_its_line(
    arguments: str, function: str, message: str, write: Write
) -> None:
    write("shop.py", f"{HEAD}\n@procedure({arguments})\n{function}: ...\n")
    declaration = f"@procedure({arguments.split(',')[0]})"
    place = f"({Path.cwd()}/shop.py, line 5)"
    assert refusal("shop") == (
        f"ROWCAST_APP: shop cannot be imported: ValueError: {declaration}: {message} {place}"
        " → mend it, or take it out of ROWCAST_APP"
    )


def test_function_that_replaces_that_of_another_procedure_is_refused(write: Write) -> None:
    """Python would keep the second function alone, so that the first procedure would not exist."""
    one = "@procedure('a')\nasync def f(call): ...\n"
    other = one.replace("'a'", "'b'")
    write("shop.py", f"{HEAD}{one}\n{other}")
    replaced = "f is the function of another procedure of this module, which would be lost"
    assert f"ValueError: @procedure('b'): {replaced} ({Path.cwd()}/shop.py, line 7)" in refusal(
        "shop"
    )
    nested = one.replace("\n", "\n    ").strip()
    write("nested.py", f"{HEAD}{one}def make():\n    {nested}\nmake()\n")
    assert held(load_application(["nested"]))[1] == {"a"}


def test_procedure_without_parentheses_is_refused(write: Write) -> None:
    write("shop.py", f"{HEAD}\n@procedure\nasync def f(call): ...\n")
    assert SPACES in refusal("shop")


def test_decorated_procedure_may_return_a_deferred(write: Write) -> None:
    text = "from twisted.internet.defer import inlineCallbacks, succeed\n@procedure('A.ß%')\n"
    write("shop.py", f"{HEAD}{text}@inlineCallbacks\ndef f(call): yield succeed(1)\n")
    assert held(load_application(["shop"]))[1] == {"A.ß%"}


@pytest.mark.parametrize("hint", ["Nowhere", "5", "set", "'1 +'", "'sys.nothing'", "'1 / 0'"])
def test_annotation_that_is_no_type_allows_anything(hint: str, write: Write) -> None:
    text = f"{HEAD}import sys\n@procedure('a')\nasync def f(call, x: {hint}): ...\n"
    write("shop.py", f"from __future__ import annotations\n{text}")
    found = load_application(["shop"]).procedures["a"].function
    assert described_procedure(found)["arguments"]["properties"]["x"] == {}
