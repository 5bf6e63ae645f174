"""
An import of 1,000,000 rows in one upload: `python -m bench.imports [--crossbar PATH] [--csv]`.

Prints the duration, the memory of the service and the router, the loop lag of the service, and the
latency of other callers' `get` before and meanwhile. With `--conflict`, the rows go through a
temporary table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import DeferredSemaphore, gatherResults

from bench.stage import staged
from bench.stream import Guest, Others, join

SCHEMA = """
CREATE TABLE big (id int PRIMARY KEY, at timestamptz, price numeric, body text);
"""


def main() -> None:
    """Measure, or run one of the callers."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--crossbar", default=".venv-router/bin/crossbar")
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--chunk", type=int, default=1000, help="rows per call")
    options.add_argument("--ahead", type=int, default=2, help="calls in flight")
    options.add_argument("--csv", action="store_true")
    options.add_argument("--conflict", action="store_true")
    options.add_argument("--others", type=int, default=4, help="callers of get")
    options.add_argument("--take", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.take:
        join(given.take, Giver(given))
        return
    with staged(given.crossbar, SCHEMA) as stage:
        join(stage.websocket, Others(given, stage, "bench.imports"))


class Giver(Guest):
    """The caller that uploads the rows."""

    async def go(self, session: Any) -> None:
        """Upload all rows, with a few calls in flight; print the duration."""
        began = time.monotonic()
        uri, ahead = "rowcast.big.import", DeferredSemaphore(self.given.ahead)
        conflict = {"on_conflict": "id"} if self.given.conflict else {}
        upload = await session.call(uri, done=False, **conflict)
        calls = []
        for chunk in self.chunks():
            await ahead.acquire()
            call = session.call(uri, **chunk, **upload)
            calls = [each for each in calls if not each.called]
            calls.append(call.addBoth(lambda result: (ahead.release(), result)[1]))
        await gatherResults(calls)
        answer = await session.call(uri, done=True, **upload)
        print(f"{answer} in {time.monotonic() - began:.1f} s")

    def chunks(self) -> Iterator[dict[str, Any]]:
        """Yield the arguments of each call."""
        body = "x" * 160
        header = "id,at,price,body\n"
        for start in range(1, self.given.rows + 1, self.given.chunk):
            numbers = range(start, min(start + self.given.chunk, self.given.rows + 1))
            if self.given.csv:
                lines = [f"{n},2026-01-01T00:00:00Z,{n * 1.25},{body}\n" for n in numbers]
                yield {"csv": header + "".join(lines)}
                header = ""
                continue
            yield {
                "rows": [
                    {"id": n, "at": "2026-01-01T00:00:00Z", "price": str(n * 1.25), "body": body}
                    for n in numbers
                ]
            }


if __name__ == "__main__":
    main()
