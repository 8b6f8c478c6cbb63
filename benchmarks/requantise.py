"""Makes a bundle's int8 file again from its fp32 ONNX file, checked as an export checks it, on the same data.

Why: the rules for int8 may change when the training run of a bundle is gone. Embeddings are compared with those of the
bundle's fp32 file in ONNX Runtime, which was compared with torch. All other files stay as they are, byte for byte.

Usage: python benchmarks/requantise.py BUNDLE --data MANIFEST --out BUNDLE [--set int8.reduce_range=false]
       [--notes NOTES.md]
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

import onnx

from edgeembed.config import load_recipe
from edgeembed.device.bundle import fp32_file, read_bundle, verified_file, write_bundle
from edgeembed.device.bundle_schema import CARD, BundleFile, BundleManifest
from edgeembed.device.embedder import verified_with_weights
from edgeembed.device.runtimes import open_session
from edgeembed.export.card import model_card, notes_in
from edgeembed.export.checks import Checker, is_transformer, run_session
from edgeembed.export.exported_files import export_precision
from edgeembed.export.gate import require_nothing_refused
from edgeembed.export.gate_images import read_gate_images
from edgeembed.export.recipe import ExportRecipe
from edgeembed.files import whole_folder

PRECISION = "int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="manifest to calibrate and compare on")
    parser.add_argument("--out", type=Path, required=True, help="bundle folder; may be BUNDLE itself")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--notes", type=Path, help="notes of the model card; default: those of the old card")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = load_recipe(ExportRecipe, kind="export", name="default", overrides=arguments.overrides)
    requantise(arguments.bundle, arguments.out, arguments.data, recipe, notes=arguments.notes)


def requantise(bundle: Path, out: Path, data: Path, recipe: ExportRecipe, *, notes: Path | None) -> BundleManifest:
    """Writes the bundle with a new int8 file to `out`. Raises CheckFailed for an int8 file that fails its gate."""
    manifest = read_bundle(bundle)
    for file in manifest.files:
        verified_file(bundle, file)
    reference = fp32_file(manifest)
    assert reference is not None, "a bundle without an fp32 file has nothing to quantise"
    student: dict[str, Any] = manifest.student or {}
    images = read_gate_images(manifest.input.height, int(student["macs"]), {}, data, recipe)
    reference_ND = run_session(open_session(verified_with_weights(bundle, manifest, reference)), images.pixels_NHWC)
    model = onnx.load(bundle / reference.path)
    checker = Checker(
        images=images,
        reference_ND=reference_ND[: images.num_parity],
        gate=recipe.gate,
        transformer=is_transformer(model),
    )
    checker.fp32 = checker.evaluate(bundle / reference.path, reference_ND, "fp32")
    with whole_folder(out) as folder:
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
        exported = export_precision(model, PRECISION, folder, images, checker, recipe, search=True)
        if exported.gate_result.reasons:
            require_nothing_refused([exported.as_refused()])
        (facts,) = exported.facts(checker)
        new = BundleFile.model_validate(facts)
        files = tuple(file for file in manifest.files if file.path != new.path)
        changed = manifest.model_copy(update={"files": (*files, new)})
        text = notes.read_text() if notes else notes_in((bundle / CARD).read_text(), manifest)
        return write_bundle(folder, changed, model_card(changed, text))


if __name__ == "__main__":
    main()
