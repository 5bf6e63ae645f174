"""
Names that other tools use for our verbs, arguments and operators, for the hints of refusals.

An entry has our name, the other names, and an example, which is a call on the demo's tables. Names are
compared by their letters alone: `order_by`, `orderBy` and `$orderby` are equal.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

Kind = Literal["verb", "argument", "operator", "key", "function"]
"""What a name belongs to: `key` is a key of a filter that is not a column, `function` one of a measure."""


@dataclass(frozen=True, slots=True)
class Synonym:
    """Names of other tools for one of ours."""

    kind: Kind
    ours: str
    words: tuple[str, ...]
    example: str

    @property
    def hint(self) -> str:
        """The hint for one of these names."""
        return f'did you mean "{self.ours}", as in {self.example}?'


def _rows(kind: Kind, *rows: tuple[str, str, str]) -> tuple[Synonym, ...]:
    return tuple(
        Synonym(kind, ours, tuple(words.split()), example) for ours, words, example in rows
    )


NEW = '{"action": "deploy", "path": "/srv"}'
SYNONYMS: tuple[Synonym, ...] = (
    *_rows(
        "verb",
        ("find", "list select filter search query read all index fetch findall findmany getall where"
                 " paginate scan", 'actions.find(where={"status": False}, limit=20)'),
        ("find", "first findone findfirst one fetchone", "actions.find(limit=1)"),
        ("get", "findbyid getone getbyid retrieve show byid findunique lookup", "actions.get(1)"),
        ("create", "insert add new post make insertone insertmany createmany bulkcreate append put"
                   " push store", f"actions.create({NEW})"),
        ("update", "patch modify edit set change updateone updatemany alter",
         'actions.update(1, {"status": True})'),
        ("upsert", "save merge replace insertorupdate createorupdate updateorcreate putitem",
         f"actions.upsert({NEW})"),
        ("delete", "remove destroy del drop erase deleteone deletemany removeone discard",
         'actions.delete(where={"path": "/old"})'),
        ("count", "size length len total howmany", 'actions.count(where={"status": False})'),
        ("exists", "any has contains some isthere", 'actions.exists(where={"status": False})'),
        ("aggregate", "group groupby sum avg min max stats summarize annotate reduce",
         'vehicles.aggregate({"seats": {"sum": "seats"}}, group=["model"])'),
        ("import", "load copy bulkinsert bulk bulkload upload", f"actions.import(rows=[{NEW}])"),
        ("export", "download dump csv unload",
         'actions.export(format="csv")'),
        ("stream", "iterate cursor each iter scroll", "actions.stream(chunk=500)"),
    ),
    *_rows(
        "argument",
        ("where", "filter filters query q condition conditions criteria match search wheres predicate"
                  " selector params", 'actions.find(where={"status": False})'),
        ("order", "sort sortby sorts orderby orderbys ordering sorting orders",
         'actions.find(order=["-created_at", "id"])'),
        ("limit", "pagesize perpage size first take top maxresults maxrows rowlimit n pagelimit"
                  " amount last", "actions.find(limit=20)"),
        ("offset", "skip start page pagenumber startat begin", "actions.find(limit=20, offset=40)"),
        ("after", "cursor token next pagetoken nexttoken startingafter startafter aftercursor"
                  " continuation", 'actions.find(limit=2, after=page["next"])'),
        ("before", "endingbefore endbefore beforecursor prev previous prevtoken",
         'actions.find(limit=2, before=page["prev"])'),
        ("changes", "set data values patch body attributes update row record new payload",
         'actions.update(key=1, changes={"status": True})'),
        ("values", "data row rows record records body doc docs document object objects item items"
                   " input attributes payload set", f"actions.create(values={NEW})"),
        ("rows", "data values records items objects docs body payload",
         f"actions.import(rows=[{NEW}])"),
        ("select", "fields field columns column cols attributes only projection project pick"
                   " properties values", 'actions.find(select=["id", "action"])'),
        ("embed", "include includes including join joins expand with relations related populate"
                  " preload prefetch eager nested selectrelated prefetchrelated with_ leftjoin",
         'drivers.find(embed={"vehicles": True})'),
        ("distinct", "unique uniq distincton", 'actions.find(select=["status"], distinct=True)'),
        ("group", "groupby groups by dimensions",
         'vehicles.aggregate({"n": {"count": "*"}}, group=["model"])'),
        ("measures", "aggregates aggregate functions metrics fields select columns annotations",
         'vehicles.aggregate(measures={"n": {"count": "*"}})'),
        ("key", "id pk primarykey ids _id uuid uid identifier", "actions.get(key=1)"),
        ("on_conflict", "conflict conflicttarget onduplicate onduplicatekey conflictcolumns",
         'vehicles.upsert({"plate": "B-RC 1", "model": "bus", "seats": 40}, on_conflict=["plate"])'),
        ("returning", "return returns returned", f"actions.create({NEW}, returning=False)"),
        ("all", "force everything allrows confirm", 'vehicles.update(changes={"seats": 4}, all=True)'),
        ("max_affected", "maxrows limit max atmost maxaffectedrows",
         'actions.delete(where={"path": "/old"}, max_affected=10)'),
        ("inner", "required innerjoin mustexist", 'drivers.find(embed={"vehicles": {"inner": True}})'),
        ("spread", "flatten flat inline merge",
         'vehicles.find(select=["plate"], embed={"drivers": {"select": ["name"], "spread": True}})'),
        ("via", "through using on foreignkey fk junction jointable key",
         'vehicles.find(embed={"drivers": {"via": "driver_id"}})'),
        ("relation", "table from model of target collection entity",
         'vehicles.find(embed={"lead": {"relation": "drivers"}})'),
        ("desc", "dir direction order descending sort reverse",
         'actions.find(order=[{"by": "id", "desc": True}])'),
        ("by", "column field name key", 'actions.find(order=[{"by": "id", "nulls": "last"}])'),
        ("as", "alias name label", 'actions.find(select=[{"column": "id", "as": "number"}])'),
        ("cast", "type to totype", 'actions.find(select=[{"column": "id", "cast": "text"}])'),
        ("column", "field name path col attribute", 'actions.find(select=[{"column": "id"}])'),
    ),
    *_rows(
        "operator",
        ("eq", "= == === equals equal exact iseq is_eq", 'actions.find(where={"id": {"eq": 1}})'),
        ("neq", "!= <> !== ne notequal notequals noteq isnot", 'actions.find(where={"id": {"neq": 1}})'),
        ("gt", "> greaterthan greater after above", 'actions.find(where={"id": {"gt": 1}})'),
        ("gte", ">= => ge min greaterthanorequal atleast from since",
         'actions.find(where={"id": {"gte": 1}})'),
        ("lt", "< lessthan less before below", 'actions.find(where={"id": {"lt": 9}})'),
        ("lte", "<= =< le max lessthanorequal atmost until", 'actions.find(where={"id": {"lte": 9}})'),
        ("in", "oneof anyof isin inlist among", 'actions.find(where={"id": {"in": [1, 2]}})'),
        ("not", "nin notin notinlist noneof exclude", 'actions.find(where={"id": {"not": [1, 2]}})'),
        ("starts", "startswith beginswith begins prefix",
         'actions.find(where={"path": {"starts": "/srv/"}})'),
        ("ends", "endswith suffix", 'actions.find(where={"path": {"ends": ".log"}})'),
        ("contains", "contain substring includes haskeyword includestext",
         'actions.find(where={"path": {"contains": "srv"}})'),
        ("istarts", "istartswith startswithinsensitive", 'actions.find(where={"path": {"istarts": "/SRV"}})'),
        ("iends", "iendswith endswithinsensitive", 'actions.find(where={"path": {"iends": ".LOG"}})'),
        ("icontains", "icontain containsinsensitive includesinsensitive",
         'actions.find(where={"path": {"icontains": "SRV"}})'),
        ("like", "~~ haslike", 'actions.find(where={"path": {"like": "/srv/%"}})'),
        ("ilike", "iexact ~~*", 'actions.find(where={"action": {"ilike": "%deploy%"}})'),
        ("length", "len size charlength arraylength cardinality",
         'actions.find(where={"path": {"length": {"gt": 9}}})'),
        ("match", "regex regexp re ~ rlike matches similar similarto iregex",
         'actions.find(where={"path": {"match": "^/srv"}})'),
        ("is", "isnull null notnull isnotnull exists defined empty",
         'drivers.find(where={"phone": {"is": "not null"}})'),
        ("between", "range within inrange", 'actions.find(where={"id": {"between": [1, 9]}})'),
    ),
    *_rows(
        "key",
        ("or", "|| anyof any either", 'actions.find(where={"or": [{"id": 1}, {"status": False}]})'),
        ("and", "&& allof all both every", 'actions.find(where={"and": [{"id": 1}, {"status": False}]})'),
        ("not", "! nor none exclude", 'actions.find(where={"not": {"id": 1}})'),
    ),
    *_rows(
        "function",
        ("count", "len size n number total_count countall", 'vehicles.aggregate({"n": {"count": "*"}})'),
        ("avg", "average mean", 'vehicles.aggregate({"seats": {"avg": "seats"}})'),
        ("sum", "total add", 'vehicles.aggregate({"seats": {"sum": "seats"}})'),
        ("min", "minimum least smallest first", 'vehicles.aggregate({"seats": {"min": "seats"}})'),
        ("max", "maximum most largest last", 'vehicles.aggregate({"seats": {"max": "seats"}})'),
        ("bool_and", "every all and", 'actions.aggregate({"done": {"bool_and": "status"}})'),
        ("bool_or", "any some or", 'actions.aggregate({"done": {"bool_or": "status"}})'),
        ("percentile", "median quantile percentilecont percentiledisc",
         'vehicles.aggregate({"median": {"percentile": "seats", "fraction": 0.5}})'),
        ("stddev", "std stddevsamp standarddeviation sd", 'vehicles.aggregate({"d": {"stddev": "seats"}})'),
        ("variance", "var varsamp", 'vehicles.aggregate({"v": {"variance": "seats"}})'),
        ("mode", "mostcommon mostfrequent", 'vehicles.aggregate({"usual": {"mode": "model"}})'),
        ("array_agg", "list array collect jsonagg group push",
         'vehicles.aggregate({"plates": {"array_agg": "plate"}})'),
        ("string_agg", "join concat groupconcat listagg",
         'vehicles.aggregate({"plates": {"string_agg": "plate"}})'),
    ),
)  # fmt: skip
"""Our name, other names, an example. If a name is listed twice, the first entry that applies is used."""

CONTAINERS = {
    **dict.fromkeys(("contains", "contain", "includes", "include", "has", "superset"), "cs"),
    **dict.fromkeys(("containedby", "containedin", "within", "subset", "in"), "cd"),
    **dict.fromkeys(("overlaps", "overlap", "overlapping", "intersects", "hasany"), "ov"),
}
"""By other tools' operators on lists, ranges and documents: ours."""

