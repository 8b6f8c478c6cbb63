"""The data set that needs no download: instances of five domains, each photographed many times.

Retrieval on it is a true problem: siblings share outline and palette, and the camera changes viewpoint, light,
background, focus and noise from view to view, so that neither colour nor layout at thumbnail size finds an instance.
"""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from edgeembed.data.rendering import DOMAINS, NUM_SIBLINGS, Rng, hsv, render_design, sibling_group
from edgeembed.errors import UserError

__all__ = ["DOMAINS", "SyntheticRow", "render_view", "sibling_group", "split_instances", "write_synthetic"]

TEST_SHARE, VAL_SHARE = 0.25, 0.08
JPEG_QUALITY = 90
_VIEW_STREAM = 4  # apart from the streams that rendering.py draws designs from
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SyntheticRow:
    """What the manifest says of one picture. `path` is relative to the data set's folder, with forward slashes."""

    path: str
    label: str
    domain: str
    split: str  # "train", "val" or "test"
    role: str | None  # "query" or "index" in test, None elsewhere


def render_view(*, seed: int, instance: int, view: int, size_px: int = 224) -> Image.Image:
    """One photograph of one instance: RGB, square. The same arguments give the same pixels."""
    _expect("seed", seed, 0)
    _expect("instance", instance, 0)
    _expect("view", view, 0)
    _expect("size_px", size_px, 32)
    rng = np.random.default_rng(np.random.SeedSequence((seed, _VIEW_STREAM, instance, view)))
    picture = _background(rng, size_px)
    thing = _seen_from(rng, render_design(seed=seed, instance=instance, size_px=size_px), size_px)
    _cast_shadow(rng, picture, thing)
    picture.paste(thing, (0, 0), thing)
    if rng.random() < 0.5:
        _occlude(rng, picture)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 1.5) * size_px / 224))
    return Image.fromarray(_exposed(rng, np.asarray(picture, dtype=np.float32) / 255))


def _expect(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} is {value}: expected at least {least}")


def _background(rng: Rng, size_px: int) -> Image.Image:
    """A wall, a table, foliage or clutter, out of focus: drawn small and enlarged. It says nothing of the instance."""
    small = 56
    kind = int(rng.integers(4))
    colours = [hsv(rng.random(), rng.uniform(0.0, 0.7), rng.uniform(0.15, 1.0)) for _ in range(8)]
    if kind == 0:  # soft blotches of three colours
        blotches = rng.uniform(0, 255, size=(int(rng.integers(2, 9)), int(rng.integers(2, 9)), 3))
        picture = Image.fromarray(blotches.astype(np.uint8)).resize((small, small), Image.Resampling.BICUBIC)
        picture = Image.blend(picture, Image.new("RGB", picture.size, colours[0]), rng.uniform(0.2, 0.8))
    else:  # a wall above a table
        picture = Image.new("RGB", (small, small), colours[0])
        draw = ImageDraw.Draw(picture)
        horizon = min(1.0, rng.uniform(0.3, 1.2)) * small
        draw.rectangle((0, horizon, small, small), fill=colours[1])
        if kind == 1:  # boards or bricks
            step, lean = int(rng.integers(4, 14)), rng.uniform(-20, 20)
            for offset in range(-small, 2 * small, step):
                draw.line((offset, 0, offset + lean, small), fill=colours[2], width=int(rng.integers(1, 4)))
        else:  # other things lying about, or lights out of focus
            for _ in range(int(rng.integers(4, 20))):
                x, y = rng.uniform(-5, small, size=2)
                w, h = rng.uniform(4, 24, size=2)
                shape = draw.ellipse if kind == 2 else draw.rectangle
                shape((x, y, x + w, y + h), fill=colours[int(rng.integers(8))])
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 2.0)))
    return picture.resize((size_px, size_px), Image.Resampling.BILINEAR)


def _seen_from(rng: Rng, design: Image.Image, size_px: int) -> Image.Image:
    """The object as a camera before it sees it: turned up to about 30 degrees, filling most of an RGBA frame."""
    yaw, pitch, roll = np.radians(rng.normal(scale=(13, 9, 9)).clip((-30, -22, -20), (30, 22, 20)))
    extent = np.array([design.width, design.height]) / max(design.size)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * extent
    x = corners[:, 0] * np.cos(yaw)
    depth = 3.5 + corners[:, 0] * np.sin(yaw) + corners[:, 1] * np.sin(pitch)
    flat = np.stack([x, corners[:, 1] * np.cos(pitch)], axis=1) / depth[:, None]
    turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    seen = flat @ turn
    low, high = seen.min(axis=0), seen.max(axis=0)
    scale = rng.uniform(0.66, 0.95) * size_px / (high - low).max()
    room = size_px - (high - low) * scale
    quad = (seen - low) * scale + rng.uniform(0.1, 0.9, size=2) * room
    source = (corners / extent + 1) / 2 * design.size
    return design.transform(
        (size_px, size_px), Image.Transform.PERSPECTIVE, _homography(quad, source), Image.Resampling.BICUBIC
    )


