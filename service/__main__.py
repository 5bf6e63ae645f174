"""
The command line, `rowcast` or `python -m service`: run, call, settings, init, seed, track and more.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from signal import SIG_DFL, SIGINT, default_int_handler, getsignal, signal
from time import monotonic, sleep
from typing import Any, NoReturn
from urllib.parse import quote

# The imports below take a second, in which Ctrl-C would print a traceback. Nothing has to be undone yet.
if getsignal(SIGINT) is default_int_handler:
    signal(SIGINT, SIG_DFL)
# Collecting garbage would take a fifth of their CPU time, and what they make stays.
if gc.isenabled():
    gc.disable()

import click
from twisted.internet import reactor as installed
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure

from schema.changes import LEVELS, TrackingRefused, track_table, untrack_table
from schema.database_url import EmbeddedFailed, InvalidUrl
from schema.own import NotMade, make
from schema.seed import SeedRefused, sow
from service.api.verbs import VERBS
from service.app import Rowcast, freeze_memory, make_directory, obstacles, stop_once
from service.catalog import Catalog
from service.changes.why import NoTestRow, find_relation, table_checks_txn, try_txn
from service.command import (
    INTERRUPTED,
    UNREAD,
    BadArgument,
    Printer,
    call_target,
    complete,
    default_url,
    full_uri,
    login,
    run_call,
    run_why,
)
from service.db.introspect import read_catalog
from service.db.session_settings import SessionSettings, open_session
from service.describe import stubs
from service.describe.document import describe as describe_catalog
from service.describe.relations import served_name
from service.embedded.crossbar import bridge
from service.embedded.supervisor import NotReady, rotate
from service.errors import InvalidArgument
from service.logs import at_level
from service.models.served import fits
from service.procedures.registry import InvalidApplication, load_application
from service.settings import InvalidSettings, Settings, load
from service.wamp.caller import CallTarget

SHORT_DRAIN = 2.0
"""Maximum seconds that running calls get to end after Ctrl-C, even if the settings allow more."""

reactor: Any = installed

gc.freeze()
gc.enable()


class Commands(click.Group):
    """The commands, which end quietly if they are interrupted, or if the reader of their output ends."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; exit with the status that `docs/command.md` gives if it cannot end."""
        try:
            if getsignal(SIGINT) is SIG_DFL:
                signal(SIGINT, default_int_handler)
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except OSError as error:
            # Python flushes the buffer again at its end, which would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                sys.exit(UNREAD)
            fail(str(error))  # a full disk, for example


@click.group(cls=Commands, help="PostgreSQL for WAMP clients.")
@click.version_option(package_name="rowcast", message="%(package)s %(version)s")
def main() -> None:
    """Group the commands."""


@main.command("settings", help="Print all settings, their values and sources.")
def show() -> None:
    """Print the settings, with secrets hidden."""
    lines = list(read().lines())
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for name, value, source in lines:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}")


@main.command(help="Fill the demo tables with rows; does nothing if they have some.")
def seed() -> None:
    """Seed the database."""
    with database(SeedRefused) as (_, dsn):
        print(sow(dsn))


@main.command(help="Create the schema rowcast in a database without this project's migrations.")
def init() -> None:
    """Create the schema `rowcast`."""
    with database(NotMade) as (_, dsn):
        make(dsn)
    print("the schema rowcast is there")


@main.command(help="Log all changes of a table from now on.")
@click.argument("table")
@click.option("--level", type=click.Choice(LEVELS), default=LEVELS[0], show_default=True)
@click.option("--no-wake", is_flag=True, help="Send no NOTIFY, which PREPARE TRANSACTION refuses.")
def track(table: str, level: str, no_wake: bool) -> None:
    """Track a table."""
    _track(track_table, table, level, not no_wake)


@main.command(help="Stop logging the changes of a table.")
@click.argument("table")
def untrack(table: str) -> None:
    """Untrack a table."""
    _track(untrack_table, table)


def _track(act: Callable[..., str], *what: object) -> None:
    with database(TrackingRefused) as (settings, dsn):
        print(act(dsn, *what, schemas=settings.schemas))


ROUTER_OPTIONS = [
    click.option("--url", help="URL of the router; by default that of the settings."),
    click.option("--realm", help="WAMP realm; by default that of the settings."),
    click.option("--authid", envvar="WAMP_AUTHID", help="The authid to log in with."),
    click.option(
        "--ticket",
        envvar="WAMP_TICKET",
        help="The ticket of the authid; better set in WAMP_TICKET.",
    ),
    click.option(
        "--key",
        envvar="WAMP_KEY",
        type=click.Path(dir_okay=False),
        help="File with the private key of the authid.",
    ),
]
"""The options for the router and the login."""


