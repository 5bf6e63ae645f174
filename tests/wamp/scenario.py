"""
A list of calls and their results that each kind of client runs: `scenario.json` on `scenario.sql`.

A step is `call` with `args` and `kwargs`, and `result`, or `error` with `message` and `details`;
`parts` are the progressive results before the last. `{"$bytes": base64}` is binary,
`{"$int": digits}` an integer that JSON in JavaScript rounds; such a step `needs` a client that
does not.
"""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions

from tests.wamp.callers import Caller

FILE = Path(__file__).with_name("scenario.json")
SCHEMA = FILE.with_suffix(".sql").read_text()


def read(text: str) -> Any:
    """Parse steps, and replace the marked values."""
    return json.loads(text, object_hook=_value)


def _value(found: dict[str, Any]) -> Any:
    if "$bytes" in found:
        return b64decode(found["$bytes"])
    return int(found["$int"]) if "$int" in found else found


async def run(caller: Caller, prefix: str, steps: Any) -> list[str]:
    """Make the calls; return the differences from the expected results."""
    wrong = []
    for step in steps:
        expected = step.get("result")
        if "error" in step:
            expected = [step["error"], step["message"], step["details"]]
        parts: list[Any] = []
        kwargs = dict(step.get("kwargs", {}))
        if "parts" in step:
            kwargs["options"] = CallOptions(on_progress=parts.append)
        try:
            found = await caller.call(f"{prefix}.{step['call']}", *step.get("args", []), **kwargs)
        except ApplicationError as error:
            found = [error.error, error.args[0] if error.args else None, error.kwargs]
        if (found, parts) != (expected, step.get("parts", [])):
            wrong.append(f"{step['call']}: expected {expected!r}, found {found!r} after {parts!r}")
    return wrong
