"""Image embeddings for small devices: a strong teacher, distilled students, measured ONNX files."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeembed.api import bench, distill, export, import_teacher, load_student, train_teacher
    from edgeembed.device.embedder import Embedder
    from edgeembed.device.search import Index

__version__ = "0.1.0"
__all__ = [
    "Embedder",
    "Index",
    "__version__",
    "bench",
    "distill",
    "export",
    "import_teacher",
    "load_student",
    "train_teacher",
]

_MODULES = {
    "Embedder": "edgeembed.device.embedder",
    "Index": "edgeembed.device.search",
    "bench": "edgeembed.api",
    "distill": "edgeembed.api",
    "export": "edgeembed.api",
    "import_teacher": "edgeembed.api",
    "load_student": "edgeembed.api",
    "train_teacher": "edgeembed.api",
}

# Official builds of ONNX Runtime send usage data and keep an identifier of the machine in the user's cache, unless this
# is set before they are first imported. Set it to 0 to allow that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> object:
    """Loads a public name on first use, so that `import edgeembed` costs nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module 'edgeembed' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
