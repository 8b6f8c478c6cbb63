"""What every network of ours takes and gives, whichever runtime reads it: pixels in, embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

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


Shape: TypeAlias = tuple[int | None, ...]


def require_contract(path: Path, inputs: Sequence[Port], outputs: Sequence[Port]) -> tuple[Shape, Shape]:
    """Shapes of the pixels that the network takes, (N, H, W, 3), and of the embeddings that it gives, (N, D).

    Raises UserError, with what was found, for a graph that is not pixels in and embeddings out.
    """
    taken = inputs[0] if len(inputs) == 1 else None
    given = next((port for port in outputs if port.name == "embedding"), None)
    match taken:
        case Port(name="image", dtype="uint8", shape=(None, int(), int(), 3)):
            pass
        case _:
            raise UserError(
                f"{path}: expected one input image uint8 (N, H, W, 3) with free N, found {describe(inputs)}"
            )
    if given is None or given.dtype != "float32" or len(given.shape) != 2:
        raise UserError(f"{path}: expected an output embedding float32 (N, D), found {describe(outputs)}")
    return taken.shape, given.shape


def describe(ports: Sequence[Port]) -> str:
    return "; ".join(map(str, ports)) or "none"
