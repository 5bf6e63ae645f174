"""
Triggers: the functions that write the log of changes, and that notify its reader.
"""

from __future__ import annotations

from collections.abc import Iterator

CHANNEL = "rowcast_changes"
"""Where a reader that sleeps is notified."""

ASLEEP = 0x726F776361737401
"""
The advisory lock of a reader that sleeps; writers notify nobody else.

NOTIFY on each commit would make commits wait for each other: PostgreSQL takes a lock of the whole
server for it, until after the flush (331 instead of 1,491 commits a second, with 4 clients on a
disk that takes 2 ms). To fall asleep, a reader takes this lock, reads on while anybody else holds
a lock on the log, and then once more. A writer locks the log before it looks for the reader, so
either it sees the reader asleep, or the reader sees its lock.
"""

# The writer's session says neither which operators and functions are meant nor how values are
# written: floats would lose digits, times would be in its zone.
PINNED = (
    "SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'"
    " SET extra_float_digits = 1 SET bytea_output = 'hex' SET intervalstyle = 'iso_8601'"
    " SET datestyle = 'ISO'"
)
# of one column, as nearly always, a tenth cheaper
KEY = (
    "CASE TG_NARGS WHEN 2 THEN json_build_object(TG_ARGV[1], row_to_json({0}) -> TG_ARGV[1])"
    " ELSE (SELECT json_object_agg(c, row_to_json({0}) -> c) FROM unnest(TG_ARGV[1:]) c) END"
)
LOG = "INSERT INTO rowcast.log (relation, op, old, new)"

_NOTIFY = """IF (CASE WHEN {quiet} THEN false
            WHEN pg_catalog.pg_try_advisory_lock_shared({asleep}) THEN NOT pg_catalog.pg_advisory_unlock_shared({asleep})
            ELSE true END) THEN
        NOTIFY {channel};
    END IF;"""
"""Notifies a reader that sleeps, once the log is locked: one expression, which takes PL/pgSQL no query."""


def notify(quiet: str) -> str:
    """Return what notifies a reader that sleeps, unless a condition holds."""
    return _NOTIFY.format(quiet=quiet, asleep=ASLEEP, channel=CHANNEL)


def _updates(logged: str, old: str, new: str, old_rows: str, new_rows: str) -> str:
    """Return what logs updates, by the images of rows and where these are."""
    # To pair one with one is some 20 µs cheaper. A full join can be no nested loop: a plan that is
    # made for two rows is kept for a million.
    return f"""{logged} 'U', {old}, {new} FROM {old_rows} o, {new_rows} n
     WHERE (SELECT pg_catalog.count(*) FROM (SELECT FROM new_rows LIMIT 2) r) OPERATOR(pg_catalog.=) 1;
    IF NOT FOUND THEN
        {logged} 'U', o.image, n.image
          FROM (SELECT {old} AS image, pg_catalog.row_number() OVER () AS at FROM {old_rows} o) o
          FULL JOIN (SELECT {new} AS image, pg_catalog.row_number() OVER () AS at FROM {new_rows} n) n
            ON o.at OPERATOR(pg_catalog.=) n.at;
    END IF;"""


def trigger_functions() -> Iterator[tuple[str, str]]:
    """
    Yield the name and the body of each function that writes the log; one each is fastest.

    Those of statements (`log_inserts` beside `log_insert`) take half the time where there are many
    rows, and notify, too, if they are told to. What a statement changes through a parent of the table
    does not reach them.
    """
    for suffix, image in (("", "row_to_json({})"), ("_key", KEY)):
        before, after = image.format("OLD"), image.format("NEW")
        yield f"log_insert{suffix}", f"{LOG} VALUES (TG_ARGV[0]::int4, 'I', NULL, {after});"
        yield f"log_update{suffix}", f"{LOG} VALUES (TG_ARGV[0]::int4, 'U', {before}, {after});"
        yield f"log_delete{suffix}", f"{LOG} VALUES (TG_ARGV[0]::int4, 'D', {before}, NULL);"
    # "o.*" is the row, where "o" might be a column
    old, new, logged = "row_to_json(o.*)", "row_to_json(n.*)", f"{LOG} SELECT TG_ARGV[0]::int4,"
    wake = notify("TG_NARGS < 2")
    yield "log_inserts", f"{logged} 'I', NULL, {new} FROM new_rows n;\n    {wake}"
    yield "log_deletes", f"{logged} 'D', {old}, NULL FROM old_rows o;\n    {wake}"
    yield "log_updates", f"{_updates(logged, old, new, 'old_rows', 'new_rows')}\n    {wake}"
    # of a whole statement; the trigger says of which kind
    wake = notify("TG_NARGS < 3")
    yield (
        "log_statement",
        f"""INSERT INTO rowcast.log (relation, op) VALUES (TG_ARGV[0]::int4, TG_ARGV[1]::"char");
    {wake}""",
    )


def keys_function() -> str:
    """
    Return the body of the function that logs the keys of one table, a template of PostgreSQL's `format`.

    It takes the number of the table, whether it notifies nobody, the columns of the key, nulls by their
    names, and the names and values of the old and the new key.

    It names the columns of the key: to write whole rows and find the key in these takes more than twice
    as long. One that is there no more is null: a write may not fail because of it.
    """
    logged = f"{LOG} SELECT %1$s,"
    old, new = (f"pg_catalog.json_build_object(%{at}$s)" for at in (5, 6))
    rows = "(SELECT r.* FROM (SELECT %4$s) gone CROSS JOIN LATERAL (SELECT %3$s FROM {}) r)"
    old_rows, new_rows = rows.format("old_rows"), rows.format("new_rows")
    return f"""
#variable_conflict use_column
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'INSERT' THEN
        {logged} 'I', NULL, {new} FROM {new_rows} n;
    ELSIF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
        {logged} 'D', {old}, NULL FROM {old_rows} o;
    ELSE
    {_updates(logged, old, new, old_rows, new_rows)}
    END IF;
    {notify("%2$s")}
    RETURN NULL;
END """


OUTDATED = """
EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_trigger g ON g.tgrelid = c.oid
          JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
         WHERE c.oid = {} AND c.relkind = 'r' AND g.tgname ~ '^[!~]rowcast_'
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid)
           AND p.proname ~ '^(wake|log_(insert|update|delete)(_key|s_key|s_id)?)$')
"""
"""Whether `track` would make other triggers of a table today, which log the same and cost less."""
