"""Writes and checks the file of one precision; of int8 several candidates, until one passes the gate."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgeembed.device.bundle_schema import Quantisation
from edgeembed.export.checks import GATE_RUNTIME, Checker, CheckResult, file_facts
from edgeembed.export.fp16 import to_fp16
from edgeembed.export.gate import GateResult, RefusedFile
from edgeembed.export.gate_images import GateImages
from edgeembed.export.int8.quantise import int8_candidates
from edgeembed.export.onnx import OPSET, save_onnx
from edgeembed.export.recipe import ExportRecipe
from edgeembed.progress import stage


class Rank(enum.IntEnum):
    """How good a gate's result is, best first."""

    PASSED = 0
    WITHIN_LIMIT = 1  # not shown; the measured loss is within the limit
    ABOVE_LIMIT = 2  # not shown; the measured loss is above the limit
    REFUSED = 3


def rank_of(result: GateResult) -> Rank:
    if result.reasons:
        return Rank.REFUSED
    if result.not_shown is None:
        return Rank.PASSED
    return Rank.WITHIN_LIMIT if result.is_within_limit else Rank.ABOVE_LIMIT


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """A checked file on disk; weights above 2 GB lie beside it."""

    path: Path
    precision: str
    check: CheckResult
    quantisation: Quantisation | None

    @property
    def gate_result(self) -> GateResult:
        return self.check.gate_result

    def parts(self) -> list[Path]:
        """The file itself, then the files with its weights."""
        return sorted(self.path.parent.glob(f"{self.path.name}*"))

    def remove(self) -> None:
        for part in self.parts():
            part.unlink()

    def as_refused(self) -> RefusedFile:
        return RefusedFile(precision=self.precision, path=self.path.name, reasons=self.gate_result.reasons)

    def facts(self, checker: Checker) -> list[dict[str, Any]]:
        """Its entries of `files` in bundle.json; the file is also checked in the other installed runtimes."""
        graph, *weights = [self._part_facts(part) for part in self.parts()]
        measured = {
            **self.check.facts(checker.images),
            # Each runtime holds the weights again: 20 GB in all for ViT-H-14, whose weights lie in a second file.
            "runtimes": {} if weights else checker.check_other_runtimes(self.path, self.precision),
            "quantisation": self.quantisation and self.quantisation.model_dump(),
            "accepted_worse": self.gate_result.reasons,
        }
        return [{**graph, **measured}, *weights]

    def _part_facts(self, part: Path) -> dict[str, Any]:
        opset = OPSET if part == self.path else None
        return {**file_facts(part, self.precision, GATE_RUNTIME), "opset": opset}


def export_precision(
    fp32: onnx.ModelProto,
    precision: str,
    folder: Path,
    images: GateImages,
    checker: Checker,
    recipe: ExportRecipe,
    *,
    search: bool,
) -> ExportedFile:
    """Writes and checks the file of a precision. Without `search` the first candidate is taken.

    8-bit weights are tried only where all files with 7-bit weights are refused, because they are wrong on CPUs without
    int8 dot products.
    """
    reduce_ranges = recipe.int8.reduce_range_choices() if precision == "int8" else (False,)
    exported = None
    for reduce_range in reduce_ranges if search else reduce_ranges[:1]:
        candidates = candidates_of(fp32, precision, images, recipe, reduce_range=reduce_range)
        exported = write_best(candidates, precision, folder, checker, search=search)
        if not exported.gate_result.reasons:
            break
    assert exported is not None
    return exported


def candidates_of(
    fp32: onnx.ModelProto, precision: str, images: GateImages, recipe: ExportRecipe, *, reduce_range: bool
) -> Iterator[tuple[onnx.ModelProto, Quantisation | None]]:
    """Yields the models of a precision to check until one passes, and how each was quantised."""
    if precision == "int8":
        calibration_NHWC, selection_NHWC = images.calibration_NHWC, images.selection_NHWC
        for item in int8_candidates(fp32, calibration_NHWC, selection_NHWC, recipe.int8, reduce_range=reduce_range):
            yield item.model, item.quantisation
    else:
        yield (to_fp16(fp32) if precision == "fp16" else fp32), None


def write_best(
    candidates: Iterator[tuple[onnx.ModelProto, Quantisation | None]],
    precision: str,
    folder: Path,
    checker: Checker,
    *,
    search: bool,
) -> ExportedFile:
    """Writes and checks one candidate after the other; returns the best, which is the one on disk at the end.

    The search ends at a file that passes. Where the images are too few to pass even a file without loss, it ends at the
    first file whose measured loss is within the limit. Where they are enough, it goes on, as a later file may pass.
    """
    path = folder / f"model.{precision}.onnx"
    best: tuple[onnx.ModelProto, ExportedFile] | None = None
    exported: ExportedFile | None = None
    for model, quantisation in candidates:
        with stage(f"writing {path.name}"):
            save_onnx(model, path)
        check = checker.check_on_enough_images(path, precision)
        exported = ExportedFile(path=path, precision=precision, check=check, quantisation=quantisation)
        rank = rank_of(exported.gate_result)
        best_rank = Rank.REFUSED if best is None else rank_of(best[1].gate_result)
        # Later candidates leave more operators in float32, which costs speed: they have to be of a better rank, unless
        # the best so far is refused.
        if best is None or best_rank == Rank.REFUSED or rank < best_rank:
            best = model, exported
        if not search or rank == Rank.PASSED:
            break
        if rank == Rank.WITHIN_LIMIT and exported.gate_result.queries_needed is not None:
            break  # the images are too few to pass any file
    assert best is not None
    if best[1] is not exported:
        save_onnx(best[0], path)
    return best[1]
