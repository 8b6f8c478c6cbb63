"""Which file and runtime of each bundle to use on this machine: a bench recommends it, and with --remember keeps it.

The rule is that of `edgeembed doctor`: the fastest one that `runtimes.fastest_cache.rejection_reason` does not reject.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeembed.bench.candidates import Candidate
from edgeembed.bench.retrieval import Embedded
from edgeembed.device.bundle import fp32_file
from edgeembed.device.bundle_schema import BundleManifest
from edgeembed.device.embedder import choose_runnable_file
from edgeembed.device.runtimes.fastest_cache import (
    REFERENCE_RUNTIME,
    Agreement,
    Measurement,
    RunnableFile,
    agree,
    fastest_accepted,
    load_fastest,
    rejection_reason,
    store_fastest,
    verified_runnable_files,
)
from edgeembed.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A file in a runtime that must not become the default here, and why; `p50_ms` of one image on all cores."""

    path: str
    precision: str
    runtime: str
    p50_ms: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to use of one bundle on this machine, as an `Embedder` would open it with `threads` threads.

    `path` to `p50_ms` are None where nothing of the bundle can be recommended. `is_measured` is False where no pair
    could be compared or none was right, and it is what is used on a machine where nothing was measured. `in_use` is the
    default of an `Embedder` here now, `PATH in RUNTIME`.
    """

    name: str
    folder: str
    path: str | None
    precision: str | None
    runtime: str | None
    sha256: str | None
    p50_ms: float | None
    threads: int
    is_measured: bool
    in_use: str | None
    refused: tuple[Refused, ...]

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def recommend(
    embedded: Mapping[Candidate, Embedded], rows: Sequence[Mapping[str, Any]], *, threads: int, keep: bool
) -> list[Recommendation]:
    """For each bundle, from rows of batch 1 on all cores; with `keep` it becomes this machine's default."""
    by_folder: dict[Path, list[tuple[Candidate, Measurement]]] = {}
    for candidate in embedded:
        pairs = by_folder.setdefault(candidate.folder, [])
        row = row_of(candidate, rows, threads)
        if row is not None:
            pairs.append((candidate, measured_in(row, candidate, agreement_of(candidate, embedded))))
    return [_recommend(pairs, folder, threads, keep) for folder, pairs in by_folder.items() if pairs]


def _recommend(
    pairs: Sequence[tuple[Candidate, Measurement]], folder: Path, threads: int, keep: bool
) -> Recommendation:
    bundle, name = pairs[0][0].bundle, pairs[0][0].name
    reasons = [(candidate, one, reason_against(candidate, one)) for candidate, one in pairs]
    verified = [one for candidate, one in pairs if is_verified(candidate)]
    best = fastest_accepted(bundle, verified)
    if keep and verified:
        store_fastest(folder, bundle, verified, threads=threads)
    default = unmeasured_default(bundle)
    wanted = (best.path, best.runtime) if best is not None else default and (default.file.path, default.runtime)
    chosen = next((pair for pair in pairs if (pair[1].path, pair[1].runtime) == wanted), None)
    in_use = load_fastest(folder, bundle, threads=threads) or default
    return Recommendation(
        name=name,
        folder=str(folder),
        path=chosen[1].path if chosen else None,
        precision=chosen[0].file.precision if chosen else None,
        runtime=chosen[1].runtime if chosen else None,
        sha256=chosen[0].file.sha256 if chosen else None,
        p50_ms=chosen[1].p50_ms if chosen else None,
        threads=threads,
        is_measured=best is not None,
        in_use=f"{in_use.file.path} in {in_use.runtime}" if in_use else None,
        refused=tuple(
            Refused(
                path=one.path,
                precision=candidate.file.precision,
                runtime=one.runtime,
                p50_ms=one.p50_ms,
                reason=reason,
            )
            for candidate, one, reason in reasons
            if reason is not None
        ),
    )


def unmeasured_default(bundle: BundleManifest) -> RunnableFile | None:
    """What an `Embedder` opens where nothing was measured; None where it would refuse the bundle."""
    try:
        return choose_runnable_file(bundle, None, None, None)
    except UserError as error:
        log.warning("%s: has no default on this machine: %s", bundle.name, error)
        return None


def is_verified(candidate: Candidate) -> bool:
    return any(
        (pair.file.path, pair.runtime) == (candidate.file.path, candidate.runtime)
        for pair in verified_runnable_files(candidate.bundle)
    )


def reason_against(candidate: Candidate, measured: Measurement) -> str | None:
    """Why a measured pair must not become the default; None where it may."""
    if candidate.file.accepted_worse:
        return "its export's gate refused it, and it was written with --accept-worse"
    if not is_verified(candidate):
        return f"it was not verified in {candidate.runtime} when it was exported"
    return rejection_reason(candidate.file, measured.agreement)


def measured_in(row: Mapping[str, Any], candidate: Candidate, agreement: Agreement) -> Measurement:
    return Measurement(
        path=candidate.file.path,
        runtime=candidate.runtime,
        provider=row["provider"],
        p50_ms=row["latency_ms"]["p50"],
        agreement=agreement,
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
    """The row of a candidate, one image at a time; an engine on a GPU has no number of threads."""
    wanted = (candidate.name, candidate.file.sha256, candidate.runtime, 1)
    keys = ("name", "sha256", "runtime", "batch")
    return next(
        (row for row in rows if tuple(row[key] for key in keys) == wanted and row["threads"] in (None, threads)), None
    )
