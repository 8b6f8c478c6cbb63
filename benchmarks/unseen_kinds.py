"""Retrieval on kinds of images that no training has seen, beside a thumbnail baseline.

Why: a space that is good on the classes of its training set may be useless for anything else.
Usage: python benchmarks/unseen_kinds.py MANIFEST RUN... [--kinds "clothes;toys"] [--max-images 1500]
Each domain of the manifest is scored alone, its images against each other (leave one out). RUN is a finished teacher
or student run; `edgeembed teacher-import timm:NAME --dim features` makes one of a pretrained network as it is. The
baseline is a thumbnail of 16 x 16 pixels beside a histogram of the image's colours. Prints recall@1, mAP and the mean
cosine between two images: near 1 the space is collapsed for that kind. A recipe that was chosen by these figures needs
other images for the figures that are reported.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from variants import print_cells

from edgeembed.arrays import FloatArray
from edgeembed.data.manifest import Manifest, Rows, read_manifest
from edgeembed.metrics import retrieval_scores
from edgeembed.network.model_files import load_model
from edgeembed.spread import spread_of
from edgeembed.training.embed import embed_files

THUMBNAIL_PX, LEVELS = 16, 4


def thumbnail_and_colours(file: str) -> FloatArray:
    """A centred thumbnail and a histogram of colours, both of unit length, one after the other; of unit length."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX), np.float32)
    small = pixels.reshape(THUMBNAIL_PX, 4, THUMBNAIL_PX, 4, 3).mean(axis=(1, 3)).ravel()
    bins = (pixels // (256 / LEVELS)).astype(np.int64).reshape(-1, 3) @ (LEVELS**2, LEVELS, 1)
    colours = np.sqrt(np.bincount(bins, minlength=LEVELS**3).astype(np.float32))
    parts = [part / max(float(np.linalg.norm(part)), 1e-6) for part in (small - small.mean(), colours)]
    joined: FloatArray = np.concatenate(parts).astype(np.float32) / np.float32(np.sqrt(2.0))
    return joined


def rows_of(manifest: Manifest, domain: str, most: int) -> Rows:
    """The labelled rows of a domain, evenly thinned to at most `most`."""
    rows = [row for row in range(len(manifest)) if manifest.domain[row] == domain and manifest.label[row] is not None]
    return np.array(rows)[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]


def print_row(name: str, domain: str, manifest: Manifest, embedding_ND: FloatArray, row_N: Rows) -> None:
    labels = [str(manifest.label[row]) for row in row_N.tolist()]
    ids = row_N.astype(np.int64)
    scores = retrieval_scores(
        embedding_ND, embedding_ND, query_label=labels, index_label=labels, query_id=ids, index_id=ids, num_resamples=1
    )
    spread = spread_of(embedding_ND)
    mean_cosine = "" if spread is None else f"{spread.mean_cosine:.2f}"
    print_cells(domain, name, str(len(labels)), f"{scores.recall_at_1:.3f}", f"{scores.map:.3f}", mean_cosine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--max-images", type=int, default=1500, help="images of a domain")
    parser.add_argument("--kinds", help="domains, separated by semicolons; default: all")
    asked = parser.parse_args()
    manifest = read_manifest(asked.manifest)
    networks = [(run.name, load_model(run)[0]) for run in asked.runs]
    print_cells("kind", "space", "images", "recall@1", "mAP", "mean cosine")
    print_cells(*["---"] * 6)
    for domain in sorted(asked.kinds.split(";") if asked.kinds else set(manifest.domain)):
        row_N = rows_of(manifest, domain, asked.max_images)
        files = [manifest.files[row] for row in row_N.tolist()]
        baseline_ND = np.stack([thumbnail_and_colours(file) for file in files])
        print_row("thumbnail and colours", domain, manifest, baseline_ND, row_N)
        for name, network in networks:
            embedding_MD, kept = embed_files(network, files, batch_size=64, workers=1, device="cpu", precision="fp32")
            print_row(name, domain, manifest, embedding_MD, row_N[kept])


if __name__ == "__main__":
    main()
