"""TensorRT engines of a bundle's ONNX files: built on this GPU, read back, run on real images, refused when worse.

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
from edgeembed.device.bundle_schema import CARD, PLAN, BundleFile, BundleManifest
from edgeembed.device.embedder import verified_with_weights
from edgeembed.device.image_files import find_images
from edgeembed.device.image_sources import decode_all
from edgeembed.device.runtimes import open_session
from edgeembed.errors import CheckFailed, UserError
from edgeembed.evaluation import ScoredQueries
from edgeembed.export.card import model_card, notes_in
from edgeembed.export.checks import Checker, Judged, is_transformer, run_session
from edgeembed.export.gate import Refused
from edgeembed.export.recipe import EngineSection, ExportRecipe
from edgeembed.extras import install_hint
from edgeembed.files import sha256_of, whole_folder
from edgeembed.metrics import RetrievalScores
from edgeembed.progress import stage

log = logging.getLogger(__name__)

RUNTIME = "tensorrt"
PARITY_IMAGES = 256
WHERE_FROM = (
    "(version 10 and newer take their libraries from NVIDIA's own index; "
    "tensorrt==8.6.0 for Python 3.10 has them inside)"
)


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Images without labels to compare embeddings on, (N, H, W, 3)."""

    pixels_NHWC: UInt8Array

    @property
    def num_parity(self) -> int:
        return len(self.pixels_NHWC)

    def score(self, _: FloatArray, /) -> ScoredQueries | None:
        return None

    def summary(self, _: RetrievalScores, /) -> dict[str, Any]:
        return {}

    def grown(self, _: int, /) -> None:
        return None


def photographs(folder: Path, size: tuple[int, int]) -> Photographs:
    """Images of a folder and those below it, spread over all of them by name."""
    files = find_images(folder)
    pixels_NHWC, _ = decode_all(files[:: max(1, len(files) // PARITY_IMAGES)][:PARITY_IMAGES], *size)
    if not len(pixels_NHWC):
        raise UserError(f"--data {folder}: holds no image that can be read")
    return Photographs(pixels_NHWC=pixels_NHWC)


def build_all(
    folder: Path,
    files: Sequence[BundleFile],
    checker: Checker,
    settings: EngineSection,
    *,
    accept_worse: bool = False,
) -> tuple[list[dict[str, Any]], list[Refused]]:
    """Writes an engine beside each ONNX file that is given; returns their entries of `files`, and what was refused.

    Without the packages that this needs, or without a GPU, every engine is refused, by what is missing.
    """
    sources = [file for file in files if file.path.endswith(".onnx")]
    try:
        from edgeembed.device.runtimes.cuda import CudaDevice
        from edgeembed.export.tensorrt import build as engines

        device = CudaDevice()
    except ModuleNotFoundError as error:
        return [], [
            Refused(precision=RUNTIME, path=PLAN, reasons=(f"{install_hint(error.name or RUNTIME)} {WHERE_FROM}",))
        ]
    except (ImportError, OSError, UserError) as error:
        return [], [
            Refused(precision=RUNTIME, path=PLAN, reasons=(f"cannot be used here: {' '.join(str(error).split())}",))
        ]
    made: list[dict[str, Any]] = []
    refused: list[Refused] = []
    for file in sources:
        path = folder / f"model.{file.precision}{PLAN}"
        label = f"{RUNTIME} {file.precision}"
        try:
            with stage(f"building the {file.precision} engine with TensorRT on {device.name}"):
                model = onnx.load(folder / file.path)
                plan = engines.build_engine(model, file.precision, settings)
            found = engines.inspect_engine(plan)
            log.info("%s engine: %d layers, products with weights: %s", file.precision, found.layers, found.products)
            engines.require_precision(found, file.precision, model)
            path.write_bytes(plan)
            checked = checker.check(path, file.precision, runtime=RUNTIME)
        except CheckFailed as error:
            path.unlink(missing_ok=True)
            refused.append(Refused(precision=label, path=path.name, reasons=(str(error),)))
            continue
        if reasons := checked.verdict.reasons:
            refused.append(Refused(precision=label, path=path.name, reasons=reasons))
            if checked.broken or not accept_worse:
                path.unlink()
                continue
        made.append(
            {
                "path": path.name,
                "runtime": RUNTIME,
                "precision": file.precision,
                "sha256": sha256_of(path),
                "bytes": path.stat().st_size,
                **checked.facts(checker.images),
                "accepted_worse": reasons,
                "engine": {
                    **engines.facts(settings, found),
                    "gpu": device.name,
                    "compute_capability": device.compute_capability,
                    "onnx_sha256": file.sha256,
                },
            }
        )
    device.close()
    return made, refused


def add_engines(
    bundle: Path,
    out: Path,
    images: Judged,
    *,
    recipe: ExportRecipe,
    precisions: Sequence[str],
    accept_worse: bool = False,
) -> tuple[BundleManifest | None, list[Refused]]:
    """Builds engines of a finished bundle's files into `out`, which may be the bundle itself and changes whole.

    Returns the bundle that was written, None where no engine could be, and what was refused.

    Embeddings are held against the bundle's own fp32 file in ONNX Runtime, which was held against torch.
    """
    manifest = read_bundle(bundle)
    for file in manifest.files:
        verified_file(bundle, file)
    onnx_files = {file.precision: file for file in manifest.files if file.path.endswith(".onnx")}
    unknown = [name for name in precisions if name not in onnx_files]
    if unknown:
        raise UserError(f"{bundle}: has no {', '.join(unknown)} file, it holds {', '.join(onnx_files)}")
    reference = onnx_files.get("fp32")
    if reference is None:
        raise UserError(f"{bundle}: has no fp32 file to hold engines against: export the run again")
    with stage(f"embedding {len(images.pixels_NHWC)} images with {reference.path} in ONNX Runtime"):
        session = open_session(verified_with_weights(bundle, manifest, reference))
        reference_ND = run_session(session, images.pixels_NHWC)
    transformer = is_transformer(onnx.load(bundle / reference.path, load_external_data=False))
    checker = Checker(
        images=images, reference_ND=reference_ND[: images.num_parity], gate=recipe.gate, transformer=transformer
    )
    checker.fp32 = checker.judged(bundle / reference.path, reference_ND, "fp32")
    notes = notes_in((bundle / CARD).read_text(encoding="utf-8"), manifest) if (bundle / CARD).is_file() else ""
    with whole_folder(out) as folder:
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
        made, refused = build_all(
            folder,
            [onnx_files[name] for name in precisions],
            checker,
            recipe.engine,
            accept_worse=accept_worse,
        )
        if not made:
            shutil.rmtree(folder)  # so that an earlier bundle stays
            return None, refused
        names = {item["path"] for item in made}
        kept = [file for file in manifest.files if file.path not in names]
        files = (*kept, *(BundleFile.model_validate(item) for item in made))
        manifest = manifest.model_copy(update={"files": files})
        manifest = write_bundle(folder, manifest, model_card(manifest, notes))
    return manifest, refused
