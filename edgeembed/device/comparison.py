"""Compares two bundles, or two files of one: metadata, files, operators, and embeddings of the same images."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeembed.agreement import measure_agreement
from edgeembed.arrays import FloatArray
from edgeembed.device.bundle import choose_file, read_bundle
from edgeembed.device.bundle_schema import MANIFEST, BundleFile, BundleManifest
from edgeembed.device.embedder import Embedder, embed_images, verified_with_weights
from edgeembed.device.image_sources import ImageSource
from edgeembed.device.runtimes import has_int8_dot_product
from edgeembed.errors import UserError
from edgeembed.extras import install_hint
from edgeembed.metrics import top_k

SYNTHETIC_SCENES, SYNTHETIC_VIEWS, SYNTHETIC_PX = 16, 4, 256
COMPARED_FILE_FACTS = ("bytes", "sha256", "opset", "parity", "retrieval")


@dataclass(frozen=True, kw_only=True)
class ComparedFile:
    """A bundle, and the file of it whose graph and embeddings are compared."""

    folder: Path
    manifest: BundleManifest
    file: BundleFile

    def describe(self) -> dict[str, str]:
        """The keys of the result that identify this file."""
        return {"folder": str(self.folder), "name": self.manifest.name, "precision": self.file.precision}


def open_compared_files(a: str, b: str) -> tuple[ComparedFile, ComparedFile]:
    """The two files that are named as `FOLDER` or `FOLDER:PRECISION`.

    Without a precision it is the one that the other name gives, else fp32 where both bundles hold it, else the default
    of each bundle on this machine.
    """
    (folder_a, named_a), (folder_b, named_b) = split_precision(a), split_precision(b)
    manifests = read_bundle(folder_a), read_bundle(folder_b)
    held = [{file.precision for file in manifest.files if file.path.endswith(".onnx")} for manifest in manifests]
    shared = "fp32" if all("fp32" in precisions for precisions in held) else None
    sides = []
    for folder, manifest, named, other, precisions in zip(
        (folder_a, folder_b), manifests, (named_a, named_b), (named_b, named_a), held, strict=True
    ):
        precision = named or (other if other in precisions else shared)
        file = choose_file(manifest, precision, has_int8_dot_product=has_int8_dot_product())
        sides.append(ComparedFile(folder=folder, manifest=manifest, file=file))
    return sides[0], sides[1]


def split_precision(text: str) -> tuple[Path, str | None]:
    """Folder and precision of a name; a bundle whose folder name contains a colon is recognised."""
    # A drive letter of Windows has a colon, too, which a slash or backslash follows.
    folder, colon, precision = text.rpartition(":")
    if not colon or not folder or "/" in precision or "\\" in precision or (Path(text) / MANIFEST).is_file():
        return Path(text), None
    return Path(folder), precision or None


def compare(
    a: ComparedFile,
    b: ComparedFile,
    images: Sequence[ImageSource] | None = None,
    *,
    on_skip: Callable[[str], None],
    threads: int | None = None,
) -> dict[str, Any]:
    """Every difference of two files and their bundles, as JSON; without `images`, synthetic ones are embedded."""
    # Checksums first: a damaged file would show up as puzzling differences.
    for side in (a, b):
        verified_with_weights(side.folder, side.manifest, side.file)
    return {
        "a": a.describe(),
        "b": b.describe(),
        "facts": fact_differences(a.manifest, b.manifest),
        "files": file_differences(a, b),
        "operators": operator_differences(a, b),
        "embeddings": compare_embeddings(a, b, images, on_skip=on_skip, threads=threads),
    }


def fact_differences(a: BundleManifest, b: BundleManifest) -> dict[str, list[Any]]:
    """Dotted key to its values [a, b] wherever the two bundle.json differ, apart from their lists of files."""
    flat_a, flat_b = (
        flatten(manifest.model_dump(by_alias=True, mode="json", exclude={"files", "card"})) for manifest in (a, b)
    )
    return differences(flat_a, flat_b)


def file_differences(a: ComparedFile, b: ComparedFile) -> dict[str, dict[str, list[Any]]]:
    """File name to its differences: first the two chosen files, then every file by its name in both bundles."""
    pairs: list[tuple[str, BundleFile | None, BundleFile | None]] = []
    if a.file.precision != b.file.precision:
        pairs.append((f"{a.file.path} against {b.file.path}", a.file, b.file))
    # `dict.fromkeys` keeps the order of the bundles and drops duplicates.
    by_path_a, by_path_b = ({file.path: file for file in side.manifest.files} for side in (a, b))
    pairs += [(path, by_path_a.get(path), by_path_b.get(path)) for path in dict.fromkeys([*by_path_a, *by_path_b])]
    result = {}
    for name, *both in pairs:
        flat_a, flat_b = (
            flatten(file.model_dump(mode="json", include=set(COMPARED_FILE_FACTS))) if file else {} for file in both
        )
        if changes := differences(flat_a, flat_b):
            result[name] = changes
    return result


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as one with dotted keys; keys whose value is None are left out."""
    if not isinstance(value, dict):
        return {} if value is None else {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else key))
    return flat


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[Any]]:
    """Key to its values [a, b] wherever they differ; None stands for a missing key."""
    return {key: [a.get(key), b.get(key)] for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)}