def at_router(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `ROUTER_OPTIONS` to a command."""
    for option in reversed(ROUTER_OPTIONS):
        command = option(command)
    return command


def target_of(settings: Settings, **where: str | None) -> CallTarget:
    """Return the router and the login of options and settings; exit if they are invalid."""
    url, realm = where.pop("url"), where.pop("realm")
    try:
        return call_target(url or default_url(settings), realm or settings.realm, login(**where))
    except BadArgument as error:
        raise click.UsageError(str(error)) from None


@main.command(help="Check why no events of a table's changes arrive.")
@click.argument("table")
@click.option("--role", help="Database role of the subscriber; by default the service's.")
@click.option(
    "--try", "tries", is_flag=True, help="Update a row to itself and time the event; asks first."
)
@at_router
def why(table: str, role: str | None, tries: bool, **where: str | None) -> None:
    """Print a line for each check; exit with 1 if one fails."""
    target = target_of(read(), **where)
    try:
        with database(NoTestRow) as (settings, dsn):
            catalog = read_catalog(dsn, settings.schemas)
            relation = find_relation(catalog, table)
            connection = open_session(dsn, SessionSettings(schemas=settings.schemas))
            try:
                home = relation.schema, relation.name
                checks = table_checks_txn(connection, *home, role)
                question = f"Update a row of {table} to its present values? Its triggers run."
                if tries and checks[0].ok and click.confirm(question, err=True):
                    checks.append(try_txn(connection, *home, sleep))
            finally:
                connection.close()
    except InvalidArgument as error:
        hint = error.details.get("hint")
        served = f"{error.message}, or it is hidden or of a schema that is not served"
        fail(f"{served} (ROWCAST_SCHEMAS){f' → {hint}' if hint else ''}")
    for check in checks:
        print(check.line(), flush=True)
    found = run_why(reactor, target, settings.prefix, served_name(catalog, relation))
    for check in found:
        print(check.line())
    sys.exit(any(check.ok is False for check in (*checks, *found)))


def procedures(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Return the procedures with a prefix, for the shell's completion; none on errors."""
    with suppress(Exception):
        return complete(reactor, load(), incomplete)
    return []


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("procedure", shell_complete=procedures)
@click.argument("arguments", nargs=-1)
@at_router
@click.option("--progress", is_flag=True, help="Print progressive results as they arrive.")
@click.option("--timeout", type=float, help="Seconds that the call may take.")
@click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    help="By default a table in a terminal, JSON elsewhere.",
)
def call(
    procedure: str,
    arguments: tuple[str, ...],
    progress: bool,
    timeout: float | None,
    output: str | None,
    **where: str | None,
) -> None:
    """
    Call a procedure and print what it answers.

    ARGUMENTS are JSON, or as YAML relaxes it: 'limit: 2, where: {status: false}' and limit=2 are
    keyword arguments, 42 and '{action: run}' are positional ones.

    Exits with 0 if it was answered, 1 if it was refused, 2 if the command line makes no sense, 3
    if trying again may help (no router, no service), 130 if it was interrupted, 141 if the reader of
    its output has ended.
    """
    settings = read()
    printer = Printer(sys.stdout.isatty() if output is None else output == "table")
    target = target_of(settings, **where)
    try:
        uri = full_uri(settings.prefix, procedure)
        sys.exit(run_call(reactor, target, uri, arguments, printer, progress, timeout))
    except BadArgument as error:
        raise click.UsageError(str(error)) from None


ROLE = click.option("--role", help="Database role; only what it may use.")


@main.command(help="Print the description of all procedures as JSON, as `describe` answers it.")
@ROLE
def describe(role: str | None) -> None:
    """Print the description."""
    print(json.dumps(document(role), ensure_ascii=False, indent=2))


@main.command(help="Print typed definitions of what is served, for TypeScript or Python.")
@click.option("--lang", type=click.Choice(["ts", "py"]), required=True)
@ROLE
def types(lang: str, role: str | None) -> None:
    """Print types."""
    written = stubs.typescript if lang == "ts" else stubs.python
    print(written(document(role)), end="")


def document(role: str | None) -> dict[str, Any]:
    """Build the description without a pool and a router; exit with the problem if there is one."""
    with database(InvalidApplication) as (settings, dsn):
        catalog = read_catalog(dsn, settings.schemas, role)
        declared = load_application(settings.app).procedures
    written = {
        name: each.function
        for name, each in declared.items()
        if all(fits(model, catalog) for model in each.needs)
    }
    version = metadata.version("rowcast")
    return describe_catalog(
        catalog, settings.prefix, version, VERBS, written, explains=settings.explain
    )


@main.command(help="Run everything in the foreground: database, migrations, router, service.")
def run() -> None:
    """Run until Ctrl-C."""
    began = monotonic()
    # No part runs yet that would have to be stopped, so Ctrl-C may end the process.
    signal(SIGINT, SIG_DFL)

    def progress(step: str, what: str) -> None:
        print(f"{monotonic() - began:6.1f} s  {step:<11} {what}".rstrip(), flush=True)

    settings = read()
    try:
        make_directory(settings)
        obstacles(settings)
    except NotReady as refusal:
        fail(str(refusal))
    progress("settings", settings_line(settings))
    problem = serve(settings, progress)
    if problem:
        fail(problem)
    progress("stopped", "")


