"""A finished run becomes a bundle: every file is run on real images and refused when it is worse than promised."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edgeembed.bundle import SCHEMA, BundleManifest, sha256_of, write_bundle
from edgeembed.data.manifest import Manifest, Rows, read_manifest
from edgeembed.embeddings import short_space_id
from edgeembed.errors import CheckFailed, UserError
from edgeembed.export.card import model_card
from edgeembed.export.gate import Verdict, judge, parity
from edgeembed.export.onnx import OPSET, save, to_onnx
from edgeembed.export.precision import sample_evenly, to_fp16, to_int8
from edgeembed.images import ImageError, UInt8Array, load_pixels
from edgeembed.metrics import RetrievalScores
from edgeembed.progress import stage
from edgeembed.run import package_versions
from edgeembed.runtimes import Session, open_session
from edgeembed.student.zoo import count_macs
from edgeembed.teacher.evaluate import FloatArray, score_rows
from edgeembed.teacher.model import JoinedModel, Network
from edgeembed.teacher.saved import load_model

log = logging.getLogger(__name__)

CALIBRATION_IMAGES = 512
PARITY_IMAGES = 256
MAX_GATE_IMAGES = 6000
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Refused:
    precision: str
    reasons: tuple[str, ...]


def export_run(
    run_path: Path,
    out: Path,
    *,
    precisions: Sequence[str],
    data: Path | None = None,
    name: str | None = None,
    licence: str | None = None,
    notes: str = "",
    dim: int | None = None,
) -> tuple[BundleManifest | None, list[Refused]]:
    """Exports a student or teacher run. Returns the bundle that was written, and what was refused.

    Files that fail their gate are left out; without a passing fp32 nothing is written. `out` appears whole: a
    bundle that was there is replaced at the end. With `dim` the embedding is the first numbers of the run's. Raises
    UserError for a run or data that cannot be had.
    """
    model, facts = load_model(run_path)
    if dim is not None and dim != model.dim:
        facts = make_short(run_path, model, facts, dim)
    if model.keep_aspect:
        raise UserError(f"{run_path}: keeps the proportions of images, a bundle takes squares: distil it first")
    check_target(out)
    images = gate_images(model, facts, data)
    name = name or out.name
    metadata = {
        "space_id": str(facts["space_id"]),
        "input": f"image: uint8, (N, {model.size_px}, {model.size_px}, 3), RGB, 0..255, both sides resized, bilinear",
        "output": f"embedding: float32, (N, {model.dim}), unit length; compare by inner product",
        "licence": licence or "not stated",
    }
    with stage(f"tracing {model.name}"):
        fp32 = to_onnx(model, metadata)
    with stage(f"embedding {len(images.pixels_NHWC)} images with torch"):
        reference_ND = run_torch(model, images.pixels_NHWC[: images.num_parity])

    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        files: list[dict[str, Any]] = []
        refused: list[Refused] = []
        map_fp32: float | None = None
        for precision in precisions:
            path = partial / f"model.{precision}.onnx"
            with stage(f"writing {path.name}"):
                save(convert(fp32, precision, images), path)
            with stage(f"checking {path.name} on {len(images.pixels_NHWC)} images"):
                embedding_ND = run_session(open_session(path), images.pixels_NHWC)
                scores = images.score(embedding_ND)
            agreement = parity(reference_ND, embedding_ND[: images.num_parity])
            verdict = judge(precision, agreement, scores.map if scores else None, map_fp32)
            describe(verdict)
            if verdict.reasons:
                refused.append(Refused(precision=precision, reasons=verdict.reasons))
                path.unlink()
                if precision == "fp32":
                    return None, refused
                continue
            if precision == "fp32" and scores is not None:
                map_fp32 = scores.map
            files.append(
                {
                    "path": path.name,
                    "runtime": "onnxruntime",
                    "precision": precision,
                    "sha256": sha256_of(path),
                    "bytes": path.stat().st_size,
                    "opset": OPSET,
                    "parity": agreement.model_dump(),
                    "retrieval": images.summary(scores),
                }
            )
        manifest = BundleManifest.model_validate(bundle_facts(model, facts, name, licence, files))
        manifest = write_bundle(partial, manifest, model_card(manifest, notes))
        publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest, refused


def make_short(run_path: Path, model: Network, facts: dict[str, Any], dim: int) -> dict[str, Any]:
    """Cuts a model's embedding down in place; returns its facts, in the short space."""
    if isinstance(model, JoinedModel) or not model.ordered:
        raise UserError(
            f"--dim {dim}: the numbers of {run_path} are not ordered by weight (its teacher is joined, has batch norm "
            "in the neck, or is from an early version): train the teacher again, or leave --dim out"
        )
    if not 1 <= dim < model.dim:
        raise UserError(f"--dim {dim}: {run_path} has {model.dim} numbers an image")
    model.keep_dimensions(dim)
    architecture = {**facts["architecture"], "params": sum(parameter.numel() for parameter in model.parameters())}
    return {**facts, "space_id": short_space_id(str(facts["space_id"]), dim), "architecture": architecture}


