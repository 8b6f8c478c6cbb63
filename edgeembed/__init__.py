"""Image embeddings for small devices: a strong teacher, distilled students, measured ONNX files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeembed.device.embedder import Embedder
    from edgeembed.device.search import Index

__version__ = "0.1.0"
__all__ = ["Embedder", "Index", "__version__"]

# Official builds of ONNX Runtime send usage data and keep an identifier of the machine in the user's cache, unless this
# is set before they are first imported. Set it to 0 to allow that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> object:
    """Loads the device runtime on first use, so that `import edgeembed` costs nothing."""
    if name == "Embedder":
        from edgeembed.device.embedder import Embedder

        return Embedder
    if name == "Index":
        from edgeembed.device.search import Index

        return Index
    raise AttributeError(f"module 'edgeembed' has no attribute {name!r}")
