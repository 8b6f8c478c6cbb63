"""What shorter embeddings cost: 64, 32, 16 and 8 dimensions, as float32, bytes and bits.

Why: an index of millions of images must fit a phone, and the price should be known before it is paid.
Usage: python benchmarks/short_embeddings.py TEACHER STUDENT MANIFEST      two finished runs of one space
Test protocol. The index is encoded, the query is not. Prints one line of a Markdown table for each length and encoding.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edgeembed.arrays import FloatArray
from edgeembed.data.manifest import read_manifest
from edgeembed.device.embedding_space import shorten
from edgeembed.device.encodings import ENCODINGS, decode
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol
from edgeembed.network.model_files import load_model
from edgeembed.training.embed import embed_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("manifest", type=Path)
    asked = parser.parse_args()
    manifest = read_manifest(asked.manifest)
    protocol = RetrievalProtocol.of_split(manifest, "test")
    rows = protocol.rows
    embeddings: list[FloatArray] = []
    for run in (asked.teacher, asked.student):
        model, _ = load_model(run)
        embedding_ND, kept = embed_files(
            model, protocol.files, batch_size=64, workers=0, device="cpu", precision="fp32"
        )
        assert kept.size == rows.size
        embeddings.append(embedding_ND)
    teacher_ND, student_ND = embeddings

    def score(query_ND: FloatArray, index_ND: FloatArray, encoding: str) -> float:
        if encoding != "float32":
            index_ND = index_ND.copy()
            of_index = np.isin(rows, protocol.index)
            index_ND[of_index] = decode(ENCODINGS[encoding](index_ND[of_index]))
        query, index = (EmbeddedRows(embedding_ND=each, row_N=rows) for each in (query_ND, index_ND))
        return protocol.score(query, index).scores.map

    print("| dimensions | encoding | bytes | teacher | student | student on the teacher's index |")
    print("|---|---|---|---|---|---|")
    for dim in (64, 32, 16, 8):
        teacher_Nd, student_Nd = (shorten(each, dim) for each in (teacher_ND, student_ND))
        for encoding, bits in (("float32", 32), ("int8", 8), ("binary", 1)):
            pairs = ((teacher_Nd, teacher_Nd), (student_Nd, student_Nd), (student_Nd, teacher_Nd))
            cells = [f"{score(*pair, encoding):.4f}" for pair in pairs]
            print(f"| {dim} | {encoding} | {dim * bits // 8} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
