"""Turns a run into files for a device, each compared with the network on real images.

`edgeembed.export(...)` is the function `edgeembed.api.export`. As soon as a module of this package is imported, Python
sets `edgeembed.export` to the package; therefore the package can be called and passes the call on.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        api = importlib.import_module("edgeembed.api")  # by name: the interface imports this package, not the reverse
        return api.export(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
