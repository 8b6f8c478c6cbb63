"""What a bench found to be fastest is what this machine uses from then on, if it is also as good as it was promised."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeembed.bench.candidates import Candidate
from edgeembed.bench.summary import milliseconds
from edgeembed.runtimes.fastest import Timed, remember, verified_pairs

log = logging.getLogger(__name__)

MAX_MAP_LOSS = 0.01
"""How far a file's mAP in another runtime may lie below its mAP in its own."""


def remember_fastest(candidates: Sequence[Candidate], rows: Sequence[Mapping[str, Any]], *, threads: int) -> None:
    """Of each bundle, remembers the fastest pair of file and runtime at batch 1, and says so.

    Only pairs that passed the exporter's gate take part; of those, none whose mAP in this very bench is too low.
    """
    by_folder: dict[Path, list[tuple[Candidate, Mapping[str, Any]]]] = {}
    for candidate in candidates:
        verified = {(pair.file.path, pair.runtime) for pair in verified_pairs(candidate.bundle)}
        row = row_of(candidate, candidate.runtime, rows, threads)
        if row is not None and (candidate.file.path, candidate.runtime) in verified:
            own = row_of(candidate, candidate.file.runtime, rows, threads)
            if own is not None and map_of(own) - map_of(row) > MAX_MAP_LOSS:
                log.warning(
                    "%s is not used: its mAP is %.4f, that of the same file in %s %.4f",
                    candidate.label,
                    map_of(row),
                    candidate.file.runtime,
                    map_of(own),
                )
                continue
            by_folder.setdefault(candidate.folder, []).append((candidate, row))
    for folder, measured in by_folder.items():
        timed = [
            Timed(
                path=candidate.file.path,
                runtime=candidate.runtime,
                provider=row["provider"],
                p50_ms=row["latency_ms"]["p50"],
            )
            for candidate, row in measured
        ]
        fastest = remember(folder, timed, threads=threads)
        log.info(
            "%s: from now on %s in %s is used on this machine (%s an image), unless something else is asked for",
            measured[0][0].name,
            fastest.path,
            fastest.runtime,
            milliseconds(fastest.p50_ms),
        )


def row_of(
    candidate: Candidate, runtime: str, rows: Sequence[Mapping[str, Any]], threads: int
) -> Mapping[str, Any] | None:
    """The row of a candidate's file in a runtime, one image at a time."""
    wanted = (candidate.name, candidate.file.sha256, runtime, 1, threads)
    keys = ("name", "sha256", "runtime", "batch", "threads")
    return next((row for row in rows if tuple(row[key] for key in keys) == wanted), None)


def map_of(row: Mapping[str, Any]) -> float:
    return float(row["retrieval"]["symmetric"]["map"])
