"""The keys of an export recipe: int8 calibration, the limits that a file must pass, TensorRT engines."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from edgeembed.config import Section
from edgeembed.errors import unknown_choice
from edgeembed.spread import MOST_RELATIVE_ERROR

PRECISIONS = ("fp32", "fp16", "int8")


def parse_precisions(text: str) -> list[str]:
    """Parses a comma-separated list; fp32 comes first whether named or not, as the others are converted from it."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PRECISIONS:
            raise unknown_choice("precision", name, PRECISIONS)
    # In the order of PRECISIONS, whatever the order in the text.
    return [name for name in PRECISIONS if name in names or name == "fp32"]


class Thresholds(Section):
    """Limits of the files of one precision, each measured with the file itself; None sets no limit.

    `cosine_p1` and `cosine_p50`: percentiles over images of the cosine to torch. `map_loss`: largest loss of mAP
    against the fp32 file, in 0..1. A file passes where the upper end of the loss's 95 % interval is within it, and is
    refused where the loss is above it and the lower end above 0; otherwise the loss is not shown (see gate.py).
    `relative_error_p50`: median over images of 1 - cosine, as a share of its mean between different images; a cosine
    alone says little in a space in which all images lie close together.
    """

    cosine_p1: float | None = Field(
        default=None,
        ge=-1.0,
        le=1.0,
        description="smallest 1st percentile of the cosines to torch; null: no limit",
    )
    cosine_p50: float | None = Field(
        default=None, ge=-1.0, le=1.0, description="smallest median of the cosines to torch; null: no limit"
    )
    relative_error_p50: float | None = Field(
        default=None,
        ge=0.0,
        description="largest median error as a share of the distance between images; null: no limit",
    )
    map_loss: float | None = Field(
        default=None, ge=0.0, le=1.0, description="largest loss of mAP against the fp32 file; null: no limit"
    )


class GateSection(Section):
    """Thresholds for each precision, and the number of images that they are measured on.

    The first sample takes a quarter of the multiply-accumulates of `max_macs`: at least 64 images and at most
    `max_images`, some 570 for ViT-B/16 and 64 for ViT-H-14. Calibration takes a quarter as many. Where the sample does
    not show whether a loss of mAP is within its limit, and the largest one could, it is doubled until it does: up to
    some 2,300 images for ViT-B/16 and 240 for ViT-H-14.
    """

    # The other files are compared with fp32, so that fp32 itself must agree closely with torch.
    fp32: Thresholds = Thresholds(cosine_p1=0.9999)
    fp16: Thresholds = Thresholds(cosine_p1=0.999, relative_error_p50=MOST_RELATIVE_ERROR, map_loss=0.005)
    int8: Thresholds = Thresholds(cosine_p50=0.98, relative_error_p50=MOST_RELATIVE_ERROR, map_loss=0.005)
    # A point of mAP instead of half a point: int8 costs transformers more.
    int8_transformer: Thresholds = Thresholds(cosine_p50=0.98, relative_error_p50=MOST_RELATIVE_ERROR, map_loss=0.01)
    max_images: int = Field(default=6000, ge=64, description="most images that a file is measured on")
    max_macs: float = Field(
        default=4e13, gt=0.0, description="multiply-accumulates that a measurement may take, which limits its images"
    )

    def thresholds_for(self, precision: str, *, transformer: bool) -> Thresholds:
        thresholds = {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8_transformer if transformer else self.int8}
        return thresholds[precision]


class Int8Section(Section):
    """Static quantisation: calibration on training images, and the search for operators that int8 hurts.

    At most `calibration_images` are used (see `gate.max_macs`). `calibration` auto: the file of each method is compared
    with the fp32 file on `choosing_images` that were not used to calibrate. `reduce_range`: 7-bit weights, whose
    products saturate on no CPU, as those of 8-bit weights do on x86 without VNNI; auto: 7 bits, and 8 bits only where
    all files with 7 bits are refused. `max_float_share`: largest share of the operators that may return to float32
    until the gate passes. `max_float_weight_share`: largest share of all weights that these operators may hold, because
    a weight takes four bytes in float32 and one in int8. An operator that would exceed it is skipped.
    """

    calibration: Literal["auto", "minmax", "percentile", "entropy"] = Field(
        default="auto", description="calibration method; auto: all methods are tried and compared"
    )
    calibration_images: int = Field(default=512, ge=1, description="most training images to calibrate on")
    choosing_images: int = Field(default=96, ge=1, description="images on which the calibration methods are compared")
    percentile: float = Field(
        default=99.99,
        gt=50.0,
        le=100.0,
        description="percentile of the absolute values, where calibration is percentile",
    )
    reduce_range: Literal["auto"] | bool = Field(
        default="auto",
        description="7-bit weights, which saturate on no CPU; auto: 8 bits only where all files with 7 are refused",
    )
    max_float_share: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="largest share of the operators that may return to float32 until the gate passes",
    )
    max_float_weight_share: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="largest share of the weights that may return to float32, where the size of the file matters",
    )

    def reduce_range_choices(self) -> tuple[bool, ...]:
        """Returns the values of `reduce_range` to try, one after the other, until a file passes."""
        # 8 bits last: such a file is wrong on x86 CPUs without VNNI.
        return (True, False) if self.reduce_range == "auto" else (self.reduce_range,)


class EngineSection(Section):
    """TensorRT engines: their batch sizes, and what a build may use.

    `timing_cache`: a file that keeps the measurements of one build for the next. `hardware_compatible`: the engine runs
    on every GPU from Ampere on, not on this one alone; `version_compatible`: also in later releases of the same major
    version. Both cost speed.
    """

    opt_batch: int = Field(default=1, ge=1, description="batch size that a TensorRT engine is fastest at")
    max_batch: int = Field(default=16, ge=1, description="largest batch of a TensorRT engine")
    workspace_mb: int | None = Field(
        default=None, ge=1, description="memory in MB that building may use; null: no limit"
    )
    timing_cache: Path | None = Field(
        default=None, description="file that keeps the measurements of a build for the next one; null: none"
    )
    hardware_compatible: bool = Field(
        default=False, description="an engine for every GPU from Ampere on, at some cost of speed"
    )
    version_compatible: bool = Field(
        default=False, description="an engine for later releases of the same major version, at some cost of speed"
    )

    @model_validator(mode="after")
    def _opt_batch_is_within_max_batch(self) -> EngineSection:
        if self.opt_batch > self.max_batch:
            raise ValueError(f"opt_batch {self.opt_batch} is above max_batch {self.max_batch}")
        return self


class ExportRecipe(Section):
    """Everything that decides an export besides the run and its images."""

    description: str = Field(default="", description="free text")
    gate: GateSection = GateSection()
    int8: Int8Section = Int8Section()
    engine: EngineSection = EngineSection()
