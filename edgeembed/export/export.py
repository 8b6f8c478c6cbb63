"""A finished run becomes a bundle: every file is run on real images and refused when it is worse than promised."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgeembed.device.bundle import BundleFile, BundleManifest, Quantisation, write_bundle
from edgeembed.device.embeddings import short_space_id
from edgeembed.device.packing import replace_folder
from edgeembed.errors import UserError
from edgeembed.export.baselines import measure_baselines, run_torch
from edgeembed.export.bundle_facts import bundle_facts
from edgeembed.export.card import model_card
from edgeembed.export.checks import OWN_RUNTIME, Checked, Checker, is_transformer
from edgeembed.export.fp16 import to_fp16
from edgeembed.export.gate import Refused
from edgeembed.export.gate_images import GateImages, gate_images
from edgeembed.export.int8.quantise import int8_attempts
from edgeembed.export.onnx import MAX_PROTOBUF_BYTES, OPSET, save, to_onnx
from edgeembed.export.recipe import ExportRecipe
from edgeembed.export.tensorrt.engines import build_all
from edgeembed.files import sha256_of, temporary_name, write_failure
from edgeembed.network.model import EnsembleModel, Network
from edgeembed.network.model_files import load_model
from edgeembed.progress import stage
from edgeembed.student.zoo import count_macs

log = logging.getLogger(__name__)

PASSED, WITHIN, ABOVE, REFUSED = range(4)  # ranks of a file, best first


def export_run(
    run_path: Path,
    out: Path,
    *,
    precisions: Sequence[str],
    recipe: ExportRecipe | None = None,
    data: Path | None = None,
    name: str | None = None,
    licence: str | None = None,
    notes: str = "",
    dim: int | None = None,
    accept_worse: bool = False,
    tensorrt: bool = False,
) -> tuple[BundleManifest | None, list[Refused]]:
    """Exports a student or teacher run. Returns the bundle that was written, and what was refused.

    Files that the gate refuses are left out; where it refuses fp32, nothing is written. With `accept_worse` they are
    written and marked, unless they are broken. A file whose loss of mAP is not shown is written, with a warning. `out`
    appears whole: a bundle that was there is replaced at the end. With `tensorrt` an engine is built of every file that
    is written. With `dim` the embedding is the leading dimensions of the run's. Raises UserError for a run or data that
    cannot be read.
    """
    recipe = recipe or ExportRecipe()
    model, facts = load_model(run_path)
    if dim is not None and dim != model.dim:
        facts = make_short(run_path, model, facts, dim)
    require_exportable(run_path, model, precisions)
    check_target(out)
    macs = count_macs(model)
    images = gate_images(model.size_px, macs, facts, data, recipe)
    name = name or out.name
    with stage(f"tracing {model.name}"):
        fp32 = to_onnx(model, metadata_of(model, facts, licence))
    with stage(f"embedding {images.num_parity} images with torch"):
        reference_ND = run_torch(model, images.pixels_NHWC[: images.num_parity])
    baselines = measure_baselines(model, images, reference_ND, macs)
    checker = Checker(
        images=images,
        reference_ND=reference_ND,
        gate=recipe.gate,
        transformer=is_transformer(fp32),
        untrained_map=baselines.untrained_map,
    )

    partial = out.with_name(temporary_name(".partial"))
    partial.mkdir(parents=True)
    try:
        made: list[Made] = []
        for precision in precisions:
            one = make_file(fp32, precision, partial, images, checker, recipe, search=not accept_worse)
            if precision == "fp32":
                if one.checked.verdict.reasons and (one.checked.broken or not accept_worse):
                    return None, [one.refused()]
                checker.fp32 = one.checked
            made.append(one)
        assert isinstance(checker.images, GateImages)
        if checker.images is not images:  # they grew
            baselines = measure_baselines(model, checker.images, reference_ND, macs)
        files, refused = written_files(made, checker, accept_worse=accept_worse)
        if tensorrt:
            passed = [BundleFile.model_validate(item) for item in files]
            built, missed = build_all(partial, passed, checker, recipe.engine, accept_worse=accept_worse)
            files, refused = [*files, *built], [*refused, *missed]
        scores = (checker.fp32 or made[0].checked).scores
        described = bundle_facts(model, macs, facts, name, licence, files, baselines.facts(scores))
        manifest = BundleManifest.model_validate(described)
        manifest = write_bundle(partial, manifest, model_card(manifest, notes))
        replace_folder(out, partial)
    except OSError as error:
        raise write_failure(error, out) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    warn_not_shown(manifest.files)
    return manifest, refused


def written_files(
    made: Sequence[Made], checker: Checker, *, accept_worse: bool
) -> tuple[list[dict[str, Any]], list[Refused]]:
    """Entries of `files` in bundle.json, and the refused files, which are removed from the disk.

    Each is measured on all images of the gate, also those that were added after its first check.
    """
    files: list[dict[str, Any]] = []
    refused: list[Refused] = []
    for one in made:
        if checker.fp32 is not None and one.precision == "fp32":
            one = dataclasses.replace(one, checked=checker.fp32)
        else:
            one = dataclasses.replace(one, checked=checker.on_all_images(one.checked, one.precision))
        if one.checked.verdict.reasons:
            refused.append(one.refused())
            if one.checked.broken or not accept_worse:
                one.remove()
                continue
        files += one.facts(checker)
    return files, refused


def warn_not_shown(files: Sequence[BundleFile]) -> None:
    """Warns of each file whose loss of mAP was not shown to be within its limit."""
    for file in files:
        for runtime, text in file.not_shown.items():
            log.warning("%s in %s: %s; give a manifest with more labelled images: --data", file.path, runtime, text)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file on disk that was judged; weights above 2 GB lie beside it."""

    path: Path
    precision: str
    checked: Checked
    quantisation: Quantisation | None

    @property
    def rank(self) -> int:
        """PASSED, WITHIN (not shown, measured loss within the limit), ABOVE (not shown, above it) or REFUSED."""
        verdict = self.checked.verdict
        if verdict.reasons:
            return REFUSED
        return PASSED if verdict.not_shown is None else WITHIN if verdict.within else ABOVE

    def parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.name}*"))

    def remove(self) -> None:
        for part in self.parts():
            part.unlink()

    def refused(self) -> Refused:
        return Refused(precision=self.precision, path=self.path.name, reasons=self.checked.verdict.reasons)

    def facts(self, checker: Checker) -> list[dict[str, Any]]:
        """Its entries of `files`."""
        own, *weights = [file_facts(part, self.precision) for part in self.parts()]
        judged = {
            **self.checked.facts(checker.images),
            # Another runtime would hold the weights of a file above 2 GB once more: 20 GB in all for ViT-H-14.
            "runtimes": {} if weights else checker.check_others(self.path, self.precision),
            "quantisation": self.quantisation and self.quantisation.model_dump(),
            "accepted_worse": self.checked.verdict.reasons,
        }
        return [{**own, **judged}, *weights]


