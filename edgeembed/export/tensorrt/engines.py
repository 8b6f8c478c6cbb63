"""Builds TensorRT engines of a bundle's ONNX files on this GPU; each passes the gate on real images or is refused.

Nothing here needs torch: a Jetson builds its own engines from a finished bundle.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgeembed.arrays import FloatArray, UInt8Array
from edgeembed.device.bundle import read_bundle, verified_file, write_bundle
from edgeembed.device.bundle_schema import CARD, ONNX, PLAN, BundleFile, BundleManifest
from edgeembed.device.embedder import verified_with_weights
from edgeembed.device.image_files import find_images
from edgeembed.device.image_sources import decode_all
from edgeembed.device.runtimes import open_session
from edgeembed.errors import CheckFailed, UserError
from edgeembed.evaluation import ScoredQueries
from edgeembed.export.card import model_card, notes_in
from edgeembed.export.checks import Checker, ComparisonImages, file_facts, is_transformer, run_session
from edgeembed.export.gate import RefusedFile
from edgeembed.export.recipe import EngineSection, ExportRecipe
from edgeembed.extras import install_hint
from edgeembed.files import whole_folder
from edgeembed.metrics import RetrievalScores
from edgeembed.progress import stage

log = logging.getLogger(__name__)

RUNTIME = "tensorrt"
PARITY_IMAGES = 256
INSTALL_HINT = (
    "(version 10 and newer take their libraries from NVIDIA's own index; tensorrt==8.6.0 for Python 3.10 contains them)"
)


@dataclass(frozen=True, kw_only=True)
class UnlabelledImages:
    """Images without labels, (N, H, W, 3), on which only embeddings are compared."""

    pixels_NHWC: UInt8Array

    @property
    def num_parity(self) -> int:
        return len(self.pixels_NHWC)

    def score(self, _: FloatArray, /) -> ScoredQueries | None:
        return None

    def summary(self, _: RetrievalScores, /) -> dict[str, Any]:
        return {}

    def enlarged(self, _: int, /) -> None:
        return None


def read_unlabelled_images(folder: Path, size: tuple[int, int]) -> UnlabelledImages:
    """Reads at most PARITY_IMAGES images of a folder and its subfolders, spread evenly over them by name."""
    files = find_images(folder)
    pixels_NHWC, _ = decode_all(files[:: max(1, len(files) // PARITY_IMAGES)][:PARITY_IMAGES], *size)
    if not len(pixels_NHWC):
        raise UserError(f"--data {folder}: holds no image that can be read")
    return UnlabelledImages(pixels_NHWC=pixels_NHWC)


def build_engines(
    folder: Path,
    files: Sequence[BundleFile],
    checker: Checker,
    settings: EngineSection,
    *,
    accept_worse: bool = False,
) -> tuple[list[dict[str, Any]], list[RefusedFile]]:
    """Writes an engine beside each ONNX file; returns entries of `files` in bundle.json, and the refused engines.

    Without a GPU or a package that this needs there are no engines, and one refusal that says what is missing.
    """
    try:
        from edgeembed.device.runtimes.cuda import CudaDevice
        from edgeembed.export.tensorrt import build

        # Fails without a GPU, and names it for bundle.json.
        device = CudaDevice()
    except ModuleNotFoundError as error:
        reason = f"{install_hint(error.name or RUNTIME)} {INSTALL_HINT}"
        return [], [RefusedFile(precision=RUNTIME, path=PLAN, reasons=(reason,))]
    # The package is installed, but a library, the driver or a GPU is missing.
    except (ImportError, OSError, UserError) as error:
        reason = f"cannot be used here: {' '.join(str(error).split())}"
        return [], [RefusedFile(precision=RUNTIME, path=PLAN, reasons=(reason,))]
    # An engine that fails leaves the others and the ONNX files as they are.
    engines: list[dict[str, Any]] = []
    refused: list[RefusedFile] = []
    for file in files:
        if not file.path.endswith(ONNX):
            continue
        path = folder / f"model.{file.precision}{PLAN}"
        label = f"{RUNTIME} {file.precision}"
        try:
            with stage(f"building the {file.precision} engine with TensorRT on {device.name}"):
                model = onnx.load(folder / file.path)
                plan = build.build_engine(model, file.precision, settings)
            # The types are read back first: an fp16 engine that computes in fp32 would pass the gate.
            layers = build.inspect_engine(plan)
            log.info("%s engine: %d layers, products with weights: %s", file.precision, layers.layers, layers.products)
            build.require_precision(layers, file.precision, model)
            path.write_bytes(plan)
            result = checker.check(path, file.precision, runtime=RUNTIME)
        except CheckFailed as error:
            path.unlink(missing_ok=True)
            refused.append(RefusedFile(precision=label, path=path.name, reasons=(str(error),)))
            continue
        if reasons := result.gate_result.reasons:
            refused.append(RefusedFile(precision=label, path=path.name, reasons=reasons))
            if result.is_broken or not accept_worse:
                path.unlink()
                continue
        engines.append(
            {
                **file_facts(path, file.precision, RUNTIME),
                **result.facts(checker.images),
                "accepted_worse": reasons,
                "engine": {
                    **build.engine_facts(settings, layers),
                    "gpu": device.name,
                    "compute_capability": device.compute_capability,
                    "onnx_sha256": file.sha256,  # reading the bundle refuses an engine of another file
                },
            }
        )
    device.close()
    return engines, refused


def add_engines(
    bundle: Path,
    out: Path,
    images: ComparisonImages,
    *,
    recipe: ExportRecipe,
    precisions: Sequence[str],
    accept_worse: bool = False,
) -> tuple[BundleManifest | None, list[RefusedFile]]:
    """Builds engines of a finished bundle's files into `out`, which may be the bundle itself and is replaced whole.

    Returns the bundle that was written, None where no engine could be built, and the refused engines. Embeddings are
    compared with those of the bundle's fp32 file in ONNX Runtime, which was compared with torch when it was exported.
    """
    manifest = read_bundle(bundle)
    # All files, since the whole bundle is copied and sealed again.
    for file in manifest.files:
        verified_file(bundle, file)
    onnx_files = {file.precision: file for file in manifest.files if file.path.endswith(ONNX)}
    unknown = [name for name in precisions if name not in onnx_files]
    if unknown:
        raise UserError(f"{bundle}: has no {', '.join(unknown)} file, it holds {', '.join(onnx_files)}")
    reference = onnx_files.get("fp32")
    if reference is None:
        raise UserError(f"{bundle}: has no fp32 file to compare engines with: export the run again")
    with stage(f"embedding {len(images.pixels_NHWC)} images with {reference.path} in ONNX Runtime"):
        session = open_session(verified_with_weights(bundle, manifest, reference))
        reference_ND = run_session(session, images.pixels_NHWC)
    # The nodes tell, so that the weights are not read.
    transformer = is_transformer(onnx.load(bundle / reference.path, load_external_data=False))
    checker = Checker(
        images=images, reference_ND=reference_ND[: images.num_parity], gate=recipe.gate, transformer=transformer
    )
    # Not run again: its embeddings are the reference itself.
    checker.fp32 = checker.evaluate(bundle / reference.path, reference_ND, "fp32")
    # The card is written anew with the engines; notes that the user gave stay.
    notes = notes_in((bundle / CARD).read_text(encoding="utf-8"), manifest) if (bundle / CARD).is_file() else ""
    with whole_folder(out) as folder:
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
        engines, refused = build_engines(
            folder,
            [onnx_files[name] for name in precisions],
            checker,
            recipe.engine,
            accept_worse=accept_worse,
        )
        if not engines:
            shutil.rmtree(folder)  # so that an earlier bundle stays
            return None, refused
        names = {item["path"] for item in engines}
        # An engine of an earlier build is replaced by the new one of its precision.
        kept = [file for file in manifest.files if file.path not in names]
        files = (*kept, *(BundleFile.model_validate(item) for item in engines))
        manifest = manifest.model_copy(update={"files": files})
        manifest = write_bundle(folder, manifest, model_card(manifest, notes))
    return manifest, refused
