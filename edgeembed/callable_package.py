"""Lets a package be called, for those that have the name of a public function.

`edgeembed.bench` and `edgeembed.export` are functions of `edgeembed.api`. As soon as a module of the package of that
name is imported, Python sets the attribute to the package; the package then passes a call on to the function.
"""

from __future__ import annotations

import importlib
import types
from typing import Any


class CallablePackage(types.ModuleType):
    """A package that can be called like the function of its name in `edgeembed.api`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        api = importlib.import_module("edgeembed.api")  # by name: the interface imports these packages
        return getattr(api, self.__name__.rpartition(".")[2])(*args, **options)