COMPUTING = {
    **dict.fromkeys(("inc", "incr", "increment", "plus", "add"), '{"$add": 1}'),
    **dict.fromkeys(("dec", "decr", "decrement", "minus", "sub", "subtract"), '{"$add": -1}'),
    **dict.fromkeys(("mul", "times", "multiply"), '{"$multiply": 2}'),
    **dict.fromkeys(("push", "addtoset", "arrayunion", "concat", "append"), '{"$append": […]}'),
    **dict.fromkeys(("unshift", "prepend"), '{"$prepend": […]}'),
    **dict.fromkeys(("pull", "pullall", "unset", "delete", "deletekey", "deleteelem", "remove"), '{"$remove": […]}'),
    **dict.fromkeys(("assign", "patch", "extend", "merge"), '{"$merge": {…}}'),
}  # fmt: skip
"""By other tools' operators that compute a new value: ours, and those words for ours without the "$"."""

EXAMPLES = ("actions", "drivers", "vehicles")
"""The relations of the examples, which are those of the demo."""

_COLUMNS = ["id", "status", "action", "path", "created_at", "seats", "model", "plate", "driver_id",
            "phone", "name"]  # fmt: skip
_OF_EXAMPLES = rf"(?:{'|'.join(EXAMPLES)})\."
_EXAMPLE = re.compile(rf", as in {_OF_EXAMPLES}.*?(\?|$)", re.S)
_VALUE = r'(?:[Tt]rue|[Ff]alse|-?\d+|"[^"]*"|\[[^]{]*\])'
_OPERATOR = "|".join(each.ours for each in SYNONYMS if each.kind == "operator")
_COMPARED = re.compile(r"(.+?)\s*([=!<>~]+)", re.S)
_SIGNS = re.compile(r"[\s_$-]")
_EMBEDDED = re.compile(r"(?:^|,)\s*(?:\w+:)?(\w+)(?:!\w+)*\(([^()]+)\)")
_FILTERED = re.compile(r"(eq|neq|gte?|lte?|i?like|i?match|in|is|not|cs|cd|ov)\.")
_SORTED = re.compile(r"(.+?)\s+(asc|desc)(?:ending)?(?:\s+nulls\s+\w+)?", re.I | re.S)


