"""Prints the open actions, and prints them again after each change."""

import sys

from autobahn.twisted.component import Component, run
from rowcast import Rowcast

url = sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8080/ws"
component = Component(transports=url, realm="realm1")


def show(rows, change):
    """Print the rows."""
    listed = ", ".join(f"{row['action']} {row['path']}" for row in rows)
    print(f"{len(rows)} to do: {listed}", flush=True)


db = Rowcast(component)
db.live("actions", where={"status": False}, order=["id"]).subscribe(show)
run([component], log_level=None)  # otherwise print would write to autobahn's log
