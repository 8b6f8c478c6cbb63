"""Measures the average precisions that `gate_power.py` samples: of fp32, of int8, and of fp32 with added noise.

Why: how often a gate is wrong depends on how losses vary between queries, so measured losses are used.
Usage: python benchmarks/gate_pairs.py GROCERY_MANIFEST      the default bundled model on the test protocol, a minute
The committed figures are of the first bundled model, a MobileNetV4-small.
Writes benchmarks/results/gate_power.npz: the class of each query, and (Q,) average precisions by file. `noise`: normal
noise of .03 and .05 on each dimension of fp32's unit embeddings; `harmed_classes`: of .1, in a tenth of the classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edgeembed.arrays import FloatArray
from edgeembed.bench.retrieval import DecodedFiles, choose_protocol, embed_with_session
from edgeembed.data.manifest import read_manifest
from edgeembed.device.bundle import read_bundle, verified_file
from edgeembed.device.embedder import default_bundle
from edgeembed.device.runtimes import open_session
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol

OUT = Path(__file__).parent / "results" / "gate_power.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    evaluation = choose_protocol(read_manifest(parser.parse_args().manifest))
    bundle = read_bundle(default_bundle())
    decoded = DecodedFiles(evaluation.files, bundle.input.height, bundle.input.width)
    embedding_ND = {
        file.precision: embed_with_session(
            open_session(verified_file(default_bundle(), file)), decoded, evaluation.rows, dim=bundle.embedding.dim
        ).embedding_ND
        for file in bundle.files
    }
    rng = np.random.default_rng(0)
    fp32_ND = embedding_ND["fp32"]
    for level in (0.03, 0.05):
        embedding_ND[f"noise_{level:g}"] = unit(fp32_ND + level * rng.normal(size=fp32_ND.shape))
    label_N = np.array([evaluation.manifest.label[row] for row in evaluation.rows])
    labels = np.unique(label_N)
    harmed_N = np.isin(label_N, rng.choice(labels, len(labels) // 10, replace=False))
    noise_ND = 0.1 * harmed_N[:, None] * rng.normal(size=fp32_ND.shape)
    embedding_ND["harmed_classes"] = unit(fp32_ND + noise_ND)

    names = [evaluation.manifest.class_of(row) for row in evaluation.query.tolist()]
    class_Q = np.unique(np.array([str(name) for name in names]), return_inverse=True)[1]
    values = {name: average_precisions(evaluation, each) for name, each in embedding_ND.items()}
    np.savez_compressed(OUT, class_Q=class_Q.astype(np.uint8), **values)
    for name, value_Q in values.items():
        print(f"{name}: mAP {value_Q.mean():.4f}, {100 * (values['fp32'] - value_Q).mean():.2f} points below fp32")


def unit(embedding_ND: FloatArray) -> FloatArray:
    scaled: FloatArray = (embedding_ND / np.linalg.norm(embedding_ND, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def average_precisions(evaluation: RetrievalProtocol, embedding_ND: FloatArray) -> FloatArray:
    """(Q,), in the order of the queries' rows; every query has a match."""
    embedded = EmbeddedRows(embedding_ND=embedding_ND, row_N=evaluation.rows)
    scored = evaluation.score(embedded, embedded)
    assert len(scored.row_Q) == len(evaluation.query)
    return scored.average_precision_Q.astype(np.float32)


if __name__ == "__main__":
    main()
