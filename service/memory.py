"""
The garbage collector of a process that serves.
"""

from __future__ import annotations

import gc


def settle(_: object = None) -> None:
    """
    Leave what there is by now out of every later collection.

    A collection of all objects stops every thread of the process. What a service has loaded to
    serve at all, some hundred thousand objects, makes that a tenth of a second and more, and is
    never garbage. To be called by whoever owns the process.
    """
    gc.collect()
    gc.freeze()