def operator_differences(a: ComparedFile, b: ComparedFile) -> dict[str, Any]:
    """Number of nodes of each operator type where the numbers differ; the reason where `onnx` is not installed."""
    if importlib.util.find_spec("onnx") is None:
        return {"compared": False, "reason": install_hint("onnx")}
    counts_a, counts_b = (count_operators(side.folder / side.file.path) for side in (a, b))
    totals = [sum(counts_a.values()), sum(counts_b.values())]
    types = sorted({*counts_a, *counts_b})
    counts = {kind: [counts_a[kind], counts_b[kind]] for kind in types if counts_a[kind] != counts_b[kind]}
    return {"compared": True, "nodes": totals, "counts": counts}


def count_operators(path: Path) -> Counter[str]:
    """Number of nodes of each operator type in an ONNX file, functions included."""
    import onnx

    # The operators are in the graph; the weights, which may be large, are not needed.
    model = onnx.load(path, load_external_data=False)
    return Counter(node.op_type for part in (model.graph, *model.functions) for node in part.node)


def compare_embeddings(
    a: ComparedFile,
    b: ComparedFile,
    images: Sequence[ImageSource] | None,
    *,
    on_skip: Callable[[str], None],
    threads: int | None,
) -> dict[str, Any]:
    """Agreement of the embeddings of the same images; the reason where the two models cannot be compared."""
    space_a, space_b = a.manifest.space_id, b.manifest.space_id
    # Embeddings of two spaces have nothing in common, so that a cosine between them means nothing.
    if space_a != space_b:
        reason = f"spaces {space_a} and {space_b}: embeddings of two spaces cannot be compared"
        return {"compared": False, "reason": reason}
    dim_a, dim_b = a.manifest.embedding.dim, b.manifest.embedding.dim
    if dim_a != dim_b:
        return {"compared": False, "reason": f"{dim_a} and {dim_b} embedding dimensions"}
    source = "given" if images is not None else "synthetic patches and noise, seed 0, no photographs"
    sources = synthetic_images() if images is None else images
    # Mostly the same images fail in both, so that they are reported once.
    embedded_a, embedded_b = (
        embed_images(Embedder(side.folder, precision=side.file.precision, threads=threads), sources, on_skip=skip)
        for side, skip in ((a, on_skip), (b, skip_silently))
    )
    # The two files may need different image sizes, so that an image could fail in one of them only.
    common, rows_a, rows_b = np.intersect1d(embedded_a[1], embedded_b[1], return_indices=True)
    if not len(common):
        raise UserError(f"none of {len(sources)} images can be decoded: name others with --data")
    return {"compared": True, "source": source, **agreement(embedded_a[0][rows_a], embedded_b[0][rows_b])}


def agreement(a_ND: FloatArray, b_ND: FloatArray) -> dict[str, Any]:
    """Figures over N images; `same_nearest` is None for one image alone, which has no neighbour."""
    found = measure_agreement(a_ND, b_ND, normalise=True)
    same_nearest = None
    if len(a_ND) > 1:
        own = np.arange(len(a_ND), dtype=np.int64)
        nearest_a, nearest_b = (top_k(each, each, 1, query_id=own, index_id=own)[0][:, 0] for each in (a_ND, b_ND))
        same_nearest = int(np.sum(nearest_a == nearest_b))
    return {
        "images": found.images,
        "cosine_min": found.cosine_min,
        "cosine_p1": found.cosine_p1,
        "cosine_p50": found.cosine_p50,
        "max_abs": found.max_abs,
        "same_nearest": same_nearest,
    }


def skip_silently(_: str) -> None:
    """An `on_skip` that reports nothing."""


def synthetic_images() -> list[ImageSource]:
    """Images of coloured patches, several views of each, which differ in position, brightness and noise."""
    # A fixed seed, so that two runs compare the same images.
    rng = np.random.default_rng(0)
    images: list[ImageSource] = []
    for _ in range(SYNTHETIC_SCENES):
        cells = int(rng.integers(3, 12))
        scene_HWC = rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        large = Image.fromarray(scene_HWC).resize((2 * SYNTHETIC_PX, 2 * SYNTHETIC_PX), Image.Resampling.BICUBIC)
        for _ in range(SYNTHETIC_VIEWS):
            left, top = (int(value) for value in rng.integers(0, SYNTHETIC_PX, 2))
            view = np.asarray(large.crop((left, top, left + SYNTHETIC_PX, top + SYNTHETIC_PX)), np.float32)
            noise = rng.integers(-20, 21, view.shape)
            lit = view * (0.7 + 0.6 * rng.random()) + noise
            images.append(Image.fromarray(lit.clip(0, 255).astype(np.uint8)))
    return images