def adapt_hint(hint: str, relation: str, columns: Sequence[str], key: Sequence[str]) -> str:
    """
    Return a hint with its example rewritten for another relation.

    The relation's columns replace those of the example; values are replaced by "…".

    Args:
        hint: A hint with an example on the demo's relations.
        relation: Name of the relation in the call; if empty, the example is removed.
        columns: Its columns.
        key: Columns of its primary key.
    """
    if not relation:
        return _EXAMPLE.sub(r"\1", hint)
    start = hint.find("as in ")
    if start < 0 or not columns:
        return hint
    first = key[0] if key else columns[0]
    others = cycle([each for each in columns if each != first] or [first])
    names = {
        each: first if each == "id" else next(others)
        for each in _COLUMNS
        if each not in columns and re.search(rf'"-?{each}"', hint[start:])
    }
    found = re.sub(_OF_EXAMPLES, lambda _: f"{relation}.", hint[start:])
    found = re.sub(r"\.(\w+)\(1(?=[,)])|key=1", lambda each: each[0][:-1] + "…", found)
    for name, ours in names.items():
        bare = ours.replace("\\", "\\\\")  # in what takes the place of a match
        found = re.sub(rf'"{name}": {_VALUE}', f'"{name}": …', found)
        found = re.sub(
            rf'"{name}": {{"({_OPERATOR})": {_VALUE}}}', rf'"{name}": {{"\1": …}}', found
        )
        found = re.sub(rf'"(-?){name}"', rf'"\g<1>{bare}"', found)
    found = re.sub(rf'"({"|".join(EXAMPLES)})"', '"…"', found)
    return hint[:start] + re.sub(r'("[^"]+"(?:: …)?), \1(?=[]},])', r"\1", found)


