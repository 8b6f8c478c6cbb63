"""Search a folder of photographs with the bundled model. The device side only: no PyTorch.

python examples/search_my_photos.py PHOTOS QUERY [INDEX.safetensors]

The index is computed once and kept in a file; delete the file when the photographs change.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgeembed import Embedder, Index
from edgeembed.device.embeddings import Embeddings, write_embeddings

MOST_SIMILAR = 5
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main(photos: Path, query: Path, index_file: Path) -> None:
    embedder = Embedder()  # the bundled model; Embedder("bundles/mine") opens your own
    if not index_file.exists():
        files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in SUFFIXES)
        embeddings = Embeddings(
            embedding_ND=embedder.embed(files, progress=True),
            paths=tuple(str(file) for file in files),
            space_id=embedder.space_id,
            model=embedder.name,
        )
        write_embeddings(index_file, embeddings)

    index = Index.open(index_file)
    if index.space_id != embedder.space_id:  # distances between two spaces mean nothing
        sys.exit(f"{index_file}: was computed with another model, delete it")
    position_QK, similarity_QK = index.search(embedder.embed(query), MOST_SIMILAR)
    for position, similarity in zip(position_QK[0], similarity_QK[0], strict=True):
        print(f"{similarity:.3f}  {index.paths[position]}")


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) == 4 else "photos.safetensors"))
