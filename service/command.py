"""
The command `rowcast call`: one call from the command line; also the router's part of `rowcast why`.

Arguments are JSON or its relaxed form in YAML: `limit: 2, where: {status: false}`.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from click import echo
from tabulate import tabulate
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from service.api.verbs import VERBS
from service.changes.why import Check
from service.errors import visible
from service.settings import Address, Settings
from service.wamp.auth import Anonymous, Cryptosign, Login, Ticket
from service.wamp.caller import CallRefused, CallTarget, NotJoined, call_once, subscribe_once

KEYWORDS_ONLY = frozenset(verb.name for verb in VERBS.values() if not verb.positional)
"""Verbs without positional arguments; a dict given to them holds keyword arguments."""
PROGRESSIVE = frozenset(verb.name for verb in VERBS.values() if verb.progress is not None)
"""Verbs that answer with progressive results."""

ANSWERED, REFUSED, UNREACHABLE, INTERRUPTED, UNREAD = 0, 1, 3, 130, 141
"""
Exit statuses; 2 is a usage error. 3 means that a retry may succeed. The last two are those of a process that
SIGINT or SIGPIPE has ended.
"""


class BadArgument(ValueError):
    """An invalid argument on the command line; the message says why."""


class Loader(yaml.SafeLoader):
    """YAML whose plain scalars are strings, except for JSON's numbers, true, false and null."""

    # Without the base class's resolvers of YAML 1.1, where `no` is false, 1:30 is 90, and 2026-01-01 a date.
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as the base class has it

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """
        Build a dict.

        Raises:
            BadArgument: A key is given twice, of which the base class would keep the last value, or is
                `limit:2`, which YAML parses as a key without a value.
        """
        found = super().construct_mapping(node, deep)
        for key, times in Counter(self.construct_object(key) for key, _ in node.value).items():
            if times > 1:
                raise _given_twice(key)
            if found[key] in (None, "") and isinstance(key, str) and re.match(r"\w+:", key):
                raise BadArgument(f'a blank is missing after the colon in "{key}"')
        return found


for tag, pattern, first in (
    ("null", r"null", "n"),
    ("bool", r"true|false", "tf"),
    ("int", r"-?(0|[1-9][0-9]*)", "-0123456789"),
    ("float", r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", "-0123456789"),
):
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), [*first]
    )


def arguments(words: Sequence[str], verb: str) -> tuple[list[Any], dict[str, Any]]:
    """
    Parse the words after the procedure's name into positional and keyword arguments.

    Args:
        words: `key: value, …` or `key=value` are keyword arguments, all others are positional.
        verb: The verb of the procedure.

    Raises:
        BadArgument: A word is neither JSON nor YAML, or an argument is given twice.
    """
    args: list[Any] = []
    positional: list[str] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        if word.startswith("--"):
            name = word.lstrip("-").partition("=")[0]
            raise BadArgument(f"no option {word}; an argument of the call is {name}=VALUE")
        named = re.match(r"([A-Za-z_]\w*)=(?!=)(.*)", word, re.DOTALL)
        if named:
            _add(kwargs, {named[1]: _value(named[2]) if named[2] else ""})
        elif re.match(r'[A-Za-z_]\w*\s*:(\s|[{\["]|$)', word):
            _add(kwargs, _value("{" + word + "}"))
        else:
            value = _value(word)
            if isinstance(value, dict) and not args and verb in KEYWORDS_ONLY:
                _add(kwargs, value)
            else:
                args.append(value)
                positional.append(word)
    if args and verb in KEYWORDS_ONLY:
        raise BadArgument(
            f'"{verb}" takes its arguments by name: limit=2, or "limit: 2" with a blank after the'
            f" colon; got {positional[0]}"
        )
    return args, kwargs


