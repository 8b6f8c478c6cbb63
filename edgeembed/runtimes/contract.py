"""What every network of ours takes and gives, whichever runtime reads it: pixels in, embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeembed.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output as a runtime describes it; a free side of the shape is None."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sides = ", ".join("free" if side is None else str(side) for side in self.shape)
        return f"{self.name} {self.dtype} ({sides})"


def require_contract(path: Path, inputs: Sequence[Port], outputs: Sequence[Port]) -> tuple[int, int]:
    """Height and width of the pixels that the network takes.

    Raises UserError, with what was found, for a graph that is not pixels in and embeddings out.
    """
    taken = inputs[0] if len(inputs) == 1 else None
    match taken:
        case Port(name="image", dtype="uint8", shape=(None, int(height), int(width), 3)):
            pass
        case _:
            raise UserError(
                f"{path}: expected one input image uint8 (N, H, W, 3) with free N, found {describe(inputs)}"
            )
    if not any(port.name == "embedding" and port.dtype == "float32" and len(port.shape) == 2 for port in outputs):
        raise UserError(f"{path}: expected an output embedding float32 (N, D), found {describe(outputs)}")
    return height, width


def describe(ports: Sequence[Port]) -> str:
    return "; ".join(map(str, ports)) or "none"
