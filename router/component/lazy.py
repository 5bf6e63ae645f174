"""
Debug lines that cost nothing while nobody reads them.

Crossbar makes the texts in them, in color, before its log looks at the level: with a `pformat` of the
permission that was a quarter of what a call costs the router. Here they are made when they are read.
"""

from crossbar.router import broker, dealer, router, session

TEXTS = ("hlflag", "hlid", "hltype", "hlval", "pformat")


def install():
    """Replace, in the modules that every message passes, the functions that make texts."""
    for module in (router, dealer, broker, session):
        for name in TEXTS:
            if hasattr(module, name):
                setattr(module, name, later(getattr(module, name)))


def later(function):
    """Return the function as one that returns a `Text`."""
    return lambda *args, **kwargs: Text(function, args, kwargs)


class Text:
    """
    What a function returns, called when it is read.

    Args:
        function: Returns a string.
        args: For it.
        kwargs: For it.
    """

    __slots__ = ("args", "function", "kwargs")

    def __init__(self, function, args, kwargs):
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def __str__(self):
        try:
            return self.function(*self.args, **self.kwargs)
        except RecursionError:  # of a pformat; it would end the login whose details the line tells
            return "(nested too deep to be printed)"

    def __format__(self, spec):
        return format(str(self), spec)

    __repr__ = __str__
