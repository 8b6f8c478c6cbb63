"""Runs the bench: how fast each file is on this machine, and how much of the teacher's retrieval quality it keeps."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeembed.bench.candidates import Candidate, find_candidates
from edgeembed.bench.examples import choose_examples
from edgeembed.bench.latency import Budget
from edgeembed.bench.recommendation import recommend
from edgeembed.bench.report import write_report
from edgeembed.bench.report_schema import Report, RooflineRates, Row, SkippedFile
from edgeembed.bench.retrieval import (
    DecodedFiles,
    TeacherReference,
    choose_protocol,
    common_rows,
    describe_data,
    embed_with_session,
    measure_quality,
)
from edgeembed.bench.roofline import measure_roofline
from edgeembed.bench.rows import TimingPlan, student_rows, with_roofline, with_size_ratio
from edgeembed.bench.summary import best_student
from edgeembed.bench.untrained import UntrainedBaselines
from edgeembed.data.manifest import Manifest, Rows
from edgeembed.device.runtimes.fastest_cache import RunnableFile, open_runnable_file
from edgeembed.errors import CheckFailed
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol, warn_if_collapsed
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
) -> Report:
    """Measures bundles, and the teacher they came from, and writes the report into the folder `out`.

    `remember`: what is recommended of each bundle becomes the default of an `Embedder` on this machine. Not otherwise,
    as it changes the results of every later command.
    Raises CheckFailed for a file that differs from its bundle.json or when nothing can run, UserError for a bundle of
    another space than the teacher's. Files that cannot run here are listed in `skipped`.
    """
    system = describe_machine()
    candidates = find_candidates(bundles)
    teacher_run: Teacher | None = None
    if teacher is not None:
        from edgeembed.bench.teacher import load_teacher  # needs torch, which a device need not have

        teacher_run = load_teacher(teacher, candidates)
    protocol = choose_protocol(manifest)
    if teacher_run is None:
        log.warning("no teacher given: no asymmetric retrieval, no retention and no cosine to the teacher")

    # Quality first: every model embeds all images, and all are scored on those that every one of them could read.
    embedded, skipped = embed_candidates(candidates, protocol)
    teacher_embedded = teacher_run.embed(protocol, workers=system.cores) if teacher_run is not None else None
    rows = common_rows(protocol, [*embedded.values(), *([teacher_embedded] if teacher_embedded is not None else [])])

    # Then times, with nothing else going on in this process.
    warn_if_busy(system.cores)
    files = [manifest.files[row] for row in rows]
    plan = TimingPlan(
        files=files[:: max(1, len(files) // TIMED_FILES)][:TIMED_FILES],
        # A batch of 1 and all cores are always among them, as the recommendation is made from those.
        batches=sorted({1, *batches}),
        threads=sorted({1, system.cores, *(threads or ())}),
        **(QUICK if quick else THOROUGH),
    )
    with stage("measuring what this machine can do at best"):
        roofline = measure_roofline(plan.threads)
    report_rows: list[Row] = []
    reference: TeacherReference | None = None
    if teacher_run is not None and teacher_embedded is not None:
        reference, report_rows = measure_teacher(teacher_run, teacher_embedded, protocol, rows, plan)
    teacher_row = report_rows[0] if report_rows else None
    report_rows += measure_students(embedded, protocol, rows, plan, reference)
    if not quick:
        with stage("measuring the machine once more, as other work may have slowed it"):
            roofline = roofline.best_of(measure_roofline(plan.threads))

    # The report is written last, so that a failed bench leaves an earlier one as it is.
    report = Report(
        machine=system,
        versions=package_versions(),
        data=describe_data(protocol, rows),
        floor=RooflineRates(gemm_gflops=roofline.gemm_gflops, copy_gb_per_s=roofline.copy_gb_per_s),
        rows=tuple(with_size_ratio(with_roofline(row, roofline), teacher_row) for row in report_rows),
        skipped=tuple(skipped),
        recommended=tuple(recommend(embedded, report_rows, threads=system.cores, keep=remember)),
    )
    best = best_student(report)
    shown = next((each for candidate, each in embedded.items() if best is not None and best.is_of(candidate)), None)
    write_report(out, report, choose_examples(protocol, shown, teacher_embedded, rows))
    return report


def measure_teacher(
    teacher: Teacher, embedded: EmbeddedRows, protocol: RetrievalProtocol, rows: Rows, plan: TimingPlan
) -> tuple[TeacherReference, list[Row]]:
    """The scores that students are compared with, and the teacher's own rows of the report."""
    quality = measure_quality(protocol, embedded, rows)
    warn_if_collapsed(f"the teacher, {teacher.model.name}", quality.spread, protocol)
    untrained = teacher.untrained_figures(protocol, rows)
    with stage(f"timing the teacher, {teacher.model.name}"):
        timed_rows = list(teacher.rows(quality, plan, untrained))
    return TeacherReference(embedded=embedded, scored=quality.symmetric), timed_rows


def measure_students(
    embedded: Mapping[Candidate, EmbeddedRows],
    protocol: RetrievalProtocol,
    rows: Rows,
    plan: TimingPlan,
    reference: TeacherReference | None,
) -> list[Row]:
    """The rows of every file that could run, in the order of the candidates."""
    baselines = UntrainedBaselines(protocol, rows, reference)
    timed_rows: list[Row] = []
    for candidate, student in embedded.items():
        quality = measure_quality(protocol, student, rows, reference)
        warn_if_collapsed(candidate.label, quality.spread, protocol)
        untrained = baselines.figures(candidate)
        with stage(f"timing {candidate.label}"):
            timed_rows += student_rows(candidate, quality, plan, untrained)
    return timed_rows


def embed_candidates(
    candidates: Sequence[Candidate], protocol: RetrievalProtocol
) -> tuple[dict[Candidate, EmbeddedRows], list[SkippedFile]]:
    """Each file's embeddings of all evaluation images; and, with the reason, the files that cannot run here."""
    files = protocol.files
    decoded: dict[tuple[int, int], DecodedFiles] = {}
    embedded: dict[Candidate, EmbeddedRows] = {}
    skipped: list[SkippedFile] = []
    for candidate in candidates:
        size = (candidate.bundle.input.height, candidate.bundle.input.width)
        if size not in decoded:
            decoded.clear()  # one size in memory at a time
            with stage(f"decoding {len(files)} images of the {protocol.split} split to {size[1]} x {size[0]}"):
                decoded[size] = DecodedFiles(files, *size)
        dim = candidate.bundle.embedding.dim
        try:
            with stage(f"embedding {len(files)} images with {candidate.label}"):
                session = open_runnable_file(
                    candidate.folder, RunnableFile(file=candidate.file, runtime=candidate.runtime)
                )
                embedded[candidate] = embed_with_session(session, decoded[size], protocol.rows, dim=dim)
        except Exception as error:  # a runtime may raise anything: the report names the reason
            # In the runtime that a file was exported for, a failed check ends the bench; elsewhere it is skipped.
            if isinstance(error, CheckFailed) and candidate.runtime == candidate.file.runtime:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("skipped: %s: %s", candidate.label, reason)
            skipped.append(SkippedFile(name=candidate.label, reason=reason))
    if not embedded:
        raise CheckFailed(f"no file could be run: {skipped[0].name}: {skipped[0].reason}")
    return embedded, skipped


def warn_if_busy(cores: int) -> None:
    """Other work makes every time longer: a warning comes before the figures."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    # About one per core is the bench's own load, from embedding.
    if load > 1.5 * cores:
        log.warning("this machine is busy (load %.1f on %d cores): times will come out too long", load, cores)
