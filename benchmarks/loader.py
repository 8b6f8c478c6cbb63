"""Images a second and core of our input path beside torchvision's usual one, and whether the crops are the same.

Why: on two cores decoding and augmenting compete with the network for every cycle.
Usage: python benchmarks/loader.py MANIFEST [--rounds 5]
Theirs: ImageFolder, PIL, RandomResizedCrop(224), flip, ToTensor, Normalize, DataLoader without workers. Ours: the path
of a training run, first epoch (decoding) and later ones (from memory), to float pixels on the training device; crops of
the same area and aspect, flip. One thread each, in turns in one process; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.datasets import ImageFolder

from edgeembed.config import AugmentSection
from edgeembed.data.augment import draw_views
from edgeembed.data.batch_order import BatchOrder
from edgeembed.data.loader import CanvasLoader, open_canvases
from edgeembed.data.manifest import read_manifest
from edgeembed.data.shapes import square_shapes
from edgeembed.data.views import render_views
from edgeembed.device.images import load_rgb
from edgeembed.training.device import set_allocator

SIZE_PX, BATCH, CANVAS_FACTOR = 224, 32, 1.25
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROPS = AugmentSection(scale=(0.35, 1.0), aspect=(3 / 4, 4 / 3), flip_probability=0.5)


def as_folder(files: list[str], folder: Path) -> Path:
    """The same files as links in the one-class layout that ImageFolder wants."""
    (folder / "all").mkdir()
    for number, file in enumerate(files):
        (folder / "all" / f"{number:06d}{Path(file).suffix}").symlink_to(Path(file).resolve())
    return folder


def theirs(folder: Path) -> float:
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE_PX, scale=CROPS.scale, ratio=CROPS.aspect),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    loader = torch.utils.data.DataLoader(ImageFolder(str(folder), transform), batch_size=BATCH, shuffle=True)
    started, seen = time.perf_counter(), 0
    for image_BCHW, _ in loader:
        seen += len(image_BCHW)
    return seen / (time.perf_counter() - started)


def ours(canvases: CanvasLoader, epoch: int) -> float:
    order = BatchOrder(num_images=len(canvases.files), batch_size=BATCH, seed=epoch)
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    started, seen = time.perf_counter(), 0
    for batch in canvases.batches(order.batches(0, order.steps_per_epoch)):
        views = draw_views(CROPS, seed=0, image_B=batch.image_B, view=epoch)
        image_BCHW = (render_views(batch.canvas_BCHW, views, SIZE_PX) - mean).div_(std)
        seen += len(image_BCHW)
    return seen / (time.perf_counter() - started)


def pil_crop(file: str, affine_23: Tensor) -> np.ndarray:
    """The crop that a view describes, cut from the decoded file by Pillow, bilinear and antialiased."""
    image = load_rgb(file)
    (across, _, shift_x), (_, down, shift_y) = affine_23.tolist()
    box = [
        (shift_x - abs(across) + 1) / 2 * image.width,
        (shift_y - down + 1) / 2 * image.height,
        (shift_x + abs(across) + 1) / 2 * image.width,
        (shift_y + down + 1) / 2 * image.height,
    ]
    limits = (image.width, image.height) * 2
    box = [min(max(0.0, side), limit) for side, limit in zip(box, limits, strict=True)]
    cropped = image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=tuple(box))
    pixels = np.asarray(cropped, dtype=np.float32)
    return pixels[:, ::-1] if across < 0 else pixels


def difference(files: list[str], canvases: CanvasLoader) -> float:
    """Mean absolute difference in grey levels of our crops to Pillow's, where the crop lies within the image."""
    differences = []
    for start in range(0, len(files), BATCH):
        (batch,) = canvases.batches([np.arange(start, min(start + BATCH, len(files)))])
        views = draw_views(CROPS, seed=0, image_B=batch.image_B, view=0)
        ours_BCHW = render_views(batch.canvas_BCHW, views, SIZE_PX)
        for image, affine_23, ours_CHW in zip(batch.image_B, views.affine_B23, ours_BCHW, strict=True):
            if affine_23[0, 0].abs() <= 1 and affine_23[1, 1] <= 1:
                pixels = ours_CHW.permute(1, 2, 0).numpy()
                differences.append(float(np.abs(pixels - pil_crop(files[image], affine_23)).mean()))
    return statistics.fmean(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=512)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # OpenCV has one thread anyway
    set_allocator(0)  # as every run of a small model does; both sides gain
    manifest = read_manifest(asked.manifest)
    files = [manifest.files[row] for row in manifest.rows("train")[: asked.images]]
    shapes_N2 = square_shapes(len(files), round(SIZE_PX * CANVAS_FACTOR))
    reading = open_canvases(files, shapes_N2=shapes_N2, workers=0)
    held = open_canvases(files, shapes_N2=shapes_N2, workers=1, cache="always")
    rates: dict[str, list[float]] = {"torchvision": [], "ours_decoding": [], "ours_from_memory": []}
    with tempfile.TemporaryDirectory() as folder:
        as_folder(files, Path(folder))
        for epoch in range(asked.rounds):
            rates["torchvision"].append(theirs(Path(folder)))
            rates["ours_decoding"].append(ours(reading, epoch))
            rates["ours_from_memory"].append(ours(held, epoch))
    middle = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    ratios = {
        f"{name}_ratio": round(middle[name] / middle["torchvision"], 2) for name in middle if name != "torchvision"
    }
    grey_levels = round(difference(files, held), 2)
    print(json.dumps({"images_per_second_and_core": middle, **ratios, "mean_difference_grey_levels": grey_levels}))


if __name__ == "__main__":
    main()