def make_file(
    fp32: onnx.ModelProto,
    precision: str,
    folder: Path,
    images: GateImages,
    checker: Checker,
    recipe: ExportRecipe,
    *,
    search: bool,
) -> Made:
    """Writes and checks a file; of int8 one attempt after the other, until one passes.

    8-bit weights are tried only where all files with 7-bit ones are refused: they are wrong on CPUs without int8 dot
    products. Without `search` the first is taken.
    """
    ranges = recipe.int8.reduced_ranges() if precision == "int8" else (False,)
    made = None
    for reduce_range in ranges if search else ranges[:1]:
        found = attempts(fp32, precision, images, recipe, reduce_range=reduce_range)
        made = first_passing(found, precision, folder, checker, search=search)
        if not made.checked.verdict.reasons:
            break
    assert made is not None
    return made


def first_passing(
    found: Iterator[tuple[onnx.ModelProto, Quantisation | None]],
    precision: str,
    folder: Path,
    checker: Checker,
    *,
    search: bool,
) -> Made:
    """Writes and checks one attempt after the other; returns the best, which is the one on disk at the end.

    The search ends at a file that passes. Where the images are too few to pass even a file without loss, it ends at the
    first file whose measured loss is within the limit. Where they are enough, it goes on, as a later file may pass.
    """
    path = folder / f"model.{precision}.onnx"
    best: tuple[onnx.ModelProto, Made] | None = None
    made: Made | None = None
    for converted, quantisation in found:
        with stage(f"writing {path.name}"):
            save(converted, path)
        checked = checker.check_until_shown(path, precision)
        made = Made(path=path, precision=precision, checked=checked, quantisation=quantisation)
        # Later attempts leave more operators in float, which costs speed: they have to be of a better rank, unless the
        # best so far is refused.
        if best is None or best[1].rank == REFUSED or made.rank < best[1].rank:
            best = converted, made
        if not search or made.rank == PASSED or (made.rank == WITHIN and checked.verdict.queries_needed is not None):
            break
    assert best is not None
    if best[1] is not made:
        save(best[0], path)
    return best[1]


