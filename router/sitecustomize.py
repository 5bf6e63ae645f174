"""
Leaves out packages that Crossbar imports at its start and that this router does not use.

Python imports this module before everything else if this directory is in PYTHONPATH. Crossbar imports web3,
for certificates that are checked against a blockchain. web3 and its dependencies take more than a third of
the CPU time of Crossbar's two processes until clients can connect, and of their memory. Each such package is
replaced by a stub, whose names can be imported, subclassed, and called in the body of a module; a function
that calls one of them fails.

Without these packages, Python's recursion limit stays at 1,000. py_ecc raises it to 100,000, and then one
message with 18 kB of brackets in JSON crashes the router (SIGSEGV), because cbor2, which encodes the message
for its recipient, recurses in C.
"""

import gc
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import CO_OPTIMIZED
from types import ModuleType

UNUSED = {
    *("web3", "ens", "eth_keyfile", "py_ecc", "eth_abi", "parsimonious", "xbr._abi"),
    # The parts of eth_account that are for a blockchain, and with them the import of pydantic.
    *("eth_account.typed_transactions", "eth_account.datastructures", "eth_utils.pydantic"),
    *("txtorcon", "yapf"),
}
"""Packages, and modules of other packages, that are left out."""


class Stub(type):
    """A metaclass whose classes stand for the names of packages that are left out."""

    def __getattr__(cls, name):
        """Return a stub for an attribute, except for special methods."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type.__call__(Stub, name, (), {})

    def __call__(cls, *args, **options):
        """
        Return the stub itself, in the body of a module or class; raise an error in a function.

        CO_OPTIMIZED is set for the code of functions only.
        """
        if sys._getframe(1).f_code.co_flags & CO_OPTIMIZED:
            raise NotImplementedError(f"{cls.__name__} is left out of this router")
        return cls


class LeftOut(ModuleType):
    """A stub of a package, which has any name and any submodule."""

    __path__ = ()

    def __getattr__(self, name):
        """Return a stub."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type.__call__(Stub, name, (), {})


class Finder(MetaPathFinder, Loader):
    """Finds the packages that are left out, before Python's own finders."""

    def find_spec(self, name, path, target=None):
        """Return the spec of a stub, if the package is left out."""
        parts = name.split(".")
        if not UNUSED.isdisjoint({parts[0], ".".join(parts[:2])}):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        """Return the stub of a package."""
        return LeftOut(spec.name)

    def exec_module(self, module):
        """Do nothing."""


sys.meta_path.insert(0, Finder())
# Garbage collections during the import of 1,700 modules, which all stay, take a tenth of the start.
gc.set_threshold(50_000, 20, 10)
