"""A few of the mutations that `benchmarks/mutated_bundles.py` makes by the thousand: each is refused, clearly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bundle_mutations import FOLDER, PACKED
from mutated_bundles import outcomes


def test_every_kind_of_damage_is_clearly_refused(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    done = list(outcomes(make_bundle(), tmp_path / "work", count=64, seed=1))
    assert {kind for _, kind, _, _ in done} == {*FOLDER, *PACKED}
    assert [result for result in done if result[2] != "refused"] == []