def _add(kwargs: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add keyword arguments; refuse a name that is no string, or is given already."""
    for name, value in more.items():
        if not isinstance(name, str):
            raise BadArgument(f'"{name}" is not the name of an argument')
        if name in kwargs:
            raise _given_twice(name)
        kwargs[name] = value


def _given_twice(name: object) -> BadArgument:
    return BadArgument(f'"{name}" is given twice')


def _value(text: str) -> Any:
    try:
        # A text without a value, such as "" or "#1", would be null.
        return yaml.load(text, Loader) if yaml.compose(text, Loader) else text
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        at = f" at character {where.index + 1}" if where else ""
        raise BadArgument(f"cannot read{at}: {text}") from error


class Printer:
    """
    Prints answers.

    Args:
        table: Whether rows are printed as a table rather than as JSON.
    """

    def __init__(self, table: bool) -> None:
        self._table = table

    def part(self, part: Any) -> None:
        """Print a progressive result: text unchanged, rows as lines of JSON or as a table."""
        if isinstance(part, str):
            # Only a terminal interprets control characters, so a file gets the text unchanged.
            echo(visible(part) if sys.stdout.isatty() else part, nl=False)
        elif self._table:
            self.answer(part)
        else:
            for row in part if isinstance(part, list) else [part]:
                echo(_json(row, None))

    def answer(self, answer: Any) -> None:
        """Print a result."""
        rows: Any = answer.get("rows") if isinstance(answer, dict) else answer
        are_rows = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
        if self._table and are_rows:
            cells = [{visible(key): _cell(each) for key, each in row.items()} for row in rows]
            # tabulate would parse texts such as 007 or 1e5 as numbers, and format them.
            echo(tabulate(cells, headers="keys", disable_numparse=True))
            for key, value in answer.items() if isinstance(answer, dict) else ():
                if key != "rows" and value is not None:
                    echo(f"{key}: {_json(value, None)}")
        else:
            echo(_json(answer, 2))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return visible(value) if isinstance(value, str) else _json(value, None)


def _json(value: Any, indent: int | None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=_binary)
    # JSON does not escape these control characters, which a terminal would interpret.
    return re.sub(r"[\x7f-\x9f]", lambda at: f"\\u{ord(at[0]):04x}", text)


def _binary(value: Any) -> str:
    """Return bytes in WAMP's form for JSON: NUL and base64."""
    return "\0" + base64.b64encode(bytes(value)).decode()


def run_call(
    reactor: Any,
    target: CallTarget,
    uri: str,
    words: Sequence[str],
    printer: Printer,
    progress: bool = False,
    timeout: float | None = None,
) -> int:
    """
    Run the reactor for one call, and print its answer or error.

    Args:
        reactor: A reactor that has not run yet; it cannot run again afterwards.
        target: The router, and the login of the caller.
        uri: The URI of the procedure.
        words: The arguments on the command line.
        printer: Prints the answer.
        progress: Whether to ask for progressive results for any verb.
        timeout: Seconds that the call may take.

    Returns:
        The exit status.

    Raises:
        BadArgument: The arguments are invalid.
        OSError: The output cannot be written; the call was cancelled.
    """
    verb = uri.rpartition(".")[2]
    args, kwargs = arguments(words, verb)
    if timeout is not None:
        _add(kwargs, {"timeout": timeout})
    failed: list[OSError] = []

    def part(part: Any) -> None:
        # autobahn would log an exception, and continue the call.
        if not failed:
            try:
                printer.part(part)
            except OSError as error:
                failed.append(error)
                reactor.stop()  # as Ctrl-C does, which cancels the call

    on_progress = part if progress or verb in PROGRESSIVE else None
    call = partial(_call, _notes(args))
    answer, status = _wait(reactor, call, target, uri, args, kwargs, on_progress)
    if failed:
        raise failed[0]
    if status == ANSWERED:
        if verb == "export":  # the standard output has the exported rows alone, for redirection
            echo(_json(answer, None), err=True)
        else:
            printer.answer(answer)
    return status


async def _call(notes: Mapping[str, str], *how: Any) -> Any:
    try:
        return await call_once(*how)
    except CallRefused as error:
        error.details = {**error.details, **notes}
        raise


def _notes(args: Sequence[Any]) -> dict[str, str]:
    """Return what to print with a refusal if a positional argument may be meant as `name: value`."""
    for each in args:
        if isinstance(each, str) and (named := re.match(r"([A-Za-z_]\w*):(?!//)(\S.*)", each)):
            meant = f"{named[1]}: {named[2]}"
            return {"note": f'"{each}" was sent as a string; an argument by name is "{meant}"'}
    return {}


def run_why(reactor: Any, target: CallTarget, prefix: str, relation: str) -> list[Check]:
    """
    Run the reactor to check whether the router lets a subscriber receive the events of a relation.

    Args:
        reactor: A reactor that has not run yet; it cannot run again afterwards.
        target: The router, and the login of the subscriber.
        prefix: The prefix of the service's procedures and topics.
        relation: The name of the relation in URIs.
    """
    found: list[Check] = []

    async def look(reactor: Any) -> None:
        try:
            health = await call_once(reactor, target, f"{prefix}.health", [], {})
            bad = [name for name, well in health["checks"].items() if not well]
            why = f"the service says that it is not well: {', '.join(bad)}"
            found.append(Check(not bad, why if bad else "a service answers, and is well"))
        except CallRefused as error:
            found.append(Check(False, f"no service answers: {error}", "start one (make run)"))
        topic = f"{prefix}.{relation}.changed."
        try:
            await subscribe_once(reactor, target, topic)
            found.append(Check(True, f"the router lets you subscribe to {topic}"))
        except CallRefused as error:
            permit = f'allow your role "subscribe" on {topic} in the router\'s configuration'
            found.append(Check(False, f"you may not subscribe to {topic}: {error}", permit))

    async def answer(reactor: Any) -> None:
        try:
            await look(reactor)
        except NotJoined as error:
            cure = "start it (make run), or say --url, --realm, --authid"
            found.append(Check(False, f"no session at the router {target.url}: {error}", cure))

    _wait(reactor, answer)
    return found


def complete(reactor: Any, settings: Settings, incomplete: str) -> list[str]:
    """Return the names of procedures with a prefix, from the description for anonymous callers."""
    target = CallTarget(default_url(settings), settings.realm)
    uri = full_uri(settings.prefix, "describe")
    # An error message would appear in the middle of the line that the user types.
    with redirect_stderr(StringIO()):
        document, status = _wait(reactor, call_once, target, uri, [], {}, None)
    if status != ANSWERED:
        return []
    names = [
        f"{relation}.{verb}"
        for relation, described in document["relations"].items()
        for verb in described["verbs"]
    ]
    names += [*document["functions"], *document["procedures"]]
    return [name for name in names if name.startswith(incomplete)]


def default_url(settings: Settings) -> str:
    """Return the URL of the router in the settings, or of the embedded one for clients."""
    return settings.router_url[0] if settings.router_url else f"ws://127.0.0.1:{settings.port}/ws"


def full_uri(prefix: str, procedure: str) -> str:
    """
    Return a procedure's URI; a complete URI, such as one of the router's own, is returned unchanged.

    Raises:
        BadArgument: It cannot be the name of a procedure.
    """
    uri = procedure if procedure.startswith((f"{prefix}.", "wamp.")) else f"{prefix}.{procedure}"
    if not re.fullmatch(r"[^\s.#]+(\.[^\s.#]+)*", uri):
        raise BadArgument(
            f'"{procedure}" is not the name of a procedure: relation.verb, fn.function'
        )
    return uri


def call_target(url: str, realm: str, login: Login) -> CallTarget:
    """
    Return the router and the login for a call.

    Raises:
        BadArgument: The URL is not that of a router, or the key cannot be read.
    """
    try:
        Address.from_url(url)
    except ValueError as error:
        raise BadArgument(f"--url {error}") from None
    try:
        login.extra()
    except Exception as error:
        raise BadArgument(f"--key {error}") from None
    return CallTarget(url, realm, login)


def login(authid: str | None, ticket: str | None, key: str | None) -> Login:
    """
    Return the login of the caller.

    Args:
        authid: The authid.
        ticket: The secret for ticket authentication.
        key: The path of the private key for cryptosign authentication.

    Raises:
        BadArgument: A ticket is given without an authid, an authid without a ticket or a key, or both of these.
    """
    if key is not None and ticket is not None:
        raise BadArgument("--ticket and --key are two answers to one question: give one")
    if key is not None:
        return Cryptosign(authid, Path(key))
    if (ticket is None) != (authid is None):
        # With an authid alone, a router that takes anonymous callers would take this one for a guest.
        raise BadArgument(
            "--authid needs --ticket (or WAMP_TICKET) or --key, and --ticket needs --authid"
        )
    return Anonymous() if ticket is None or authid is None else Ticket(authid, ticket)


def _wait(reactor: Any, call: Callable[..., Any], *how: Any) -> tuple[Any, int]:
    """Run the reactor until a call has ended; return its answer and the exit status. Ctrl-C cancels it."""
    ended: list[tuple[Any, int]] = []
    failed: list[Failure] = []

    def begin() -> None:
        running = Deferred.fromCoroutine(_ended(call(reactor, *how)))
        trigger = reactor.addSystemEventTrigger("before", "shutdown", running.cancel)
        running.addCallbacks(ended.append, failed.append)

        def stop(_: object) -> None:
            # ValueError: Ctrl-C has removed the trigger, and stops the reactor itself.
            with suppress(ValueError):
                reactor.removeSystemEventTrigger(trigger)
                reactor.stop()

        running.addBoth(stop)

    reactor.callWhenRunning(begin)
    reactor.run()
    for failure in failed:
        if not failure.check(CancelledError):
            failure.raiseException()
    return ended[0] if ended else (None, INTERRUPTED)


async def _ended(call: Awaitable[Any]) -> tuple[Any, int]:
    try:
        return await call, ANSWERED
    except NotJoined as error:
        cure = "is it running (make run)? is --url right?"
        if error.refused:
            cure = "check --realm, --authid and its ticket or key"
        _complain(f"no session at the router: {error} → {cure}", {})
        return None, REFUSED if error.refused else UNREACHABLE
    except CallRefused as error:
        _complain(str(error), error.details)
        return None, UNREACHABLE if error.details.get("retry") else REFUSED


def _complain(line: str, details: Mapping[str, Any]) -> None:
    echo(visible(line), err=True)
    for key, value in details.items():
        shown = value if isinstance(value, str) else _json(value, None)
        echo(visible(f"  {key}: {shown}"), err=True)
