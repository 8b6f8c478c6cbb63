"""The whole bench: how fast each file is on this machine, and how much of the teacher's retrieval it keeps."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeembed.bench.candidates import Candidate, find_candidates
from edgeembed.bench.examples import choose_examples
from edgeembed.bench.latency import Budget
from edgeembed.bench.recommendation import recommend
from edgeembed.bench.report import SCHEMA, write_report
from edgeembed.bench.retrieval import (
    DecodedFiles,
    Embedded,
    Reference,
    describe_data,
    embed_with_session,
    evaluation_set,
    judge,
    readable_by_all,
)
from edgeembed.bench.roofline import measure_floor
from edgeembed.bench.rows import Row, Setting, student_rows, with_floor
from edgeembed.bench.summary import best_student
from edgeembed.bench.untrained import Untrained
from edgeembed.data.manifest import Manifest
from edgeembed.device.runtimes.fastest_cache import RunnableFile, open_runnable_file
from edgeembed.errors import CheckFailed
from edgeembed.evaluation import EvaluationSet, warn_if_collapsed
from edgeembed.machine import describe_machine, package_versions
from edgeembed.progress import stage

if TYPE_CHECKING:
    from edgeembed.bench.teacher import Teacher

log = logging.getLogger(__name__)

TIMED_FILES = 32
THOROUGH = {
    "budget": Budget(),
    "file_budget": Budget(min_samples=50, min_seconds=0.5, max_seconds=3.0, warmup_seconds=0.1),
    "teacher_budget": Budget(min_samples=20, min_seconds=1.0, max_seconds=3.0, warmup_seconds=0.1),
}
QUICK = {
    "budget": Budget(min_samples=30, min_seconds=0.2, max_seconds=1.5, warmup_seconds=0.1),
    "file_budget": Budget(min_samples=10, min_seconds=0.1, max_seconds=0.5, warmup_seconds=0.05),
    "teacher_budget": Budget(min_samples=5, min_seconds=0.1, max_seconds=1.0, warmup_seconds=0.0),
}


def bench(
    bundles: Sequence[Path],
    manifest: Manifest,
    *,
    teacher: Path | None,
    out: Path,
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] | None = None,
    quick: bool = False,
    remember: bool = False,
) -> dict[str, Any]:
    """Measures bundles (and the teacher they came from) and writes `out`; returns what report.json holds.

    `remember`: what is recommended of each bundle becomes the default of an `Embedder` on this machine. Not otherwise,
    as it changes the results of every later command.
    Raises CheckFailed for a file that is not what its bundle says or when nothing can run, UserError for a bundle of
    another space than the teacher's. Files that cannot run here are listed in `skipped`.
    """
    machine = describe_machine()
    cores = machine.cores
    candidates = find_candidates(bundles)
    known: Teacher | None = None
    if teacher is not None:
        from edgeembed.bench.teacher import load_teacher  # needs torch, which a device need not have

        known = load_teacher(teacher, candidates)
    evaluation = evaluation_set(manifest)
    if known is None:
        log.warning("no teacher given: no asymmetric retrieval, no retention and no cosine to the teacher")

    # Quality first: every model on every evaluation image, then all of them scored on the images that all could read.
    embedded, skipped = embed_candidates(candidates, evaluation)
    by_teacher = known.embed(evaluation, workers=cores) if known is not None else None
    readable_N = readable_by_all([*embedded.values(), *([by_teacher] if by_teacher is not None else [])])
    readable = [file for file, is_readable in zip(evaluation.files, readable_N, strict=True) if is_readable]

    # Then time, with nothing else going on in this process.
    warn_if_busy(cores)
    timed_threads = sorted({1, cores, *(threads or ())})
    with stage("measuring what this machine can do at best"):
        floor = measure_floor(timed_threads)
    setting = Setting(
        files=readable[:: max(1, len(readable) // TIMED_FILES)][:TIMED_FILES],
        batches=sorted({1, *batches}),
        threads=timed_threads,
        **(QUICK if quick else THOROUGH),
    )
    rows: list[Row] = []
    reference: Reference | None = None
    if known is not None and by_teacher is not None:
        own = judge(evaluation, by_teacher, readable_N)
        reference = Reference(embedded=by_teacher, scored=own.symmetric)
        warn_if_collapsed(f"the teacher, {known.model.name}", own.spread, evaluation)
        figures = known.untrained(evaluation, readable_N)
        with stage(f"timing the teacher, {known.model.name}"):
            rows += known.rows(own, setting, figures)
    untrained = Untrained(evaluation, readable_N, reference)
    for candidate, one in embedded.items():
        quality = judge(evaluation, one, readable_N, reference)
        warn_if_collapsed(candidate.label, quality.spread, evaluation)
        figures = untrained.figures(candidate)
        with stage(f"timing {candidate.label}"):
            rows += student_rows(candidate, quality, setting, figures)
    if not quick:
        with stage("measuring the machine once more, as other work may have slowed it"):
            floor = floor.best_of(measure_floor(timed_threads))

    report: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": machine.to_json(),
        "versions": package_versions(),
        "data": describe_data(evaluation, readable_N),
        "floor": floor.as_json(),
        "rows": [with_floor(row, floor).as_json() for row in rows],
        "skipped": skipped,
    }
    recommended = recommend(embedded, report["rows"], threads=cores, keep=remember)
    report["recommended"] = [one.as_json() for one in recommended]
    best = best_student(report)
    shown = next((one for candidate, one in embedded.items() if best is not None and best.is_of(candidate)), None)
    write_report(out, report, choose_examples(evaluation, shown, by_teacher, readable_N))
    return report


def embed_candidates(
    candidates: Sequence[Candidate], evaluation: EvaluationSet
) -> tuple[dict[Candidate, Embedded], list[dict[str, str]]]:
    """Each file's embeddings of all evaluation images; and, with the reason, the files that cannot run here."""
    files = evaluation.files
    decoded: dict[tuple[int, int], DecodedFiles] = {}
    embedded: dict[Candidate, Embedded] = {}
    skipped: list[dict[str, str]] = []
    for candidate in candidates:
        size = (candidate.bundle.input.height, candidate.bundle.input.width)
        if size not in decoded:
            decoded.clear()  # one size in memory at a time
            with stage(f"decoding {len(files)} images of the {evaluation.split} split to {size[1]} x {size[0]}"):
                decoded[size] = DecodedFiles(files, *size)
        dim = candidate.bundle.embedding.dim
        try:
            with stage(f"embedding {len(files)} images with {candidate.label}"):
                session = open_runnable_file(
                    candidate.folder, RunnableFile(file=candidate.file, runtime=candidate.runtime)
                )
                embedded[candidate] = embed_with_session(session, decoded[size], dim=dim)
        except Exception as error:  # a runtime may raise anything: what it says goes into the report
            if isinstance(error, CheckFailed) and candidate.runtime == candidate.file.runtime:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("skipped: %s: %s", candidate.label, reason)
            skipped.append({"name": candidate.label, "reason": reason})
    if not embedded:
        raise CheckFailed(f"no file could be run: {skipped[0]['name']}: {skipped[0]['reason']}")
    return embedded, skipped


def warn_if_busy(cores: int) -> None:
    """Other work makes every time longer; a person should know before believing the figures."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1.5 * cores:
        log.warning("this machine is busy (load %.1f on %d cores): times will come out too long", load, cores)
