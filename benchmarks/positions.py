"""What a trained ViT makes of larger images after its position embeddings were interpolated, without more training.

Why: stages at 280 px start from the weights of 224 px; the step must not throw away what was learnt.
Usage: python benchmarks/positions.py RUN MANIFEST      a finished teacher run with a ViT of 224 px
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from edgeembed.data.manifest import read_manifest
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol
from edgeembed.network.model import EmbeddingModel
from edgeembed.network.model_files import load_model
from edgeembed.training.embed import embed_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("manifest", type=Path)
    asked = parser.parse_args()
    protocol = RetrievalProtocol.of_split(read_manifest(asked.manifest), "test")
    embeddings: dict[str, np.ndarray] = {}
    sizes: list[tuple[int, int | None]] = [(224, None), (224, 16), (280, None), (280, 14)]
    for size_px, stride in sizes:
        name = f"{size_px} px" + (f", a patch every {stride} px" if stride else "")
        model, _ = load_model(asked.run)
        assert isinstance(model, EmbeddingModel)
        model.set_input_size(size_px, stride)
        embeddings[name], _ = embed_files(
            model, protocol.files, batch_size=32, workers=2, device="cpu", precision="fp32"
        )
        cosine = (embeddings[name] * embeddings["224 px"]).sum(axis=1)
        embedding_ND = embeddings[name]
        embedded = EmbeddedRows(embedding_ND=embedding_ND, row_N=protocol.rows)
        scores = protocol.score(embedded, embedded).scores
        result = {
            "input": name,
            "cosine_mean": round(float(cosine.mean()), 5),
            "cosine_p1": round(float(np.percentile(cosine, 1)), 5),
            "map": round(scores.map, 4),
            "identical": bool((embedding_ND == embeddings["224 px"]).all()),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
