"""A finished teacher's class centres on disk: head.safetensors, with the names of the classes in classes.json.

Embeddings do not need them; distillation by labels and a warm start do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from edgeembed.files import read_json, write_json
from edgeembed.network.tensor_files import iterate_tensors, save_tensors


@dataclass(frozen=True, kw_only=True)
class SavedHead:
    """Names of K classes, (domain, label), and their centres (R, D); each class has R / K rows, one after the other."""

    classes: list[tuple[str, ...]]
    centre_RD: Tensor


def save_head(run: Path, centre_RD: Tensor, classes: Sequence[tuple[str, ...]]) -> None:
    """Writes both files into a run folder."""
    save_tensors(run / "head.safetensors", {"centres": centre_RD})
    write_json(run / "classes.json", {"classes": [list(name) for name in classes]})


def load_head(run: Path) -> SavedHead:
    """Reads both files of a finished teacher."""
    classes = [tuple(name) for name in read_json(run / "classes.json")["classes"]]
    return SavedHead(classes=classes, centre_RD=dict(iterate_tensors(run / "head.safetensors"))["centres"])
