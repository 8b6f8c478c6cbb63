"""What an ensemble of teachers gains: each teacher alone, their concatenation, and its projection to 64 dimensions.

Why: a student learns one space, so that the projection must keep what the teachers know together.
Usage: python benchmarks/join_table.py MANIFEST RUN RUN... [--weights 1,1] [--dim 64] [--split val] [--workers 2]
Each teacher embeds every image once, at its own input size; the rest is computed from these embeddings, as
`edgeembed teacher-join` does. For comparison: a PCA of the concatenation as it is, and one with a deviation for each
dimension in place of one for each teacher. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeembed.data.manifest import read_manifest
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol
from edgeembed.intervals import interval_text
from edgeembed.network.model_files import load_model
from edgeembed.teacher.ensemble import standardised_axes
from edgeembed.teacher.pca import Statistics, principal_axes
from edgeembed.training.device import pick_device
from edgeembed.training.embed import embed_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--weights", help="comma-separated, one for each run; default: 1 for each")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    weights = [float(text) for text in asked.weights.split(",")] if asked.weights else [1.0] * len(asked.runs)
    manifest = read_manifest(asked.manifest)
    protocol = RetrievalProtocol.of_split(manifest, asked.split)
    row_N = np.union1d(protocol.rows, manifest.training_rows())
    device = pick_device("auto")

    parts: dict[Path, Tensor] = {}
    for run in asked.runs:
        model, _ = load_model(run)
        embedding_ND, kept = embed_files(
            model.to(device),
            [manifest.files[row] for row in row_N],
            batch_size=64,
            workers=asked.workers,
            device=device,
            precision="fp32",
        )
        assert kept.size == row_N.size, "an image cannot be decoded: run `edgeembed data check`"
        parts[run] = torch.from_numpy(embedding_ND).double()
    joined_NJ = F.normalize(
        torch.cat([weight * part for part, weight in zip(parts.values(), weights, strict=True)], dim=1), dim=1
    )
    is_train_N = torch.from_numpy(np.isin(row_N, manifest.training_rows()))
    train_MJ = joined_NJ[is_train_N]
    statistics = Statistics(mean_D=train_MJ.mean(dim=0), covariance_DD=torch.cov(train_MJ.T, correction=0))
    weight_DJ, bias_D = standardised_axes(statistics, [part.shape[1] for part in parts.values()], weights, asked.dim)
    axis_DJ = principal_axes(statistics.covariance_DD)[: asked.dim]
    whitened_NJ = (joined_NJ - statistics.mean_D) / statistics.covariance_DD.diagonal().clamp_min(1e-12).sqrt()
    whitened_axis_DJ = principal_axes(torch.cov(whitened_NJ[is_train_N].T))[: asked.dim]

    print(f"| {asked.split} | dimensions | mAP | 95 % interval, queries | recall@1 |")
    print("|---|---|---|---|---|")
    for name, vector_ND in (
        *((str(run), part) for run, part in parts.items()),
        ("concatenation", joined_NJ),
        ("projection, not standardised", (joined_NJ - statistics.mean_D) @ axis_DJ.T),
        ("projection, each dimension standardised", whitened_NJ @ whitened_axis_DJ.T),
        ("projection, as teacher-join", joined_NJ @ weight_DJ.T + bias_D),
    ):
        embedded = EmbeddedRows(embedding_ND=F.normalize(vector_ND, dim=1).float().numpy(), row_N=row_N)
        scores = protocol.score(embedded, embedded).scores
        ends = scores.ci95_queries.get("map")
        interval = interval_text(ends, digits=4) if ends is not None else "-"
        print(f"| {name} | {vector_ND.shape[1]} | {scores.map:.4f} | {interval} | {scores.recall_at_1:.4f} |")


if __name__ == "__main__":
    main()
