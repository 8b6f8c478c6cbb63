"""Renders the built-in synthetic data set, which needs no download: objects of five domains, many photographs of each.

An instance is one object. Five instances of a domain are siblings: they share outline, proportions and palette and
differ only in details, so that retrieval cannot be solved by shape and colour alone.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from edgeembed.data.drawing import Sketch, photograph, random_palette
from edgeembed.data.synthetic_objects import NUM_KINDS, PAINTERS
from edgeembed.errors import UserError
from edgeembed.files import whole_file

DOMAINS = tuple(PAINTERS)
NUM_SIBLINGS = 5
TEST_SHARE, VAL_SHARE = 0.25, 0.08
JPEG_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class SyntheticRow:
    """The manifest row of one rendered image. `path` is relative to the data set's folder, with forward slashes."""

    path: str
    label: str
    domain: str
    split: str  # "train", "val" or "test"
    role: str | None  # "query" or "index" in test, None elsewhere


_SIBLINGS_STREAM, _INSTANCE_STREAM, _KIND_STREAM, _VIEW_STREAM = 1, 2, 3, 4  # independent random streams of a seed


def sibling_group(instance: int) -> tuple[int, int]:
    """The index of an instance's domain in DOMAINS and of its group of siblings in that domain."""
    return instance % len(DOMAINS), instance // (len(DOMAINS) * NUM_SIBLINGS)


@lru_cache(maxsize=8)
def _design(*, seed: int, instance: int, size_px: int) -> Image.Image:
    """Draws an object without background: RGBA, cropped to its outline, longer side `size_px`.

    The result is cached, so callers must not change it.
    """
    domain, group = sibling_group(instance)
    group_rng = np.random.default_rng(np.random.SeedSequence((seed, _SIBLINGS_STREAM, domain, group)))
    instance_rng = np.random.default_rng(np.random.SeedSequence((seed, _INSTANCE_STREAM, instance)))
    # The groups of a domain take turns in its kinds, from a random first kind on.
    first_kind = int(np.random.default_rng(np.random.SeedSequence((seed, _KIND_STREAM, domain))).integers(NUM_KINDS))
    palette = random_palette(group_rng)
    # Drawn at twice the size and averaged below: antialiasing that gives equal pixels everywhere.
    sketch = Sketch((2 * size_px, 2 * size_px), (*palette.base, 0))
    PAINTERS[DOMAINS[domain]](sketch, (first_kind + group) % NUM_KINDS, group_rng, instance_rng, palette)
    image = sketch.image.crop(sketch.image.getchannel("A").getbbox())
    scale = size_px / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)


def render_view(*, seed: int, instance: int, view: int, size_px: int = 224) -> Image.Image:
    """Renders one photograph of one instance: RGB, square. Equal arguments give equal pixels."""
    _require_at_least("seed", seed, 0)
    _require_at_least("instance", instance, 0)
    _require_at_least("view", view, 0)
    _require_at_least("size_px", size_px, 32)
    rng = np.random.default_rng(np.random.SeedSequence((seed, _VIEW_STREAM, instance, view)))
    return photograph(rng, _design(seed=seed, instance=instance, size_px=size_px), size_px)


def _require_at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise UserError(f"{name} is {value}: expected at least {minimum}")


def split_instances(num_instances: int) -> list[str]:
    """The split of each instance. Test gets whole groups of siblings, first one of each domain, so that it stays hard.

    Where a domain has only one group, test gets half of it, so that training sees every domain.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for instance in range(num_instances):
        groups.setdefault(sibling_group(instance), []).append(instance)
    domains_with_two_groups = {domain for domain, group in groups if group == 1}
    splits = ["train"] * num_instances
    num_test = max(1, round(TEST_SHARE * num_instances))
    taken = 0
    for domain, group in sorted(groups, key=lambda key: (key[1], key[0])):
        members = groups[domain, group]
        members = members if domain in domains_with_two_groups else members[: (len(members) + 1) // 2]
        if taken and taken + len(members) / 2 > num_test:  # without this group the share is closer to TEST_SHARE
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
    """Writes out/images/<domain>/<label>/<view>.jpg and returns a row for each; the caller writes the manifest.

    `on_progress` is called with the number of images written so far. Files at those paths are replaced.
    """
    _require_at_least("num_instances", num_instances, len(DOMAINS))
    _require_at_least("num_views", num_views, 2)
    _require_at_least("size_px", size_px, 32)
    _require_at_least("seed", seed, 0)
    workers = (os.cpu_count() or 1) if workers is None else workers
    _require_at_least("workers", workers, 1)
    rows = _rows(num_instances, num_views)
    write = partial(_write_instance, out, num_views=num_views, size_px=size_px, seed=seed)
    with ExitStack() as stack:
        written: Iterator[int] = map(write, range(num_instances))
        if workers > 1:  # spawn, because forking a process with torch's threads can hang
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
    """Writes all views of one instance and returns their number. One process does it, so that `_design` is cached."""
    (out / _path(instance, 0)).parent.mkdir(parents=True, exist_ok=True)
    for view in range(num_views):
        path = out / _path(instance, view)
        picture = render_view(seed=seed, instance=instance, view=view, size_px=size_px)
        with whole_file(path) as file:
            picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return num_views
