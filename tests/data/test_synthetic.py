"""The synthetic data set: reproducible, split by instance, and too hard for colour histograms and thumbnails."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgeembed.data.synthetic import (
    DOMAINS,
    SyntheticRow,
    render_view,
    sibling_group,
    split_instances,
    write_synthetic,
)
from edgeembed.errors import UserError

Floats = npt.NDArray[np.float64]


def _instance(row: SyntheticRow) -> int:
    return int(row.label.rsplit("_", 1)[1])


def _unit(vector: Floats) -> Floats:
    return vector / np.linalg.norm(vector)


def _thumbnail_and_histogram(picture: Image.Image) -> Floats:
    """The baseline that a data set worth training on must defeat."""
    thumbnail = np.asarray(picture.resize((16, 16), Image.Resampling.BOX), dtype=float)
    bins = (np.asarray(picture) // 32).astype(int) @ [64, 8, 1]
    histogram = np.bincount(bins.ravel(), minlength=512).astype(float)
    return np.concatenate([_unit((thumbnail - thumbnail.mean(axis=(0, 1))).ravel()), _unit(histogram)])


def _mean_average_precision(query_QD: Floats, query_Q: Floats, index_ND: Floats, index_N: Floats) -> float:
    precisions = []
    for query_D, label in zip(query_QD, query_Q, strict=True):
        hit_N = index_N[np.argsort(-(index_ND @ query_D), kind="stable")] == label
        precisions.append((np.cumsum(hit_N) / np.arange(1, len(hit_N) + 1))[hit_N].mean())
    return float(np.mean(precisions))


def test_a_view_is_an_rgb_square_of_the_size_always() -> None:
    for size_px in (32, 96, 224):
        view = render_view(seed=0, instance=3, view=1, size_px=size_px)
        assert (view.mode, view.size) == ("RGB", (size_px, size_px))


def test_the_same_arguments_give_the_same_pixels_and_each_argument_changes_them() -> None:
    reference = render_view(seed=0, instance=1, view=2, size_px=64).tobytes()
    render_view(seed=5, instance=40, view=0, size_px=64)
    assert render_view(seed=0, instance=1, view=2, size_px=64).tobytes() == reference
    assert render_view(seed=1, instance=1, view=2, size_px=64).tobytes() != reference
    assert render_view(seed=0, instance=6, view=2, size_px=64).tobytes() != reference
    assert render_view(seed=0, instance=1, view=3, size_px=64).tobytes() != reference


def test_every_design_of_every_kind_can_be_drawn() -> None:
    for instance in range(75):  # three groups of siblings in each domain: the three kinds of its things
        levels = np.asarray(render_view(seed=3, instance=instance, view=0, size_px=48))
        assert levels.std() > 5, f"instance {instance} is a blank picture"


def test_the_files_do_not_depend_on_the_number_of_workers_nor_on_what_was_there(tmp_path: Path) -> None:
    write = partial(write_synthetic, num_instances=6, num_views=3, size_px=48, seed=7)
    alone, together = tmp_path / "alone", tmp_path / "together"
    progress: list[int] = []
    rows = write(alone, workers=1, on_progress=progress.append)
    (together / rows[0].path).parent.mkdir(parents=True)
    (together / rows[0].path).write_bytes(b"an older picture")
    assert write(together, workers=2) == rows
    assert progress == [3, 6, 9, 12, 15, 18]
    for row in rows:
        assert (alone / row.path).read_bytes() == (together / row.path).read_bytes()
        with Image.open(alone / row.path) as picture:
            assert (picture.format, picture.size) == ("JPEG", (48, 48))
    assert {path.relative_to(alone).as_posix() for path in alone.rglob("*") if path.is_file()} == {
        row.path for row in rows
    }


def test_the_rows_say_what_the_files_are(tmp_path: Path) -> None:
    rows = write_synthetic(tmp_path, num_instances=10, num_views=8, size_px=32, workers=1)
    assert len(rows) == len({row.path for row in rows}) == 80
    by_label: dict[str, list[SyntheticRow]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
        assert row.domain == DOMAINS[_instance(row) % 5]
        assert row.path.startswith(f"images/{row.domain}/{row.label}/")
    for views in by_label.values():
        assert len({row.split for row in views}) == 1, "an instance is in one split only"
        roles = Counter(row.role for row in views)
        assert roles == ({"query": 2, "index": 6} if views[0].split == "test" else {None: 8})
    assert {row.split for row in rows} == {"train", "val", "test"}


def test_two_views_are_enough_for_a_query_and_an_index(tmp_path: Path) -> None:
    rows = write_synthetic(tmp_path, num_instances=5, num_views=2, size_px=32, workers=1)
    assert {row.role for row in rows if row.split == "test"} == {"query", "index"}
    assert any(row.split == "train" for row in rows)


@pytest.mark.parametrize("num_instances", [5, 6, 10, 13, 20, 26, 30, 50, 100, 130, 250])
def test_each_split_has_about_its_share(num_instances: int) -> None:
    shares = Counter(split_instances(num_instances))
    assert shares.total() == num_instances
    assert shares["train"] >= num_instances / 2
    assert 0.15 <= shares["test"] / num_instances <= 0.35
    assert 1 <= shares["val"] <= max(1, 0.1 * num_instances)


def test_the_default_splits_are_balanced_over_domains() -> None:
    splits = split_instances(100)
    for domain in range(5):
        shares = Counter(splits[domain::5])
        assert shares["test"] == 5
        assert shares["val"] in (1, 2)


@pytest.mark.parametrize("num_instances", [20, 26, 50, 100, 250])
def test_test_instances_have_siblings_in_test(num_instances: int) -> None:
    splits = split_instances(num_instances)
    groups = Counter(sibling_group(instance) for instance, split in enumerate(splits) if split == "test")
    assert min(groups.values()) >= 2
    if num_instances >= 50:  # every domain has groups to spare: test takes whole ones
        assert set(groups.values()) == {5}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_instances": 4}, "num_instances is 4: expected at least 5"),
        ({"num_views": 1}, "num_views is 1: expected at least 2"),
        ({"size_px": 31}, "size_px is 31: expected at least 32"),
        ({"seed": -1}, "seed is -1: expected at least 0"),
        ({"workers": 0}, "workers is 0: expected at least 1"),
    ],
)
def test_a_bad_argument_is_named_before_anything_is_written(
    tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_synthetic(tmp_path, **setting)
    assert not list(tmp_path.iterdir())


def test_thumbnail_and_colour_do_not_find_the_held_out_instances() -> None:
    num_views, num_queries = 24, 6
    held_out = [instance for instance, split in enumerate(split_instances(100)) if split == "test"]
    features_IVD = np.array(
        [
            [_thumbnail_and_histogram(render_view(seed=0, instance=instance, view=view)) for view in range(num_views)]
            for instance in held_out
        ]
    )
    label_IV = np.repeat(np.array(held_out)[:, None], num_views, axis=1)
    features_IVD /= np.linalg.norm(features_IVD, axis=-1, keepdims=True)
    size = features_IVD.shape[-1]
    precision = _mean_average_precision(
        features_IVD[:, :num_queries].reshape(-1, size),
        label_IV[:, :num_queries].ravel(),
        features_IVD[:, num_queries:].reshape(-1, size),
        label_IV[:, num_queries:].ravel(),
    )
    assert precision <= 0.35
