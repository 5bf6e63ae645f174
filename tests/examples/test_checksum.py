"""The JavaScript code in docs/live.md computes the same checksum as the service, for any values."""

from __future__ import annotations

import json
import re
import subprocess
from base64 import b64encode
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from service.changes.delta import rows_of
from service.plan.watch_plan import KeyForm
from tests.node import program

PAGE = Path(__file__).parents[2] / "docs" / "live.md"
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        TEXT,
        st.binary(),
    ),
    lambda each: st.one_of(
        st.lists(each, max_size=3),
        st.dictionaries(st.one_of(TEXT, st.sampled_from(["10", "9", "", "é"])), each, max_size=4),
    ),
    max_leaves=6,
)
# As a client has them: binary values as bytes, integers beyond 2^53 as BigInt.
READ = """
const read = (value) => {
  if (Array.isArray(value)) return value.map(read);
  if (value === null || typeof value !== "object") return value;
  if ("bytes" in value) return new Uint8Array(Buffer.from(value.bytes, "base64"));
  if ("big" in value) return BigInt(value.big);
  return Object.fromEntries(value.pairs.map(([name, each]) => [name, read(each)]));
};
const input = JSON.parse(require("fs").readFileSync(0, "utf-8"));
console.log(JSON.stringify(input.map((each) => {
  const { rows, keys, ordered } = each;
  return checksum(rows.map(read), keys.map(read), ordered);
})));
"""


def marked(value: Any) -> Any:
    """Return a value as `READ` takes it, with marks for what JSON cannot represent."""
    if isinstance(value, dict):
        return {"pairs": [[name, marked(each)] for name, each in value.items()]}
    if isinstance(value, list):
        return [marked(each) for each in value]
    if isinstance(value, bytes):
        return {"bytes": b64encode(value).decode()}
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53:
        return {"big": str(value)}
    return value


@settings(max_examples=5, deadline=None)
@given(st.lists(st.lists(VALUES, min_size=1, max_size=4), min_size=1, max_size=60), st.booleans())
def test_javascript_checksum_on_the_page_equals_the_services(
    tables: list[list[Any]], ordered: bool
) -> None:
    """For keys and rows with all kinds of values."""
    page = PAGE.read_text("utf-8")
    (shown,) = re.findall(r"```js\n(const table.*?)```", page, re.S)
    wanted, asked = [], []
    for values in tables:
        rows = [{"id": at, "v": value} for at, value in enumerate(values)]
        form = KeyForm("column", ("id",), ordered)
        wanted.append(rows_of(form, rows, [(row["id"],) for row in rows]).state.checksum)
        keys = [row["id"] for row in rows]
        asked.append({"rows": marked(rows), "keys": keys, "ordered": ordered})
    done = subprocess.run(
        [program(), "-e", shown + READ],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == wanted
