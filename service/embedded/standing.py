"""
How the database stands to the code's revision, asked of a child process.

The child has Alembic and SQLAlchemy in its memory, the service does not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from twisted.internet.utils import getProcessOutputAndValue

from schema.database import PROJECT, Place
from service.embedded.supervised import NotReady

COMMAND = [sys.executable, "-m", "schema.revision"]


@dataclass(frozen=True)
class Standing:
    """
    What the child found.

    Args:
        problem: Why the database cannot be served, in a sentence; else None.
        server: The version of PostgreSQL.
        limit: Connections that our role may open.
        revision: Where the database is; None if its revisions are not this project's.
        title: What that revision does.
        relations: How many it holds.
    """

    problem: str | None
    server: str
    limit: int
    revision: str | None
    title: str
    relations: int


def stand(place: Place, connections: int) -> Standing:
    """
    Ask, and wait for the answer: for the time before the reactor runs.

    Raises:
        NotReady: The database cannot be served.
    """
    question = _question(place, connections, upgrade=False)
    child = subprocess.run(COMMAND, input=question, capture_output=True, cwd=PROJECT, check=False)
    return _answer(child.stdout, child.stderr, child.returncode)


async def upgraded(
    reactor: Any, place: Place, connections: int, demo: bool | None = None
) -> Standing:
    """
    Ask, and have a database of ours brought to the code's revision first.

    Args:
        reactor: Runs the child.
        place: Where the database is.
        connections: How many the service wants.
        demo: Whether one of somebody's own that is empty gets the demo tables; None refuses it.

    Raises:
        NotReady: The database cannot be served.
    """
    question = _question(place, connections, upgrade=True, demo=demo)
    output, errors, code = await getProcessOutputAndValue(
        COMMAND[0], COMMAND[1:], env=None, path=str(PROJECT), reactor=reactor, stdinBytes=question
    )
    return _answer(output, errors, code)


def _question(place: Place, connections: int, upgrade: bool, demo: bool | None = None) -> bytes:
    question = {
        "url": place.url,
        "file": place.file and str(place.file),
        "direct": place.direct,
        "state": str(place.state),
        "connections": connections,
        "upgrade": upgrade,
        "demo": demo,
    }
    return json.dumps(question).encode()


def _answer(output: bytes, errors: bytes, code: int) -> Standing:
    if code:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise NotReady(f"the database's revision cannot be found: {' '.join(last)}")
    standing = Standing(**json.loads(output))
    if standing.problem:
        raise NotReady(standing.problem)
    return standing
