"""Which file and runtime of each bundle to use on this machine: a bench recommends it, and with --remember keeps it.

The rule is that of `edgeembed doctor`: the fastest pair of file and runtime for which `fastest_cache.rejection_reason`
has no reason.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeembed.bench.candidates import Candidate
from edgeembed.bench.report_schema import Recommendation, RefusedFile, Row
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
from edgeembed.evaluation import EmbeddedRows

log = logging.getLogger(__name__)


def recommend(
    embedded: Mapping[Candidate, EmbeddedRows], rows: Sequence[Row], *, threads: int, keep: bool
) -> list[Recommendation]:
    """Recommends a file of each bundle, from rows of batch 1 on all cores; `keep` makes it this machine's default."""
    by_folder: dict[Path, list[tuple[Candidate, Measurement]]] = {}
    for candidate in embedded:
        # By folder: two bundles may have one name.
        pairs = by_folder.setdefault(candidate.folder, [])
        row = row_of(candidate, rows, threads)
        if row is not None:
            pairs.append((candidate, measured_in(row, candidate, agreement_of(candidate, embedded))))
    return [_recommend(pairs, folder, threads, keep) for folder, pairs in by_folder.items() if pairs]


def _recommend(
    pairs: Sequence[tuple[Candidate, Measurement]], folder: Path, threads: int, keep: bool
) -> Recommendation:
    bundle, name = pairs[0][0].bundle, pairs[0][0].name
    verified = [measured for candidate, measured in pairs if is_verified(candidate)]
    best = fastest_accepted(bundle, verified)
    # Before `load_fastest`, so that `in_use` is the default after this bench.
    if keep and verified:
        store_fastest(folder, bundle, verified, threads=threads)
    default = unmeasured_default(bundle)  # for machines that have measured nothing
    if best is not None:
        choice: tuple[str, str] | None = (best.path, best.runtime)
    else:
        # Nothing measured can be recommended: the default of other machines is reported instead.
        choice = None if default is None else (default.file.path, default.runtime)
    # None where the default could not run here.
    chosen = next((pair for pair in pairs if (pair[1].path, pair[1].runtime) == choice), None)
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
            RefusedFile(
                path=measured.path,
                precision=candidate.file.precision,
                runtime=measured.runtime,
                p50_ms=measured.p50_ms,
                reason=reason,
            )
            for candidate, measured in pairs
            if (reason := reason_against(candidate, measured)) is not None
        ),
        not_shown=chosen[0].file.not_shown.get(chosen[1].runtime) if chosen else None,
    )


def unmeasured_default(bundle: BundleManifest) -> RunnableFile | None:
    """The file and runtime that an `Embedder` opens where nothing was measured; None where it refuses the bundle."""
    try:
        return choose_runnable_file(bundle, None, None, None)
    except UserError as error:
        log.warning("%s: has no default on this machine: %s", bundle.name, error)
        return None


def is_verified(candidate: Candidate) -> bool:
    """Whether the export checked this file in this runtime."""
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


def measured_in(row: Row, candidate: Candidate, agreement: Agreement) -> Measurement:
    """The row of a candidate as a `Measurement`, the form in which `doctor` keeps its times."""
    return Measurement(
        path=candidate.file.path,
        runtime=candidate.runtime,
        provider=row.provider,
        p50_ms=row.latency_ms.p50,
        agreement=agreement,
    )


def agreement_of(candidate: Candidate, embedded: Mapping[Candidate, EmbeddedRows]) -> Agreement:
    """Compares a candidate's embeddings with those of its bundle's fp32 file, on the images that both could read."""
    fp32 = fp32_file(candidate.bundle)
    # Always the bundle's own fp32 file in ONNX Runtime: other bundles may have other networks.
    key = (candidate.folder, fp32 and fp32.path, REFERENCE_RUNTIME)
    student = embedded[candidate]
    reference = next((embedded[one] for one in embedded if (one.folder, one.file.path, one.runtime) == key), None)
    if reference is None:
        return agree(None, student.embedding_ND)
    # Each is cut to the images of the other, so that equal rows are compared.
    return agree(reference.take(student.row_N).embedding_ND, student.take(reference.row_N).embedding_ND)


def row_of(candidate: Candidate, rows: Sequence[Row], threads: int) -> Row | None:
    """The row of a candidate, one image at a time; an engine on a GPU has no number of threads."""
    key = (candidate.name, candidate.file.sha256, candidate.runtime, 1)
    return next(
        (
            row
            for row in rows
            if (row.name, row.sha256, row.runtime, row.batch) == key and row.threads in (None, threads)
        ),
        None,
    )
