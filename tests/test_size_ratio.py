"""How the size of a student beside its teacher's is worded."""

from __future__ import annotations

import pytest

from edgeembed.size_ratio import SizeRatio, kept_text, size_ratio, size_text


def test_a_retention_stands_beside_both_sizes() -> None:
    ratio = size_ratio(teacher_params=4_200_000, teacher_macs=790, params=1_000_000, macs=100)
    assert kept_text("96.2 %", ratio) == "96.2 % of the teacher's mAP at 1/4.2 of its parameters and 1/7.9 of its MACs"


def test_a_student_larger_than_its_teacher_is_said_to_be() -> None:
    ratio = size_ratio(teacher_params=100, teacher_macs=300, params=130, macs=100)
    assert kept_text("101 %", ratio) == "101 % of the teacher's mAP at 1.30 times its parameters and 1/3.0 of its MACs"


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1.04, "1/1.04"), (1.994, "1/1.99"), (1.996, "1/2.0"), (99.94, "1/99.9"), (632.1, "1/632"), (1.0, "1.00 times"),
     (1.004, "1.00 times"), (0.999, "1.00 times"), (0.5, "2.0 times"), (0.001, "1000 times")],
)  # fmt: skip
def test_a_ratio_has_as_many_figures_as_matter(ratio: float, text: str) -> None:
    assert size_text(ratio) == text


def test_what_is_not_known_is_left_out() -> None:
    nothing = size_ratio(teacher_params=None, teacher_macs=None, params=130, macs=100)
    assert (nothing, kept_text("90 %", nothing)) == (None, "90 % of the teacher's mAP")
    params_alone = size_ratio(teacher_params=260, teacher_macs=None, params=130, macs=100)
    assert params_alone == SizeRatio(params=2.0, macs=None)
    assert kept_text("90 %", params_alone) == "90 % of the teacher's mAP at 1/2.0 of its parameters"
