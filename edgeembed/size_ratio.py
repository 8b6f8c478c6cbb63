"""How many times the parameters and MACs of its student a teacher has: the figure beside every retention."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SizeRatio:
    """The teacher's parameters and multiply-accumulates for one image, divided by the student's; None where unknown.

    Each network reads images of its own input size.
    """

    params: float | None = None
    macs: float | None = None

    def describe(self) -> str:
        """For one line of text: "1/4.2 of its parameters and 1/7.9 of its MACs", where "its" is the teacher's."""
        parts = [
            f"{size_text(ratio)}{' of' if is_smaller(ratio) else ''} its {name}"
            for name, ratio in (("parameters", self.params), ("MACs", self.macs))
            if ratio is not None
        ]
        return " and ".join(parts)


def size_ratio(
    *, teacher_params: int | None, teacher_macs: int | None, params: int | None, macs: int | None
) -> SizeRatio | None:
    """Returns the ratio of a teacher's size to its student's; None where neither parameters nor MACs are known."""
    ratio = SizeRatio(
        params=teacher_params / params if teacher_params and params else None,
        macs=teacher_macs / macs if teacher_macs and macs else None,
    )
    return None if ratio == SizeRatio() else ratio


def kept_text(share: str, ratio: SizeRatio | None) -> str:
    """Words a retention: "96.2 % of the teacher's mAP at 1/4.2 of its parameters and 1/7.9 of its MACs".

    `share` is the retention in percent, with its interval where there is one.
    """
    return f"{share} of the teacher's mAP" + ("" if ratio is None else f" at {ratio.describe()}")


def size_text(ratio: float) -> str:
    """The student's size in terms of the teacher's: "1/4.2", or "1.30 times" where the student is no smaller."""
    return f"1/{_figures(ratio)}" if is_smaller(ratio) else f"{_figures(1 / ratio)} times"


def is_smaller(ratio: float) -> bool:
    """Whether the student is smaller than its teacher, by what two decimals show."""
    return round(ratio, 2) > 1


def _figures(value: float) -> str:
    """A number with two decimals below 2, where they matter, one below 100, and none from there on."""
    return f"{value:.2f}" if value < 1.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