def serve(settings: Settings, progress: Callable[[str, str], None]) -> str:
    """Run the reactor until it stops; return the problem that stopped it, or ""."""
    start_log(settings)
    drain = min(SHORT_DRAIN, settings.drain_timeout)
    quick = settings.model_copy(update={"drain_timeout": drain})
    service = Rowcast(quick, reactor, upgrade=True, progress=progress)
    problems: list[str] = []

    def give_up(why: Failure) -> None:
        known = why.check(NotReady) is not None
        problems.append(str(why.value) if known else why.getTraceback())
        reactor.stop()

    def ready(_: None) -> None:
        freeze_memory()
        print(first_steps(settings, service.catalog_without_login()), flush=True)

    service.when_ready().addCallbacks(ready, give_up)

    stop_once(reactor)
    reactor.callWhenRunning(service.startService)
    # The reactor stops once the Deferred of this trigger has fired.
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    return "".join(problems)


def start_log(settings: Settings) -> None:
    """Log warnings and errors to the terminal, and events of the configured level to a file."""
    log = settings.state / f"service-{settings.port}.log"
    rotate(log)
    file = log.open("a")
    levels = [(sys.stderr, "warn"), (file, settings.log_level)]
    globalLogBeginner.beginLoggingTo(
        [at_level(textFileLogObserver(out), level) for out, level in levels],
        # Otherwise Twisted replaces stdout, and each `print` becomes an event of the log.
        redirectStandardIO=False,
    )


def settings_line(settings: Settings) -> str:
    """Return the line that says which parts are embedded and which are the user's own."""
    if settings.place.embedded:
        where = f"embedded PostgreSQL in {relative(settings.state / 'pg')}"
        database = f"DATABASE_URL not set → {where}   (set it to use yours)"
    else:
        file = settings.database_url_file
        database = f"database: {'DATABASE_URL' if file is None else f'as {file} says'}"
    return database if settings.embedded_router else f"{database}; router: ROWCAST_ROUTER_URL"


def first_steps(settings: Settings, catalog: Catalog | None) -> str:
    """
    Return the first commands to try, to be pasted into a terminal.

    Args:
        settings: The settings.
        catalog: What callers may use who do not log in; None if they may use nothing, or it is not known.
    """
    base = f"127.0.0.1:{settings.port}"
    url = default_url(settings)
    # The user's own database need not have the demo tables, nor a role rights on them.
    names = (
        [served_name(catalog, each) for each in catalog.relations.values() if each.selectable]
        if catalog
        else []
    )
    demo = "actions" in names and (settings.place.embedded or settings.demo)
    verb, kwargs = ("actions.find", {"limit": 2}) if demo else ("describe", {})
    first = f"{settings.prefix}.{verb}"
    command = beside("rowcast") or f"{relative(Path(sys.executable))} -m service"
    lines = [f"WAMP   {url}  realm {settings.realm}"]
    if settings.place.embedded:
        host = quote(settings.place.cluster.parameters["host"], safe="/")
        psql = beside("psql") or settings.place.cluster.program("psql")
        lines += [f"psql   {psql} 'postgresql://postgres@/postgres?host={host}'"]
    there = "" if url == "ws://127.0.0.1:8080/ws" else f" --url {url}"
    there += "" if settings.realm == "realm1" else f" --realm {settings.realm}"
    if catalog is not None:
        lines += [f"Try    {command} call {verb}" + (" 'limit: 2'" if demo else "") + there]
    elif not settings.embedded_router:
        lines += [f"Try    {command} call {verb}{there} --authid …   with WAMP_TICKET or --key"]
    if catalog is not None and settings.embedded_router:
        body = json.dumps({"procedure": first, "kwargs": kwargs}, separators=(",", ":"))
        http = f"http://{base}/{bridge(settings.state)}"
        lines += [f"       curl -d '{body}' -H 'content-type: application/json' {http}"]
    if demo:
        # The watch prints each change of the table, as the UPDATE in psql shows.
        lines += [f"Live   {command} call actions.watch 'limit: 2'{there}"]
        lines += ["       and in psql  UPDATE actions SET status = NOT status WHERE id = 1;"]
    return "\n".join(f"    {line}" for line in [*lines, "Ctrl-C stops everything."])


def beside(program: str) -> str | None:
    """Return the path of a program beside the interpreter, if it is there."""
    path = Path(sys.executable).with_name(program)
    return relative(path) if path.exists() else None


def relative(path: Path) -> str:
    """Return a path relative to the working directory, if it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextmanager
def database(refusal: type[Exception]) -> Iterator[tuple[Settings, str]]:
    """Yield the settings and the DSN of the running database; exit with the message of a refusal."""
    settings = read()
    try:
        with settings.place.running() as dsn:
            yield settings, dsn
    except (EmbeddedFailed, InvalidUrl, OSError, refusal) as error:
        fail(str(error))


def read() -> Settings:
    """Read the settings; exit with all problems if there are any."""
    try:
        return load()
    except InvalidSettings as refusal:
        fail(*refusal.problems)


def fail(*problems: str) -> NoReturn:
    """Print problems, one on each line, and exit with status 1."""
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m service")