def attempts(
    fp32: onnx.ModelProto, precision: str, images: GateImages, recipe: ExportRecipe, *, reduce_range: bool
) -> Iterator[tuple[onnx.ModelProto, Quantisation | None]]:
    """Files of a precision to judge until one passes, and what was chosen for each."""
    if precision == "int8":
        calibration_NHWC, choosing_NHWC = images.calibration_NHWC, images.choosing_NHWC
        for found in int8_attempts(fp32, calibration_NHWC, choosing_NHWC, recipe.int8, reduce_range=reduce_range):
            yield found.model, found.facts
    else:
        yield (to_fp16(fp32) if precision == "fp16" else fp32), None


def file_facts(path: Path, precision: str) -> dict[str, Any]:
    """An entry of `files`; weights kept beside a graph have no figures of their own."""
    return {
        "path": path.name,
        "runtime": OWN_RUNTIME,
        "precision": precision,
        "sha256": sha256_of(path),
        "bytes": path.stat().st_size,
        "opset": OPSET if path.suffix == ".onnx" else None,
    }


def metadata_of(model: Network, facts: dict[str, Any], licence: str | None) -> dict[str, str]:
    """What the ONNX file itself says."""
    return {
        "space_id": str(facts["space_id"]),
        "input": f"image: uint8, (N, {model.size_px}, {model.size_px}, 3), RGB, 0..255, both sides resized, bilinear",
        "output": f"embedding: float32, (N, {model.dim}), unit length; compare by inner product",
        "licence": licence or "not stated",
    }


def require_exportable(run_path: Path, model: Network, precisions: Sequence[str]) -> None:
    if model.keep_aspect:
        raise UserError(f"{run_path}: keeps the proportions of images, a bundle takes squares: distil it first")
    size_bytes = sum(parameter.nbytes for parameter in model.parameters())
    if "int8" in precisions and size_bytes > MAX_PROTOBUF_BYTES:
        raise UserError(
            f"{run_path}: {size_bytes / 1e9:.1f} GB of weights, int8 is made for networks below 2 GB: "
            "--precision fp32 or fp16, or distil it first"
        )


def make_short(run_path: Path, model: Network, facts: dict[str, Any], dim: int) -> dict[str, Any]:
    """Cuts a model's embedding down in place; returns its facts, in the short space."""
    if isinstance(model, EnsembleModel) or not model.pca_rotated:
        raise UserError(
            f"--dim {dim}: the numbers of {run_path} are not ordered by weight (its teacher is joined, has batch norm "
            "in the neck, or is from an early version): train the teacher again, or leave --dim out"
        )
    if not 1 <= dim < model.dim:
        raise UserError(f"--dim {dim}: {run_path} has {model.dim} embedding dimensions")
    model.keep_dimensions(dim)
    architecture = {**facts["architecture"], "params": sum(parameter.numel() for parameter in model.parameters())}
    return {**facts, "space_id": short_space_id(str(facts["space_id"]), dim), "architecture": architecture}


def check_target(out: Path) -> None:
    if out.exists() and not (out / "bundle.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not a bundle: choose another --out")
