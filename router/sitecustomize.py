"""
What Crossbar imports and a router like ours does not use is left out of its start.

Python imports this module before all else where this directory is in PYTHONPATH. Crossbar imports web3,
for certificates that are checked against a blockchain: with what that and those certificates need, more than
a third of what its two processes have to do until clients can connect, and of their memory. In the place of
such a package there is one whose names may be imported, subclassed and called in the body of a module; a
function that calls one of them fails.

Without them Python's limit of recursion stays at 1,000: py_ecc lifts it to 100,000, and then one message of
18 kB of brackets in JSON ends the router (SIGSEGV), since cbor2 recurses in C where it is handed on.
"""

import gc
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import CO_OPTIMIZED
from types import ModuleType

UNUSED = {
    *("web3", "ens", "eth_keyfile", "py_ecc", "eth_abi", "parsimonious", "xbr._abi"),
    # What eth_account sends to a blockchain, and with it pydantic, which others may use.
    *("eth_account.typed_transactions", "eth_account.datastructures", "eth_utils.pydantic"),
    *("txtorcon", "yapf"),
}
"""Packages, and modules of others."""


class Stub(type):
    """A class that stands for any name of a package that is left out."""

    def __getattr__(cls, name):
        """Return a stub for an attribute; special methods there are none."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type.__call__(Stub, name, (), {})

    def __call__(cls, *args, **options):
        """Return the stub itself, for constants of a module or class; functions alone are optimized."""
        if sys._getframe(1).f_code.co_flags & CO_OPTIMIZED:
            raise NotImplementedError(f"{cls.__name__} is left out of this router")
        return cls


class LeftOut(ModuleType):
    """A package that has every name and every module."""

    __path__ = ()

    def __getattr__(self, name):
        """Return a stub."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type.__call__(Stub, name, (), {})


class Finder(MetaPathFinder, Loader):
    """Finds the packages that are left out before they are looked for."""

    def find_spec(self, name, path, target=None):
        """Return where such a package comes from: here."""
        parts = name.split(".")
        if not UNUSED.isdisjoint({parts[0], ".".join(parts[:2])}):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        """Return the package."""
        return LeftOut(spec.name)

    def exec_module(self, module):
        """Do nothing."""


sys.meta_path.insert(0, Finder())
# Looking for garbage among 1,700 modules that are there to stay takes a tenth of the start.
gc.set_threshold(50_000, 20, 10)