def check_target(out: Path) -> None:
    if out.exists() and not (out / "bundle.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not a bundle: choose another --out")


def publish(partial: Path, out: Path) -> None:
    """Puts a finished folder in place of an older one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    old = partial.with_suffix(".old")
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def convert(fp32: onnx.ModelProto, precision: str, images: GateImages) -> onnx.ModelProto:
    if precision == "int8":
        return to_int8(fp32, images.calibration_NHWC)
    return to_fp16(fp32) if precision == "fp16" else fp32


def describe(verdict: Verdict) -> None:
    figures = f"cosine p1 {verdict.parity.cosine_p1:.5f}, p50 {verdict.parity.cosine_p50:.5f}"
    if verdict.map is not None:
        figures += f", mAP {verdict.map:.4f}"
    log.info("%s: %s: %s", verdict.precision, figures, "REFUSED" if verdict.reasons else "passed")


@dataclass(frozen=True, kw_only=True)
class GateImages:
    """Decoded images to calibrate and to judge on; the first `num_parity` are compared with torch one by one."""

    calibration_NHWC: UInt8Array
    pixels_NHWC: UInt8Array
    num_parity: int
    manifest: Manifest
    rows: Rows
    query: Rows
    index: Rows
    split: str

    def score(self, embedding_ND: FloatArray) -> RetrievalScores | None:
        """Retrieval of a file's embeddings on the gate's split; None where it has no labelled rows."""
        if self.query.size == 0 or not np.isfinite(embedding_ND).all():
            return None
        return score_rows(embedding_ND, self.rows, embedding_ND, self.rows, self.manifest, self.query, self.index)

    def summary(self, scores: RetrievalScores | None) -> dict[str, Any] | None:
        if scores is None:
            return None
        return {
            "split": self.split,
            "queries": scores.queries,
            "map": scores.map,
            "recall_at_1": scores.recall_at_1,
            "mp_at_5": scores.mp_at_5,
            "ci95": {"map": list(scores.ci95["map"])},
        }


def gate_images(model: Network, facts: dict[str, Any], data: Path | None) -> GateImages:
    """Calibrates on train, judges on val where there is one, else on test."""
    known = (facts.get("data") or {}).get("manifest")
    if data is None and not known:
        raise UserError("the run does not say which data it saw: give a manifest with --data")
    manifest = read_manifest(data or Path(str(known)))
    split = "val" if manifest.rows("val").size else "test"
    train = manifest.rows("train")
    try:
        query, index = manifest.evaluation(split)
    except UserError as error:
        log.warning("the gate compares embeddings only: %s", error)
        query, index = np.zeros((2, 0), dtype=np.int64)
    if len(query) + len(index) > MAX_GATE_IMAGES:
        query = query[sample_evenly(len(query), MAX_GATE_IMAGES // 4)]
        index = np.union1d(index[sample_evenly(len(index), MAX_GATE_IMAGES // 2)], np.intersect1d(query, index))
    judged = np.union1d(query, index)
    judged = judged if judged.size else train[sample_evenly(len(train), PARITY_IMAGES)]
    # Parity is taken on images spread over all that are judged; they come first.
    spread = sample_evenly(len(judged), PARITY_IMAGES)
    rows = np.concatenate([judged[spread], np.delete(judged, spread)])
    calibration = train if train.size else judged
    with stage(f"reading {len(rows)} images of the {split} protocol and {CALIBRATION_IMAGES} to calibrate"):
        pixels_NHWC, kept = decode(manifest, rows, model.size_px)
        chosen = calibration[sample_evenly(len(calibration), CALIBRATION_IMAGES)]
        calibration_NHWC, _ = decode(manifest, chosen, model.size_px)
    return GateImages(
        calibration_NHWC=calibration_NHWC,
        pixels_NHWC=pixels_NHWC,
        num_parity=min(PARITY_IMAGES, len(pixels_NHWC)),
        manifest=manifest,
        rows=rows[kept],
        query=query,
        index=index,
        split=split,
    )


def decode(manifest: Manifest, rows: Rows, size_px: int) -> tuple[UInt8Array, Rows]:
    """(M, H, W, 3) and the positions of the M rows that could be read."""
    pixels, kept = [], []
    for position, row in enumerate(rows):
        try:
            pixels.append(load_pixels(manifest.files[row], size_px, size_px))
            kept.append(position)
        except ImageError as error:
            log.warning("skipped: %s", error)
    if not pixels:
        raise UserError(f"none of {len(rows)} images of the manifest can be read: give another manifest with --data")
    return np.stack(pixels), np.array(kept, dtype=np.int64)


def run_torch(model: Network, pixels_NHWC: UInt8Array) -> FloatArray:
    with torch.inference_mode():
        batches = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).split(BATCH)
        return np.concatenate([model(batch).numpy() for batch in batches])


def run_session(session: Session, pixels_NHWC: UInt8Array) -> FloatArray:
    starts = range(0, len(pixels_NHWC), BATCH)
    return np.concatenate([session.run(pixels_NHWC[i : i + BATCH]) for i in starts])


def bundle_facts(
    model: Network, facts: dict[str, Any], name: str, licence: str | None, files: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything of bundle.json."""
    network = {
        "name": facts.get("alias") or model.name,
        "backbone": model.name,
        "params": facts["architecture"]["params"],
        "macs": count_macs(model),
        "weights": facts.get("weights"),
        "role": facts["role"],
    }
    teacher = facts.get("teacher")
    return {
        "schema": SCHEMA,
        "name": name,
        "space_id": facts["space_id"],
        "embedding": {"dim": model.dim, "normalised": True, "metric": "cosine"},
        "input": {
            "layout": "NHWC",
            "dtype": "uint8",
            "height": model.size_px,
            "width": model.size_px,
            "colour": "RGB",
            "resize": facts["input"]["resize"],
        },
        "files": files,
        "teacher": without_paths(teacher) if teacher else None,
        "student": network,
        "data": without_paths(facts["data"]),
        "licence": licence,
        "versions": package_versions(),
    }


def without_paths(facts: dict[str, Any]) -> dict[str, Any]:
    """A bundle travels: where its run and data lay on one machine stays there."""
    kept = {key: value for key, value in facts.items() if key not in ("path", "manifest")}
    return {key: without_paths(value) if isinstance(value, dict) else value for key, value in kept.items()}


def require_nothing_refused(refused: Sequence[Refused]) -> None:
    """Raises CheckFailed with the figures of every refused file."""
    if refused:
        raise CheckFailed("; ".join(f"{item.precision} refused: {', '.join(item.reasons)}" for item in refused))