def _homography(from_points: npt.NDArray[np.float64], to_points: npt.NDArray[np.float64]) -> list[float]:
    """Pillow's eight PERSPECTIVE coefficients that carry four points of the output to four of the input."""
    rows = []
    for (x, y), (u, v) in zip(from_points, to_points, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return [float(value) for value in np.linalg.solve(np.array(rows), to_points.ravel())]


def _cast_shadow(rng: Rng, picture: Image.Image, thing: Image.Image) -> None:
    small = 56
    soft = thing.getchannel("A").resize((small, small)).filter(ImageFilter.GaussianBlur(2))
    shadow = soft.point([round(level * 0.6) for level in range(256)]).resize(picture.size)
    offset = tuple(round(value * picture.width) for value in rng.uniform((-0.06, 0.0), (0.06, 0.06)))
    picture.paste((0, 0, 0), (offset[0], offset[1]), shadow)


def _occlude(rng: Rng, picture: Image.Image) -> None:
    """A finger, a leaf or a post in front of the object: it hides a part, never most."""
    size = picture.width
    draw = ImageDraw.Draw(picture)
    colour = hsv(rng.random(), rng.uniform(0.0, 0.6), rng.uniform(0.1, 0.9))
    if rng.random() < 0.35:  # a post
        x, lean, width = rng.uniform(0.1, 0.9) * size, rng.uniform(-0.3, 0.3) * size, rng.uniform(0.03, 0.08) * size
        draw.polygon([(x, -1), (x + width, -1), (x + lean + width, size), (x + lean, size)], fill=colour)
        return
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.42, 0.6) * size
    x, y = size / 2 + reach * np.cos(angle), size / 2 + reach * np.sin(angle)
    w, h = rng.uniform(0.1, 0.28, size=2) * size
    draw.ellipse((x - w, y - h, x + w, y + h), fill=colour)


def _exposed(rng: Rng, picture: Floats) -> npt.NDArray[np.uint8]:
    """The sensor's account of the light: uneven, coloured, too bright or too dark, grainy. 0..1 in, 0..255 out."""
    size = len(picture)
    direction = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    uneven = 1 + rng.uniform(0, 0.35) * (np.cos(direction) * ramp[None, :, None] + np.sin(direction) * ramp[:, None, None])
    cast = rng.uniform(0.75, 1.2, size=3)
    lit = picture * (uneven * (cast * rng.uniform(0.6, 1.25))).astype(np.float32)
    contrast, grey = rng.uniform(0.65, 1.2), lit.mean()
    lit = (lit - grey) * np.float32(contrast) + grey
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(rng.uniform(0, 0.04))
    return ((lit + grain).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def split_instances(num_instances: int) -> list[str]:
    """The split of each instance. Test takes whole sibling groups, first one of each domain, so that it stays hard.

    Where a domain has only one group, test takes half of it: siblings to tell apart and a domain seen in training.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for instance in range(num_instances):
        groups.setdefault(sibling_group(instance), []).append(instance)
    has_second = {domain for domain, group in groups if group == 1}
    splits = ["train"] * num_instances
    wanted = max(1, round(TEST_SHARE * num_instances))
    taken = 0
    for domain, group in sorted(groups, key=lambda key: (key[1], key[0])):
        members = groups[domain, group]
        members = members if domain in has_second else members[: (len(members) + 1) // 2]
        if taken and taken + len(members) / 2 > wanted:  # further from the share with them than without
            break
        for instance in members:
            splits[instance] = "test"
        taken += len(members)
    rest = [instance for instance in range(num_instances) if splits[instance] == "train"]
    for instance in rest[: max(1, round(VAL_SHARE * num_instances))]:
        splits[instance] = "val"
    return splits


def write_synthetic(
    out: Path,
    *,
    num_instances: int = 100,
    num_views: int = 24,
    size_px: int = 224,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[SyntheticRow]:
    """Write out/images/<domain>/<label>/<view>.jpg and return a row for each; the caller writes the manifest.

    `on_progress` is told the number of pictures written so far. What was at those paths before is replaced.
    """
    _expect("num_instances", num_instances, len(DOMAINS))
    _expect("num_views", num_views, 2)
    _expect("size_px", size_px, 32)
    _expect("seed", seed, 0)
    workers = (os.cpu_count() or 1) if workers is None else workers
    _expect("workers", workers, 1)
    rows = _rows(num_instances, num_views)
    write = partial(_write_instance, out, num_views=num_views, size_px=size_px, seed=seed)
    with ExitStack() as stack:
        written: Iterator[int] = map(write, range(num_instances))
        if workers > 1:  # spawned, because forking a process that holds torch's threads can hang
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(min(workers, num_instances), mp_context=context)
            written = stack.enter_context(pool).map(write, range(num_instances))
        done = 0
        for count in written:
            done += count
            if on_progress:
                on_progress(done)
    return rows


def _rows(num_instances: int, num_views: int) -> list[SyntheticRow]:
    num_queries = max(1, num_views // 4)
    rows = []
    for instance, split in enumerate(split_instances(num_instances)):
        for view in range(num_views):
            role = None if split != "test" else "query" if view < num_queries else "index"
            path, label = _path(instance, view), _label(instance)
            rows.append(SyntheticRow(path=path, label=label, domain=_domain(instance), split=split, role=role))
    return rows


def _domain(instance: int) -> str:
    return DOMAINS[instance % len(DOMAINS)]


def _label(instance: int) -> str:
    return f"{_domain(instance)}_{instance:04d}"


def _path(instance: int, view: int) -> str:
    return f"images/{_domain(instance)}/{_label(instance)}/{view:03d}.jpg"


def _write_instance(out: Path, instance: int, *, num_views: int, size_px: int, seed: int) -> int:
    """All views of one instance, in one process, so that its design is drawn once. Returns their number."""
    for view in range(num_views):
        path = out / _path(instance, view)
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = io.BytesIO()
        render_view(seed=seed, instance=instance, view=view, size_px=size_px).save(encoded, "JPEG", quality=JPEG_QUALITY)
        partial_path = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        partial_path.write_bytes(encoded.getvalue())
        os.replace(partial_path, path)  # a picture appears whole or not at all
    return num_views
