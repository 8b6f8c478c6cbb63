"""Augmented views that depend on (seed, image, view) alone, and can be rendered at any size.

So teacher and student see the same view, each at its own input size, and a stored target is right whenever its view
recurs, in whatever batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from edgeembed.config import AugmentSection, MixSection
from edgeembed.data.augment import draw_views, uniforms
from edgeembed.data.loader import CanvasLoader
from edgeembed.data.manifest import Rows
from edgeembed.data.views import are_mixed, mix_views, render_views


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Draws views again: everything that they depend on, apart from the images."""

    augment: AugmentSection
    mix: MixSection
    seed: int

    def batches(self, canvases: CanvasLoader, samples: Sequence[tuple[Rows, Rows]]) -> Iterator[ViewBatch]:
        """Yields one batch for each (images, their views), in order, without images that cannot be decoded."""
        partners = [self.partners(image_B, view_B, len(canvases.files)) for image_B, view_B in samples]
        # An image and the one that it is mixed with are decoded in the same batch.
        to_decode = [
            np.concatenate([image_B, partner_B[partner_B >= 0]])
            for (image_B, _), partner_B in zip(samples, partners, strict=True)
        ]
        for (image_B, view_B), partner_B, batch in zip(samples, partners, canvases.batches(to_decode), strict=True):
            readable_B = np.isin(image_B, batch.image_B)
            image_B, view_B, partner_B = image_B[readable_B], view_B[readable_B], partner_B[readable_B]
            yield ViewBatch(
                replay=self,
                view_B=view_B,
                image_B=image_B,
                # Mixed with an image that cannot be decoded: the view stays as it is.
                partner_B=np.where(np.isin(partner_B, batch.image_B), partner_B, -1),
                canvas_of={int(image): position for position, image in enumerate(batch.image_B)},
                canvas_BCHW=batch.canvas_BCHW,
            )

    def partners(self, image_B: Rows, view_B: Rows, num_images: int) -> Rows:
        """Returns the image that each one is mixed with in its view, (B,), -1 for none.

        In a view, partners are at a constant distance in the numbering of images.
        """
        if not self.mix.mixes or num_images < 2:
            return np.full(len(image_B), -1, dtype=np.int64)
        # One draw for a view of all images; draws 0 to 20 belong to `draw_views` and `mix_views`.
        draw_B = uniforms(self.seed, np.zeros_like(image_B), view_B, 22)[:, 21]
        # The distance is at least 1 and below num_images: no image is its own partner.
        partner_B = (image_B + 1 + (draw_B * (num_images - 1)).astype(np.int64)) % num_images
        return np.where(are_mixed(self.mix, seed=self.seed, image_B=image_B, view=view_B), partner_B, -1)


@dataclass(frozen=True, kw_only=True)
class ViewBatch:
    """Decoded images, the view of each, and the image that each is mixed with (`partner_B`, -1 for none)."""

    replay: Replay
    view_B: Rows
    image_B: Rows
    partner_B: Rows
    canvas_of: dict[int, int]  # image to its position in canvas_BCHW
    canvas_BCHW: Tensor

    def render(self, positions: Rows, shape_px: int | tuple[int, int], device: str) -> Tensor:
        """Returns the views at some positions of the batch, (len(positions), 3, H, W), 0..255.

        `shape_px`: (H, W), or the side of a square. A view has the same content at any shape; it is distorted unless
        the shape has the image's proportions.
        """
        image_B, view_B, partner_B = self.image_B[positions], self.view_B[positions], self.partner_B[positions]
        view_BCHW = self._draw(image_B, view_B, shape_px, device)
        mixed = np.flatnonzero(partner_B >= 0)
        if mixed.size:
            # An image without a partner is mixed with itself, which changes nothing.
            other_BCHW = view_BCHW.clone()
            other_BCHW[mixed] = self._draw(partner_B[mixed], view_B[mixed], shape_px, device)
            replay = self.replay
            view_BCHW, _ = mix_views(view_BCHW, other_BCHW, replay.mix, seed=replay.seed, image_B=image_B, view=view_B)
        return view_BCHW

    def _draw(self, image_B: Rows, view_B: Rows, shape_px: int | tuple[int, int], device: str) -> Tensor:
        views = draw_views(self.replay.augment, seed=self.replay.seed, image_B=image_B, view=view_B)
        canvas_BCHW = self.canvas_BCHW[[self.canvas_of[int(image)] for image in image_B]]
        return render_views(canvas_BCHW.to(device), views, shape_px)
