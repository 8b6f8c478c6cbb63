"""All stages through the Python interface, on rendered images: train, distil, export, measure, search.

python examples/train_and_search.py [FOLDER]    minutes on two CPU cores
python examples/train_and_search.py --tiny      the same steps with too little training, in seconds
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import edgeembed
from edgeembed.device.embeddings import Embeddings, write_embeddings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/example"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    tiny: bool = arguments.tiny

    # Images: your own come from `edgeembed data import folder PHOTOS`.
    size = ["--instances", "20", "--views", "6", "--size-px", "64"] if tiny else ["--size-px", "128"]
    subprocess.run([sys.executable, "-m", "edgeembed", "data", "synth", folder / "images", *size], check=True)
    data = folder / "images" / "manifest.parquet"

    # Keys of a recipe are given as its sections; everything else has the values of recipe `quickstart`.
    short = {"train": {"epochs": 1, "workers": 0}, "image": {"size_px": 48}} if tiny else {}
    teacher = edgeembed.train_teacher(data, recipe="quickstart", out=folder / "teacher", **short)
    student = edgeembed.distill(
        "resnet_xs", teacher=teacher.run, data=data, recipe="quickstart", out=folder / "student", **short
    )
    print(f"teacher and student share the embedding space {student.space_id}")

    exported = edgeembed.export(student.run, out=folder / "bundle", precision=("fp32",))
    result = edgeembed.bench(exported.bundle, data=data, teacher=teacher.run, out=folder / "report", quick=True)
    print(f"report: {result.folder / 'report.json'}")

    # The device side, from here on without PyTorch.
    embedder = edgeembed.Embedder(exported.bundle)
    photos = sorted((folder / "images").rglob("*.jpg")) or sorted((folder / "images").rglob("*.png"))
    indexed, query = photos[1:], photos[0]
    embeddings = Embeddings(
        embedding_ND=embedder.embed(indexed),
        paths=tuple(str(path) for path in indexed),
        space_id=embedder.space_id,
        model=embedder.name,
    )
    write_embeddings(folder / "index.safetensors", embeddings)

    index = edgeembed.Index.open(folder / "index.safetensors")
    position_QK, similarity_QK = index.search(embedder.embed(query), 3)
    print(f"most similar to {query} among {len(index)} images:")
    for position, similarity in zip(position_QK[0], similarity_QK[0], strict=True):
        print(f"  {similarity:.3f}  {index.paths[position]}")


if __name__ == "__main__":
    main()
