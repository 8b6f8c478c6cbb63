"""What a bench found to be fastest is what this machine uses from then on, if its embeddings are right here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeembed.bench.candidates import Candidate
from edgeembed.bench.retrieval import Embedded
from edgeembed.bench.summary import milliseconds
from edgeembed.bundle import fp32_file
from edgeembed.runtimes.fastest import REFERENCE_RUNTIME, Agreement, Measured, agree, refusal, remember, verified_pairs

log = logging.getLogger(__name__)


def remember_fastest(
    embedded: Mapping[Candidate, Embedded], rows: Sequence[Mapping[str, Any]], *, threads: int
) -> None:
    """Of each bundle, remembers the fastest pair of file and runtime at batch 1, and says so.

    Only pairs that passed the exporter's gate take part; of those, none that `runtimes.fastest.refusal` refuses by
    its embeddings of the evaluation images.
    """
    by_folder: dict[Path, list[tuple[Candidate, Measured]]] = {}
    for candidate in embedded:
        verified = {(pair.file.path, pair.runtime) for pair in verified_pairs(candidate.bundle)}
        row = row_of(candidate, rows, threads)
        if row is None or (candidate.file.path, candidate.runtime) not in verified:
            continue
        one = Measured(
            path=candidate.file.path,
            runtime=candidate.runtime,
            provider=row["provider"],
            p50_ms=row["latency_ms"]["p50"],
            agreement=agreement_of(candidate, embedded),
        )
        if (reason := refusal(candidate.file, one.agreement)) is not None:
            log.warning("%s is not used by default on this machine: %s", candidate.label, reason)
        by_folder.setdefault(candidate.folder, []).append((candidate, one))
    for folder, measured in by_folder.items():
        candidate = measured[0][0]
        fastest = remember(folder, candidate.bundle, [one for _, one in measured], threads=threads)
        if fastest is not None:
            log.info(
                "%s: from now on %s in %s is used on this machine (%s an image), unless something else is asked for",
                candidate.name,
                fastest.path,
                fastest.runtime,
                milliseconds(fastest.p50_ms),
            )


def agreement_of(candidate: Candidate, embedded: Mapping[Candidate, Embedded]) -> Agreement:
    """Of a candidate's embeddings with those of its bundle's fp32 file, on the images that both could read."""
    fp32 = fp32_file(candidate.bundle)
    key = (candidate.folder, fp32 and fp32.path, REFERENCE_RUNTIME)
    own = embedded[candidate]
    reference = next((embedded[one] for one in embedded if (one.folder, one.file.path, one.runtime) == key), None)
    if reference is None:
        return agree(None, own.embedding_ND[own.readable_N])
    both_N = own.readable_N & reference.readable_N
    return agree(reference.embedding_ND[both_N], own.embedding_ND[both_N])


def row_of(candidate: Candidate, rows: Sequence[Mapping[str, Any]], threads: int) -> Mapping[str, Any] | None:
    """The row of a candidate, one image at a time."""
    wanted = (candidate.name, candidate.file.sha256, candidate.runtime, 1, threads)
    keys = ("name", "sha256", "runtime", "batch", "threads")
    return next((row for row in rows if tuple(row[key] for key in keys) == wanted), None)
