"""
Changes as CBOR, by a function that is compiled once for each relation and what is shown of it.

To make a dict of a change, with dicts of its rows, and to encode that takes more than all else that
`changes` does with it. The bytes are those that `Shown.event` gives, as cbor2 encodes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import cbor2

from service.changes.images import BY_FORM, ReadImage, read_string
from service.changes.net import Change
from service.db import pack
from service.db.pack import MAP, head, text

Packer = Callable[[Change, bool], str]
"""
Return a change, and whether it is the last one of its transaction, as CBOR, a character for each byte.

Raises:
    KeyError, Unreadable: The images do not have exactly the columns that are shown.
"""

OPS = ("insert", "update", "delete", "truncate", "touch", "reset")

_INTEGER = (
    "(INTEGERS[{v}] if 0 <= {v} < SMALL else"
    ' WIDE + {v}.to_bytes(4, "big").decode("latin-1") if 65536 <= {v} < 4294967296 else'
    " integer({read}({v}))) if {v}.__class__ is int else integer({read}({v}))"
)
_STRING = (
    "TEXTS[len({v})] + {v} if {v}.__class__ is str and len({v}) < SMALL and {v}.isascii()"
    " else text({read}({v}))"
)
WAYS: Mapping[ReadImage, str] = {
    BY_FORM["integer"]: _INTEGER,
    read_string: _STRING,
    BY_FORM["decimal"]: "text({read}({v}))",
    BY_FORM["timestamptz"]: "text({read}({v}))",
    BY_FORM["interval"]: "text({read}({v}))",
    BY_FORM["float"]: "number({read}({v}))",
    BY_FORM["boolean"]: "BOOLEANS[{read}({v})]",
}
"""What a value of an image is in CBOR, as an expression, by what reads it."""
_ANY = "encoded({read}({v}))"

_SAME = {BY_FORM["integer"], read_string}
"""What reads values that are the same where they are equal: 1.0 and 1.00 are not."""


def encoded(value: object) -> str:
    """Return any value as CBOR."""
    return cbor2.dumps(value).decode("latin-1")


@lru_cache(256)
def event_packer(
    schema: str, relation: str, key: tuple[str, ...], columns: tuple[tuple[str, ReadImage], ...]
) -> Packer:
    """
    Compile the function that makes the changes of a relation CBOR.

    Args:
        schema: Of the relation.
        relation: Its name.
        key: The columns of its primary key, if all are shown.
        columns: That are shown, each with what reads it.
    """
    names = {name: at for at, (name, _) in enumerate(columns)}
    ways = [
        f"NULL if {{v}} is None else {WAYS.get(read, _ANY).replace('{read}', f'r{at}')}"
        for at, (_, read) in enumerate(columns)
    ]

    def joined(start: str, parts: list[tuple[str, str]]) -> str:
        """Return the expression of a dict: its names are constants, its values expressions."""
        return " + ".join([repr(start), *(f"{text(name)!r} + {value}" for name, value in parts)])

    # The repr of a string is a literal whatever is in it.
    lines = [
        "def packer(change, last):",
        "    _, op, key, old, new, tx, at, tick, place, _, _ = change",
        "    row = before = keyed = NULL",
        "    image = old if new is None else new",
        "    if image is not None:",
    ]
    for at, (name, _) in enumerate(columns):
        lines += [f"        v = image[{name!r}]", f"        c{at} = {ways[at].format(v='v')}"]
    shown = joined(head(MAP, len(columns)), [(name, f"c{at}") for name, at in names.items()])
    lines += [
        f"        row = {shown}",
        "        if new is None:",
        "            row, before = NULL, row",
        "        elif old is not None:",
        "            before, many = '', 0",
    ]
    for at, (name, read) in enumerate(columns):
        unlike = "o != n" if read in _SAME else "o != n or repr(o) != repr(n)"
        lines += [
            f"            o, n = old[{name!r}], new[{name!r}]",
            f"            if {unlike}:",
            f"                o = {ways[at].format(v='o')}",
            f"                if o != c{at}:",
            f"                    before += {text(name)!r} + o",
            "                    many += 1",
        ]
    lines += ["            before = head(MAP, many) + before"]
    if key:
        lines += [f"    if key is not None and len(key) == {len(key)}:"]
        for at, name in enumerate(key):
            lines += [
                f"        v = key[{at}]",
                f"        k{at} = {ways[names[name]].format(v='v')}",
            ]
        made = joined(head(MAP, len(key)), [(name, f"k{at}") for at, name in enumerate(key)])
        lines += [f"        keyed = {made}"]
    words = {name: repr(text(name)) for name in ("row", "old", "position", "tx", "last", "at")}
    lines += [
        "    position = f'{tick.epoch}.{tick.number}.{place}'",
        f"    return HEADS[op] + keyed + {words['row']} + row + {words['old']} + before"
        f" + {words['position']} + TEXTS[len(position)] + position + {words['tx']} + TEXTS[len(tx)]"
        f" + tx + {words['last']} + BOOLEANS[last] + {words['at']} + TEXTS[len(at)] + at",
    ]
    heads = {
        op: head(MAP, 10)
        + "".join(
            text(name) + text(value)
            for name, value in (("op", op), ("schema", schema), ("relation", relation))
        )
        + text("key")
        for op in OPS
    }
    given = {**vars(pack), "HEADS": heads, "encoded": encoded}
    given |= {f"r{at}": read for at, (_, read) in enumerate(columns)}
    exec("\n".join(lines), given)
    made_packer: Packer = given["packer"]
    return made_packer
