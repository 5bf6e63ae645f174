"""
The embedded PostgreSQL, for as long as the service runs.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.threads import deferToThreadPool

from schema.database_url import Cluster, EmbeddedFailed
from service.embedded.supervisor import GLANCE, PATIENCE, NotReady, Supervised

HOLDER = "the service"


class Postgres(Supervised):
    """
    Claims the cluster, makes its data if there are none, and runs its server.

    Args:
        reactor: For processes, threads and pauses.
        cluster: The data directory and the server over it.
    """

    def __init__(self, reactor: Any, cluster: Cluster) -> None:
        super().__init__(reactor, "the embedded PostgreSQL", cluster.log)
        self._cluster = cluster

    async def prepare(self) -> list[str]:
        """Claim the cluster and make its data."""
        end = self.reactor.seconds() + PATIENCE
        while self.running and not self._cluster.claim.take(HOLDER):
            holder = self._cluster.claim.holder()
            # Any other holder, a command for one, is done soon; a service is not.
            if holder.startswith(HOLDER):
                raise NotReady(already_runs(holder))
            if self.reactor.seconds() > end:
                raise NotReady(f"the embedded PostgreSQL is held by {holder} → wait for it to end")
            await self.sleep(GLANCE)
        threads = self.reactor.getThreadPool()
        try:
            await deferToThreadPool(self.reactor, threads, self._cluster.prepare)
        except EmbeddedFailed as error:
            raise NotReady(str(error)) from error
        return self._cluster.command()

    async def ready(self, pid: int) -> bool:
        """Return whether the server takes connections."""
        return self._cluster.ready(pid)

    def ask_to_end(self) -> str:
        """Return the signal of a fast shutdown: open transactions are rolled back."""
        return "INT"

    def release(self) -> None:
        """Release the claim."""
        self._cluster.claim.release()


def already_runs(holder: str) -> str:
    """Return the sentence that another service has the embedded database."""
    pid = holder.partition("(pid ")[2].rstrip(")")
    return f"Rowcast runs here already, as pid {pid} → Ctrl-C where it runs, or kill {pid}"