def letters(word: str) -> str:
    """Return the letters of a name in lower case, by which names are compared."""
    return _SIGNS.sub("", word.lower()) or word


def synonym_hint(kind: Kind, word: object, known: Collection[str]) -> str | None:
    """
    Return the hint for a name of another tool; None if it is not one.

    Args:
        kind: What the name belongs to.
        word: The name as the caller wrote it.
        known: Our names that are possible here.
    """
    plain = letters(str(word)[:80])
    for ours in known:
        if (
            plain == letters(ours) and word != ours
        ):  # ours with other signs or case: "_eq", "orderBy"
            return f'did you mean "{ours}"?'
    for each in SYNONYMS:
        if each.kind == kind and each.ours in known and plain in map(letters, each.words):
            return each.hint
    return None


def container_hint(name: str, word: str) -> str | None:
    """Return the hint for an operator on a list, a range or a document."""
    ours = CONTAINERS.get(letters(word[:80]))
    return f'did you mean {{"{name}": {{"{ours}": …}}}}?' if ours else None


def computing_hint(word: str) -> str | None:
    """Return the hint for an operator that computes a new value, given without its "$"."""
    ours = COMPUTING.get(letters(word[:80]))
    return f"did you mean {ours}?" if ours else None


def value_hint(path: str, value: object, array: bool) -> str | None:
    """
    Return the hint for a value in the form of another tool: {"increment": 1}, "gt.5", an element.

    Args:
        path: Its path in the call.
        value: A value that its type refuses.
        array: Whether the type is an array.
    """
    first, *steps = path.split(".")
    if first in {"changes", "update"} and isinstance(value, Mapping) and len(value) == 1:
        return computing_hint(str(next(iter(value))))
    if "where" not in (first, *steps) or not isinstance(value, str):
        return None
    found = _FILTERED.match(value)
    if found:
        return f'did you mean {{"{found[1]}": …}}?'
    return 'arrays with an element are found by {"cs": […]}' if array else None


def column_hint(name: str, known: Collection[str], operators: Collection[str]) -> str | None:
    """Return the hint for a name that is not a column: "a, b", "name desc", "name__gt", "$or"."""
    found = _SORTED.fullmatch(name)
    if found and found[1] in known:
        sign = "-" if found[2].lower() == "desc" else ""
        return f'did you mean "{sign}{found[1]}"?'
    embedded = _EMBEDDED.search(name)
    if embedded:
        names = ", ".join(f'"{each.strip()}"' for each in embedded[2].split(","))
        return f'related rows are an argument, as in embed={{"{embedded[1]}": {{"select": [{names}]}}}}'
    first, comma, _ = name.partition(",")
    if comma and first.strip().lstrip("-") in known:
        names = ", ".join(f'"{each.strip()}"' for each in name[:80].split(","))
        return f"did you mean a list, as in [{names}]?"
    if letters(name) in {"desc", "asc", "descending", "ascending"}:
        return 'descending is a sign before the name, as in ["-created_at"]'
    compared = _COMPARED.fullmatch(name)  # "seats >="
    base, mark, operator = name.rpartition("__")
    if compared is not None:
        base, mark, operator = compared[1], " ", compared[2]
    if mark and base in known:
        ours = next(
            (each for each in operators if letters(each) == letters(operator)), None
        ) or next((each.ours for each in SYNONYMS if each.kind == "operator"
                   and letters(operator) in each.words), None)  # fmt: skip
        return f'did you mean {{"{base}": {{"{ours}": …}}}}?' if ours else None
    return synonym_hint("key", name, ("and", "or", "not"))
