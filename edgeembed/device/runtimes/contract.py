"""The inputs and outputs that every network file must have, in any runtime: pixels in, embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgeembed.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output as a runtime describes it; a dynamic dimension is None."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        dimensions = ", ".join("dynamic" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} ({dimensions})"


Shape: TypeAlias = tuple[int | None, ...]


def check_contract(path: Path, inputs: Sequence[Port], outputs: Sequence[Port]) -> tuple[Shape, Shape]:
    """Returns the shapes of the input `image`, (N, H, W, 3), and of the output `embedding`, (N, D).

    Raises UserError for a graph with other inputs or outputs; the message lists them.
    """
    # Further outputs are allowed and ignored; a further input could not be fed.
    image = inputs[0] if len(inputs) == 1 else None
    embedding = next((port for port in outputs if port.name == "embedding"), None)
    # N must be dynamic, so that batches of any size run; H and W must be fixed, as images are resized to them.
    match image:
        case Port(name="image", dtype="uint8", shape=(None, int(), int(), 3)):
            pass
        case _:
            raise UserError(
                f"{path}: expected one input image uint8 (N, H, W, 3) with dynamic N, found {describe(inputs)}"
            )
    if embedding is None or embedding.dtype != "float32" or len(embedding.shape) != 2:
        raise UserError(f"{path}: expected an output embedding float32 (N, D), found {describe(outputs)}")
    return image.shape, embedding.shape


def describe(ports: Sequence[Port]) -> str:
    """The ports in one line."""
    return "; ".join(map(str, ports)) or "none"
