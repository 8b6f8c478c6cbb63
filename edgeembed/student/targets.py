"""What the teacher said of each (image, view), kept on disk, so that it is asked only once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt


class TargetMemory:
    """float16 unit vectors by (image, view) in one memory-mapped file; a row of zeros is one not yet computed.

    A row is written whole, and what a killed process had written stays: recomputing it gives the same numbers.
    128 bytes a view at 64 dimensions.
    """

    def __init__(self, path: Path, *, num_images: int, num_views: int, dim: int) -> None:
        shape = (num_images, num_views, dim)
        size = num_images * num_views * dim * 2
        mode: Literal["r+", "w+"] = "r+" if path.exists() and path.stat().st_size == size else "w+"
        self.path = path
        self.rows: npt.NDArray[np.float16] = np.memmap(str(path), dtype=np.float16, mode=mode, shape=shape)

    def read(self, image_B: npt.NDArray[np.int64], view: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """(B, D) float32 and which of them are known."""
        stored_BD = np.asarray(self.rows[image_B, view])
        known_B: npt.NDArray[np.bool_] = np.any(stored_BD != 0, axis=1)
        return stored_BD.astype(np.float32), known_B

    def write(self, image_B: npt.NDArray[np.int64], view: int, embedding_BD: npt.NDArray[np.float32]) -> None:
        self.rows[image_B, view] = embedding_BD.astype(np.float16)

    def remove(self) -> None:
        """Ends the memory with its file; the targets belong to one run."""
        del self.rows
        self.path.unlink(missing_ok=True)
