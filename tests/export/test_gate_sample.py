"""Whole classes are taken where a protocol has more images than are paid for, and queries keep their matches."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgeembed.data.manifest import Manifest, ManifestRow, build_manifest
from edgeembed.evaluation import RetrievalProtocol, have_match
from edgeembed.export.gate_sample import max_per_class, sample_classes


def manifest_of(sizes: dict[str, tuple[int, int]]) -> Manifest:
    """A test split with so many queries and index images of each class; without queries and index, leave-one-out."""
    rows = [
        ManifestRow(path=f"{label}/{role}{number}.jpg", label=label, domain="d", split="test", role=role)
        for label, counts in sizes.items()
        for role, count in zip(("query", "index"), counts, strict=True)
        for number in range(count)
    ]
    return build_manifest(Path(), rows, source="test")


def leave_one_out(num_classes: int, images: int) -> RetrievalProtocol:
    rows = [
        ManifestRow(path=f"{label}/{number}.jpg", label=str(label), domain="d", split="test", role=None)
        for label in range(num_classes)
        for number in range(images)
    ]
    return RetrievalProtocol.of_split(build_manifest(Path(), rows, source="test"), "test")


def test_a_protocol_within_the_limit_is_taken_as_it_is() -> None:
    planned = leave_one_out(10, 3)
    assert sample_classes(planned, 30) is planned


def test_of_2000_classes_of_3_images_whole_ones_are_taken_and_every_query_keeps_its_matches() -> None:
    planned = leave_one_out(2000, 3)
    for most in (64, 600):
        sample = sample_classes(planned, most)
        count_of = Counter(sample.manifest.class_of(row) for row in sample.rows.tolist())
        assert len(sample.rows) in (most, most - 1)
        assert sample.queries_without_match == 0
        assert sorted(count_of.values())[1:] == [3] * (most // 3 - (0 if most % 3 else 1))


def test_of_one_huge_class_an_even_part_is_taken_beside_all_of_the_small_ones() -> None:
    planned = RetrievalProtocol.of_split(
        manifest_of({"huge": (3000, 7000), **{f"small{i}": (1, 3) for i in range(10)}}), "test"
    )
    sample = sample_classes(planned, 600)
    assert len(sample.rows) == 600
    count_of = Counter(str(sample.manifest.class_of(row)[1]) for row in sample.rows.tolist())
    assert count_of.pop("huge") == 560
    assert set(count_of.values()) == {4}
    assert sample.queries_without_match == 0
    assert len(sample.query) == 280 + 10


def test_a_class_that_is_alone_is_cut_to_half_queries_and_half_index() -> None:
    for planned in (RetrievalProtocol.of_split(manifest_of({"huge": (3000, 7000)}), "test"), leave_one_out(1, 5000)):
        sample = sample_classes(planned, 64)
        assert len(sample.rows) == 64
        assert sample.queries_without_match == 0
        assert len(sample.query) == (64 if np.array_equal(sample.query, sample.index) else 32)


def test_classes_without_a_matched_query_are_added_only_after_all_matches() -> None:
    sizes = {**{f"matched{i}": (2, 2) for i in range(5)}, **{f"other{i}": (0, 10) for i in range(20)}, "lone": (3, 0)}
    planned = RetrievalProtocol.of_split(manifest_of(sizes), "test")
    few, many = sample_classes(planned, 12), sample_classes(planned, 100)
    assert (len(few.query), len(few.index), few.queries_without_match) == (6, 6, 0)
    assert (len(many.query), len(many.index), many.queries_without_match) == (10, 90, 0)


@pytest.mark.parametrize("planned", [leave_one_out(300, 20), leave_one_out(3, 2000)], ids=["many classes", "few"])
def test_a_larger_sample_holds_every_smaller_one(planned: RetrievalProtocol) -> None:
    samples = [sample_classes(planned, most) for most in (64, 128, 256, 512, 1024)]
    for smaller, larger in itertools.pairwise(samples):
        assert np.isin(smaller.query, larger.query).all()
        assert np.isin(smaller.index, larger.index).all()


def test_a_query_that_is_an_index_image_too_has_another_match() -> None:
    manifest = manifest_of({"a": (40, 40)})
    query, index = np.arange(0, 60), np.arange(40, 80)  # 20 rows are both
    planned = RetrievalProtocol(manifest=manifest, split="test", query=query, index=index)
    sample = sample_classes(planned, 2)
    assert have_match(manifest, sample.query, sample.index).all()


def test_the_max_per_class_is_the_largest_cap_that_fits() -> None:
    assert max_per_class(np.array([3, 3, 1000]), 26) == 20
    assert max_per_class(np.array([3, 3, 1000]), 2) == 0
    assert max_per_class(np.array([5, 5]), 100) == 5
