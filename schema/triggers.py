"""
Bodies of the trigger functions that write the change log and notify the sleeping leader.
"""

from __future__ import annotations

from collections.abc import Iterator

CHANNEL = "rowcast_changes"
"""Channel on which writers notify a sleeping leader."""

ASLEEP = 0x726F776361737401
"""
Advisory lock that a sleeping leader holds; writers send NOTIFY only while it is held.

NOTIFY in each commit would serialize commits: PostgreSQL holds a server-wide lock from before such a commit
until after its flush (331 in place of 1,491 commits a second, with 4 clients and a flush of 2 ms). To fall
asleep, the leader takes this lock, polls the log while any other session holds a lock on the log, and then
once more. A writer locks the log before it tests this lock. So either the writer sees the leader asleep, or
the leader sees the writer's lock.
"""

# Without these settings, the writer's session would decide which operators and functions are called, and
# how values are written: floats would lose digits, times would be in its time zone.
PINNED = (
    "SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'"
    " SET extra_float_digits = 1 SET bytea_output = 'hex' SET intervalstyle = 'iso_8601'"
    " SET datestyle = 'ISO'"
)
# The case of a key with one column, the usual one, is a tenth cheaper by itself.
KEY = (
    "CASE TG_NARGS WHEN 2 THEN json_build_object(TG_ARGV[1], row_to_json({0}) -> TG_ARGV[1])"
    " ELSE (SELECT json_object_agg(c, row_to_json({0}) -> c) FROM unnest(TG_ARGV[1:]) c) END"
)
# Images are json, not jsonb, which costs more to make: with row triggers that log json, an insert of 10,000 rows
# took 2.9 times the CPU of one without them, with jsonb 3.7 times.
LOG = "INSERT INTO rowcast.log (relation, op, old, new)"

_NOTIFY = """IF (CASE WHEN {quiet} THEN false
            WHEN pg_catalog.pg_try_advisory_lock_shared({asleep}) THEN NOT pg_catalog.pg_advisory_unlock_shared({asleep})
            ELSE true END) THEN
        NOTIFY {channel};
    END IF;"""
"""
Notifies a sleeping leader; runs after the insert into the log, which has locked it.

PL/pgSQL evaluates a single expression without running a query.
"""


def notify(quiet: str) -> str:
    """Return the statement that notifies a sleeping leader, unless the condition `quiet` holds."""
    return _NOTIFY.format(quiet=quiet, asleep=ASLEEP, channel=CHANNEL)


def _updates(logged: str, old: str, new: str, old_rows: str, new_rows: str) -> str:
    """Return the statements that log updates, given the expressions of images and the transition tables."""
    # A separate statement for one updated row is about 20 µs cheaper. Several rows are paired by a full
    # join, which cannot be a nested loop: a plan made for two rows may be kept for a million.
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
    Yield the name and body of each function that writes the log; one function per operation is fastest.

    The functions of statement triggers (`log_inserts` beside `log_insert`) take half the time for many rows,
    and also notify if their argument says so. They do not fire for changes made through a parent of the
    table, so partitions and inheritance children need row triggers.
    """
    for suffix, image in (("", "row_to_json({})"), ("_key", KEY)):
        before, after = image.format("OLD"), image.format("NEW")
        yield f"log_insert{suffix}", f"{LOG} VALUES (TG_ARGV[0]::int4, 'I', NULL, {after});"
        yield f"log_update{suffix}", f"{LOG} VALUES (TG_ARGV[0]::int4, 'U', {before}, {after});"
        yield f"log_delete{suffix}", f"{LOG} VALUES (TG_ARGV[0]::int4, 'D', {before}, NULL);"
    # "o.*" is the row in any case, while "o" alone could be a column of the table.
    old, new, logged = "row_to_json(o.*)", "row_to_json(n.*)", f"{LOG} SELECT TG_ARGV[0]::int4,"
    wake = notify("TG_NARGS < 2")
    yield "log_inserts", f"{logged} 'I', NULL, {new} FROM new_rows n;\n    {wake}"
    yield "log_deletes", f"{logged} 'D', {old}, NULL FROM old_rows o;\n    {wake}"
    yield "log_updates", f"{_updates(logged, old, new, 'old_rows', 'new_rows')}\n    {wake}"
    # One log row for an entire statement; the trigger's argument has the operation.
    wake = notify("TG_NARGS < 3")
    yield (
        "log_statement",
        f"""INSERT INTO rowcast.log (relation, op) VALUES (TG_ARGV[0]::int4, TG_ARGV[1]::"char");
    {wake}""",
    )


def keys_function() -> str:
    """
    Return the body of the function that logs the keys of one table, as a template for PostgreSQL's `format`.

    Its parameters: number of the table; whether not to notify; columns of the key; nulls under their names;
    names and values of the old and of the new key.

    The body names the key columns, because to convert entire rows and pick the key takes more than twice as
    long. A key column that was dropped since is null, so that writes do not fail because of it.
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
"""Condition that a table's triggers are of an older version, which logs the same at a higher cost."""
