"""Exports a finished run as a bundle; each file is run on real images first, and refused where it is too much worse."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeembed.device.bundle import write_bundle
from edgeembed.device.bundle_schema import BundleFile, BundleManifest
from edgeembed.device.embedding_space import short_space_id
from edgeembed.errors import UserError
from edgeembed.export.baselines import embed_with_torch, measure_baselines
from edgeembed.export.bundle_facts import bundle_facts
from edgeembed.export.card import model_card
from edgeembed.export.checks import Checker, is_transformer
from edgeembed.export.exported_files import ExportedFile, export_precision
from edgeembed.export.gate import RefusedFile
from edgeembed.export.gate_images import GateImages, read_gate_images
from edgeembed.export.onnx import MAX_PROTOBUF_BYTES, to_onnx
from edgeembed.export.recipe import ExportRecipe
from edgeembed.export.tensorrt.engines import build_engines
from edgeembed.files import whole_folder
from edgeembed.model_json import ModelOrigin
from edgeembed.network.macs import count_macs
from edgeembed.network.model import Network
from edgeembed.network.model_files import load_model
from edgeembed.progress import stage

log = logging.getLogger(__name__)


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
) -> tuple[BundleManifest | None, list[RefusedFile]]:
    """Exports a run. Returns the bundle that was written, None where fp32 is refused, and the refused files.

    Files that the gate refuses are left out; with `accept_worse` they are written and marked, unless they are broken. A
    file whose loss of mAP is not shown is written, with a warning. `out` appears complete or not at all, and replaces
    an earlier bundle. With `tensorrt` an engine is built of every file that is written. With `dim` only the leading
    dimensions of the embedding are exported. Raises UserError for a run or data that cannot be read.
    """
    recipe = recipe or ExportRecipe()
    model, origin = load_model(run_path)
    if dim is not None and dim != model.dim:
        origin = shorten_embedding(run_path, model, origin, dim)
    require_exportable(run_path, model, precisions)
    check_target(out)  # before minutes of work
    # What all precisions share: images, the traced graph, torch's embeddings, baselines.
    macs = count_macs(model)
    images = read_gate_images(model.size_px, macs, origin, data, recipe)
    name = name or out.name
    with stage(f"tracing {model.name}"):
        fp32 = to_onnx(model, metadata_of(model, origin, licence))
    with stage(f"embedding {images.num_parity} images with torch"):
        reference_ND = embed_with_torch(model, images.pixels_NHWC[: images.num_parity])
    baselines = measure_baselines(model, images, reference_ND, macs)
    checker = Checker(
        images=images,
        reference_ND=reference_ND,
        gate=recipe.gate,
        transformer=is_transformer(fp32),
        untrained_map=baselines.untrained_map,
    )

    with whole_folder(out) as folder:
        exported: list[ExportedFile] = []
        for precision in precisions:
            file = export_precision(fp32, precision, folder, images, checker, recipe, search=not accept_worse)
            # fp32 comes first: all other files are compared with it, so that nothing is exported without it.
            if precision == "fp32":
                if file.gate_result.reasons and (file.check.is_broken or not accept_worse):
                    shutil.rmtree(folder)  # so that an earlier bundle stays
                    return None, [file.as_refused()]
                checker.fp32 = file.check
            exported.append(file)
        # The type of `images` is a Protocol, as engines of a bundle are compared on other images.
        assert isinstance(checker.images, GateImages)
        if checker.images is not images:  # they were too few and were enlarged
            baselines = measure_baselines(model, checker.images, reference_ND, macs)
        files, refused = keep_accepted(exported, checker, accept_worse=accept_worse)
        # Engines are built of the files that stay, and pass the same gate.
        if tensorrt:
            passed = [BundleFile.model_validate(item) for item in files]
            engines, refused_engines = build_engines(folder, passed, checker, recipe.engine, accept_worse=accept_worse)
            files, refused = [*files, *engines], [*refused, *refused_engines]
        # Only chance is taken from these scores, which is the same for every file.
        scores = (checker.fp32 or exported[0].check).scores
        described = bundle_facts(model, macs, origin, name, licence, files, baselines.facts(scores))
        manifest = BundleManifest.model_validate(described)
        manifest = write_bundle(folder, manifest, model_card(manifest, notes))
    warn_not_shown(manifest.files)
    return manifest, refused


def keep_accepted(
    exported: Sequence[ExportedFile], checker: Checker, *, accept_worse: bool
) -> tuple[list[dict[str, Any]], list[RefusedFile]]:
    """Returns entries of `files` in bundle.json, and the refused files, which are removed unless they are accepted.

    Each file is first checked on the images that were added to the gate after its check.
    """
    files: list[dict[str, Any]] = []
    refused: list[RefusedFile] = []
    for file in exported:
        # The checker has extended the check of fp32 itself, whenever it added images.
        if checker.fp32 is not None and file.precision == "fp32":
            file = dataclasses.replace(file, check=checker.fp32)
        else:
            file = dataclasses.replace(file, check=checker.extend(file.check, file.precision))
        if file.gate_result.reasons:
            refused.append(file.as_refused())
            if file.check.is_broken or not accept_worse:
                file.remove()
                continue
        files += file.facts(checker)
    return files, refused


def warn_not_shown(files: Sequence[BundleFile]) -> None:
    """Warns of each file whose loss of mAP was not shown to be within its limit."""
    for file in files:
        for runtime, text in file.not_shown.items():
            log.warning(
                "%s in %s: %s; `edgeembed export --data` takes a manifest with more labelled images and classes",
                file.path,
                runtime,
                text,
            )


def metadata_of(model: Network, origin: ModelOrigin, licence: str | None) -> dict[str, str]:
    """Metadata of the ONNX file, for those who have the file without its bundle."""
    return {
        "space_id": origin.space_id,
        "input": f"image: uint8, (N, {model.size_px}, {model.size_px}, 3), RGB, 0..255, both sides resized, bilinear",
        "output": f"embedding: float32, (N, {model.dim}), unit length; compare by inner product",
        "licence": licence or "not stated",
    }


def require_exportable(run_path: Path, model: Network, precisions: Sequence[str]) -> None:
    """Raises UserError for a network that no bundle can hold in these precisions."""
    if model.keep_aspect:
        raise UserError(f"{run_path}: keeps the proportions of images, a bundle takes squares: distil it first")
    # The quantiser passes the model through one protobuf message.
    size_bytes = sum(parameter.nbytes for parameter in model.parameters())
    if "int8" in precisions and size_bytes > MAX_PROTOBUF_BYTES:
        raise UserError(
            f"{run_path}: {size_bytes / 1e9:.1f} GB of weights, int8 needs a network below 2 GB: "
            "--precision fp32 or fp16, or distil it first"
        )


def shorten_embedding(run_path: Path, model: Network, origin: ModelOrigin, dim: int) -> ModelOrigin:
    """Keeps the leading dimensions of a model's embedding, in place; returns its origin in the short space."""
    if not model.pca_rotated:
        raise UserError(
            f"--dim {dim}: the embedding of {run_path} is not PCA-rotated, so its leading dimensions are not the most "
            "important (its teacher is an ensemble without a projection, keeps all features, has batch norm in the "
            "neck, or is from an early version): make the teacher again, or leave --dim out"
        )
    if not 1 <= dim < model.dim:
        raise UserError(f"--dim {dim}: {run_path} has {model.dim} embedding dimensions")
    model.keep_dimensions(dim)
    # Another space id, so that a short query is not compared with whole embeddings before they are shortened.
    return origin.model_copy(update={"space_id": short_space_id(origin.space_id, dim)})


def check_target(out: Path) -> None:
    """Raises UserError for a folder that is neither empty nor a bundle, which the export would replace."""
    if out.exists() and not (out / "bundle.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not a bundle: choose another --out")
