"""Retrieval of a teacher and its students: trained and unseen classes, intervals over queries and over classes.

Why: a figure on trained classes, with an interval over queries alone, promises more than a user gets.
Usage: python benchmarks/quality_table.py MANIFEST TEACHER STUDENT... [--split test] [--json OUT.json]
TEACHER and STUDENT are finished runs; several students are seeds of one recipe, whose means come last. Classes
without training images (benchmarks/hold_out.py) are scored apart, in an index of such classes alone; the others in an
index of trained classes. Embeddings are computed in float32. "kept" is the share of the teacher's mAP. Both intervals
of a figure are printed, [over queries] [over classes]; those of "kept" are paired.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeembed.data.manifest import Manifest, Rows, read_manifest
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol, ScoredQueries, retention
from edgeembed.intervals import interval_text
from edgeembed.network.macs import count_macs
from edgeembed.network.model import EmbeddingModel, num_params
from edgeembed.network.model_files import load_model
from edgeembed.network.untrained import untrained_network
from edgeembed.size_ratio import size_ratio
from edgeembed.training.embed import embed_files


def parts_of(manifest: Manifest, split: str) -> dict[str, RetrievalProtocol]:
    """The evaluation set of trained classes and that of unseen ones, each with an index of such classes alone.

    Where queries are of several domains, also one for the queries of each domain.
    """
    planned = RetrievalProtocol.of_split(manifest, split)
    trained = {manifest.class_of(row) for row in manifest.training_rows().tolist()}

    def of(rows: Rows, *, seen: bool) -> Rows:
        return rows[[(manifest.class_of(row) in trained) == seen for row in rows.tolist()]]

    parts = {
        name: planned.restrict(of(planned.query, seen=seen), of(planned.index, seen=seen))
        for name, seen in (("trained classes", True), ("unseen classes", False))
        if of(planned.query, seen=seen).size
    }
    for domain in sorted({manifest.domain[row] for row in planned.query.tolist()}):
        for name, part in list(parts.items()):
            rows = part.query[[manifest.domain[row] == domain for row in part.query.tolist()]]
            if 0 < rows.size < part.query.size:  # the index stays that of all domains
                parts[f"{name}, {domain}"] = part.restrict(rows, part.index)
    return parts


def embed(model: Any, evaluation: RetrievalProtocol) -> EmbeddedRows:
    embedding_ND, kept = embed_files(
        model.eval(), evaluation.files, batch_size=64, workers=2, device="cpu", precision="fp32"
    )
    return EmbeddedRows(embedding_ND=embedding_ND, row_N=evaluation.rows[kept])


def interval(ends: Sequence[float] | None, *, percent: bool = False) -> str:
    """ "[low, high]" of a figure, or in percent; empty where there is no interval."""
    if ends is None:
        return ""
    return interval_text([100 * end for end in ends], digits=1) if percent else interval_text(ends)


def row_of(
    part: str, name: str, scored: ScoredQueries, teacher: ScoredQueries | None, asymmetric: ScoredQueries | None
) -> dict[str, Any]:
    """One line of the table, with all its figures."""
    kept = {
        kind: found and asdict(found)
        for kind, one in (("symmetric", scored), ("asymmetric", asymmetric))
        for found in [retention(one, teacher) if one is not None and teacher is not None else None]
    }
    return {
        "part": part,
        "name": name,
        "symmetric": asdict(scored.scores),
        "asymmetric": None if asymmetric is None else asdict(asymmetric.scores),
        "kept": kept,
    }


def cells(row: dict[str, Any]) -> list[str]:
    own = row["symmetric"]
    texts = [
        row["part"],
        row["name"],
        f"{own['queries'] - own['queries_without_match']}",
        f"{own['map']:.4f} {interval(own['ci95_queries']['map'])} {interval(own['ci95_classes']['map'])}",
        f"{own['recall_at_1']:.4f}",
        "" if row["asymmetric"] is None else f"{row['asymmetric']['map']:.4f}",
    ]
    for kept in row["kept"].values():
        ends = (
            ""
            if kept is None
            else " ".join(["", *(interval(kept[key], percent=True) for key in ("ci95_queries", "ci95_classes"))])
        )
        texts.append("" if kept is None else f"{100 * kept['value']:.1f} %{ends}")
    return texts


def mean_row(part: str, rows: list[dict[str, Any]]) -> list[str]:
    """Means over seeds, with the smallest and largest."""

    def of(values: list[float], factor: float = 1.0, digits: int = 4, unit: str = "") -> str:
        low, high = (f"{factor * end:.{digits}f}" for end in (min(values), max(values)))
        return f"{factor * statistics.mean(values):.{digits}f}{unit} ({low} to {high})"

    return [
        part,
        f"mean of {len(rows)} seeds",
        "",
        of([row["symmetric"]["map"] for row in rows]),
        of([row["symmetric"]["recall_at_1"] for row in rows]),
        of([row["asymmetric"]["map"] for row in rows]),
        *(of([row["kept"][kind]["value"] for row in rows], 100, 1, " %") for kind in ("symmetric", "asymmetric")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("students", type=Path, nargs="*")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--json", type=Path, dest="json_path")
    options = parser.parse_args()
    manifest = read_manifest(options.manifest)
    planned, parts = RetrievalProtocol.of_split(manifest, options.split), parts_of(manifest, options.split)
    networks = {str(path): load_model(path)[0] for path in (options.teacher, *options.students)}
    embedded = {path: embed(network, planned) for path, network in networks.items()}
    teacher = networks[str(options.teacher)]
    params = {path: num_params(network) for path, network in networks.items()}
    macs = {path: count_macs(network) for path, network in networks.items()}
    untrained = {}
    for network in [teacher, *(networks[str(path)] for path in options.students[:1])]:
        assert isinstance(network, EmbeddingModel)
        random = untrained_network(network.describe())
        if random is not None:
            untrained[f"untrained {network.name}"] = embed(random, planned)
    rows: list[dict[str, Any]] = []
    print(
        "| classes | network | queries | mAP | recall@1 | on the teacher's index | kept, own index | kept, teacher's |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, part in parts.items():
        by_teacher = part.score(embedded[str(options.teacher)], embedded[str(options.teacher)])
        chance = by_teacher.scores.chance["map"]
        of_part = [
            row_of(name, f"teacher {teacher.name}, {params[str(options.teacher)] / 1e6:.2f} M", by_teacher, None, None)
        ]
        for path in options.students:
            own = embedded[str(path)]
            by_student = part.score(own, own)
            asymmetric = part.score(own, embedded[str(options.teacher)])
            ratio = size_ratio(
                teacher_params=params[str(options.teacher)],
                teacher_macs=macs[str(options.teacher)],
                params=params[str(path)],
                macs=macs[str(path)],
            )
            assert ratio is not None
            label = f"{path.name}, {params[str(path)] / 1e6:.2f} M ({ratio.describe()})"
            of_part.append(row_of(name, label, by_student, by_teacher, asymmetric) | {"size_ratio": asdict(ratio)})
        for row in of_part:
            print("| " + " | ".join(cells(row)) + " |")
        if len(options.students) > 1:
            print("| " + " | ".join(mean_row(name, of_part[1:])) + " |")
        for label, random_embedded in untrained.items():
            found = part.score(random_embedded, random_embedded).scores
            print(f"| {name} | {label} | | {found.map:.4f} (chance {chance:.4f}) | {found.recall_at_1:.4f} | | | |")
        rows += of_part
    if options.json_path is not None:
        options.json_path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
