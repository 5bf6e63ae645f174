"""
Procedures written by hand with twistar models; every module of them is named here.
"""

from service.procedures import actions

__all__ = ["actions"]
