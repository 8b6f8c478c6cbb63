"""Builds a web page from a bundle: static files that search a small index on the visitor's device, also offline.

It works without torch. Any web server can serve the page from any folder, without special headers, and the page loads
nothing from other hosts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL

from edgeembed.device.bundle import read_bundle, verified_file
from edgeembed.device.bundle_schema import BundleFile, BundleManifest
from edgeembed.device.embedder import Embedder
from edgeembed.device.images import MAX_PIXELS
from edgeembed.errors import UserError
from edgeembed.export.web.index import Picture, write_index
from edgeembed.export.web.runtime import PACKAGE, VERSION, add_runtime
from edgeembed.files import sha256_of, whole_folder

log = logging.getLogger(__name__)

SCHEMA = "edgeembed-web/1"
SITE, SERVICE_WORKER = "site.json", "service-worker.js"
STATIC_FILES = Path(__file__).parent / "static"
PREFERRED = ("int8", "fp32", "fp16")
"""int8 is a quarter of the download of fp32, and integer arithmetic is the same on every processor. Where a network has
float operators between, embeddings of two processors differ in the 4th decimal, as ties are rounded either way.
"""
MAX_MODEL_BYTES = 500_000_000


def build_page(bundle: Path, out: Path, pictures: Sequence[Picture], *, precision: str | None = None) -> dict[str, Any]:
    """Writes the page into `out`, complete or not at all, and replaces an older page. Returns site.json.

    Raises UserError for a bundle, precision or folder that cannot be used, and CheckFailed for a file with another
    checksum than the bundle's, or where ONNX Runtime for browsers cannot be downloaded.
    """
    manifest = read_bundle(bundle)
    file = choose_web_file(manifest, precision)
    check_web_target(out)
    model = Embedder(bundle, precision=file.precision, runtime="onnxruntime")
    # The index is embedded with the page's own file and runtime: cosines then mean the same in both.
    with whole_folder(out) as folder:
        (folder / "onnxruntime").mkdir()
        add_runtime(folder / "onnxruntime")
        shutil.copyfile(verified_file(bundle, file), folder / file.path)
        if manifest.card is not None:
            shutil.copyfile(verified_file(bundle, manifest.card), folder / manifest.card.path)
        num_pictures = write_index(folder, pictures, model)
        for path in sorted(STATIC_FILES.iterdir()):
            if path.name != SERVICE_WORKER:
                shutil.copyfile(path, folder / path.name)
        site = {
            "schema": SCHEMA,
            "model": model_facts(manifest, file),
            "index": {"file": "index.json", "vectors": "index.f32", "pictures": num_pictures},
            "picture": {"max_pixels": MAX_PIXELS, "tall_columns_first": resizes_columns_first()},
            "versions": {**manifest.versions, PACKAGE: VERSION},
            "files": checksums(folder),
        }
        (folder / SITE).write_text(json.dumps(site, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        # Last, as it lists the checksums of all other files.
        (folder / SERVICE_WORKER).write_text(filled_service_worker(folder), encoding="utf-8")
    return site


def choose_web_file(manifest: BundleManifest, precision: str | None) -> BundleFile:
    """Returns the file of a precision; by default the first of PREFERRED that passed its gate."""
    by_precision = {file.precision: file for file in manifest.files if file.path.endswith(".onnx")}
    if precision is not None and precision not in by_precision:
        listed = ", ".join(sorted(by_precision)) or "no ONNX file"
        raise UserError(f"bundle {manifest.name!r}: no precision {precision!r} for the page, it holds {listed}")
    passed = [name for name in PREFERRED if name in by_precision and not by_precision[name].accepted_worse]
    if precision is None and not passed:
        raise UserError(f"bundle {manifest.name!r}: no ONNX file passed its gate: name one with --precision")
    file = by_precision[precision or passed[0]]
    for runtime, text in file.not_shown.items():
        log.warning("%s in %s: %s", file.path, runtime, text)
    # The page loads one file: weights in a second file cannot be used.
    if file.bytes > MAX_MODEL_BYTES or any(part.path.startswith(file.path + ".") for part in manifest.files):
        raise UserError(
            f"{file.path}: is too large for a web page: distil a smaller student, or choose --precision int8"
        )
    return file


def model_facts(manifest: BundleManifest, file: BundleFile) -> dict[str, Any]:
    """Returns `model` of site.json."""
    return {
        "file": file.path,
        "name": manifest.name,
        "precision": file.precision,
        "sha256": file.sha256,
        "space_id": manifest.space_id,
        "dim": manifest.embedding.dim,
        "height": manifest.input.height,
        "width": manifest.input.width,
        "licence": manifest.licence,
    }


def resizes_columns_first() -> bool:
    """Whether this Pillow, which resized the index images, begins with the columns of a tall image: 13 and newer."""
    return int(PIL.__version__.split(".")[0]) >= 13


def check_web_target(out: Path) -> None:
    """Raises UserError for a folder that is neither empty nor a page of edgeembed."""
    if out.exists() and not (out / SITE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not a web page of edgeembed: choose another --web")


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns checksum and size of every file in a folder and its subfolders, by its path with forward slashes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in files
    }


def filled_service_worker(folder: Path) -> str:
    """Returns the service worker of a finished page, with the files to keep and a version that changes with them."""
    files = json.dumps({name: facts["sha256"] for name, facts in checksums(folder).items()}, indent=2)
    text = (STATIC_FILES / SERVICE_WORKER).read_text(encoding="utf-8")
    for empty, filled in (
        ("const FILES = {};", f"const FILES = {files};"),
        ('const VERSION = "";', f'const VERSION = "{hashlib.sha256(files.encode()).hexdigest()[:16]}";'),
    ):
        assert text.count(empty) == 1, empty  # or the page would silently not work offline
        text = text.replace(empty, filled)
    return text
