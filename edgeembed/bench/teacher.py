"""The teacher beside its students: its embeddings of the same images, and its times. Needs torch, unlike the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edgeembed.bench.candidates import Candidate
from edgeembed.bench.footprint import probe, torch_call
from edgeembed.bench.report_schema import ByIndex, Figures, Row
from edgeembed.bench.retrieval import RetrievalQuality
from edgeembed.bench.rows import LoadedNetwork, TimingPlan, build_row, measure_times
from edgeembed.bench.untrained import UntrainedBaselines
from edgeembed.data.manifest import Rows
from edgeembed.device.embedding_space import long_space_id
from edgeembed.errors import UserError
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol
from edgeembed.files import sha256_of
from edgeembed.network.macs import count_macs
from edgeembed.network.model import Network, num_params
from edgeembed.network.model_files import load_model
from edgeembed.progress import stage
from edgeembed.run_folder import RunFolder, require_run
from edgeembed.training.device import pick_device
from edgeembed.training.embed import embed_files

BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A finished teacher run, whose embedding space the students share."""

    path: Path
    model: Network

    def embed(self, protocol: RetrievalProtocol, *, workers: int) -> EmbeddedRows:
        """In fp32, on a GPU where there is one. Only for a GPU do worker processes decode: a CPU is busy embedding."""
        model, files, device = self.model, protocol.files, pick_device("auto")
        with stage(f"embedding {len(files)} images with the teacher, {model.name}, on {device}"):
            embedding_MD, kept_M = embed_files(
                model.to(device),
                files,
                batch_size=BATCH_SIZE,
                workers=0 if device == "cpu" else workers,
                device=device,
                precision="fp32",
            )
        model.to("cpu")  # where it is timed
        return EmbeddedRows(embedding_ND=embedding_MD, row_N=protocol.rows[kept_M])

    def untrained_figures(self, protocol: RetrievalProtocol, rows: Rows) -> ByIndex[Figures] | None:
        """Scores of its architecture with random weights, in its own index; None where that network is too large."""
        baselines = UntrainedBaselines(protocol, rows, teacher=None)
        return baselines.measure(self.model.name, self.model.describe(), device=pick_device("auto"))

    def rows(
        self, quality: RetrievalQuality, plan: TimingPlan, untrained: ByIndex[Figures] | None = None
    ) -> Iterator[Row]:
        """Timed in torch on this CPU, one image at a time: what a device would wait for without a student."""
        model, weights, size = self.model, RunFolder(path=self.path).weights, (self.model.size_px, self.model.size_px)
        # Once for all rows: loading a large teacher takes long.
        footprint = probe(self.path, runtime="torch", threads=max(plan.threads), height=size[0], width=size[1])
        network = LoadedNetwork(
            role="teacher",
            name=model.name,
            runtime="torch",
            provider="cpu",
            precision="fp32",
            # Replaced in each row below.
            threads=None,
            size_bytes=weights.stat().st_size,
            params=num_params(model),
            macs=count_macs(model),
            peak_rss_bytes=footprint.peak_rss_bytes,
            load_ms=footprint.load_ms,
            sha256=sha256_of(weights),
        )
        threads_before = torch.get_num_threads()  # a setting of the whole process
        try:
            for threads in plan.threads:
                torch.set_num_threads(threads)
                budget = plan.teacher_budget
                times = measure_times(torch_call(model), plan.files, size, 1, budget, budget)
                yield build_row(dataclasses.replace(network, threads=threads), times, quality, untrained)
        finally:
            torch.set_num_threads(threads_before)


def load_teacher(path: Path, candidates: Sequence[Candidate]) -> Teacher:
    """The teacher of all candidates. Raises UserError naming both spaces where a bundle has another embedding space.

    A student run has its teacher's space id too, but other embeddings: it is refused.
    """
    require_run(path, role="teacher")
    model, origin = load_model(path)
    for candidate in candidates:
        # A bundle of leading dimensions only is compared in the teacher's shortened space.
        if long_space_id(candidate.bundle.space_id) != origin.space_id:
            raise UserError(
                f"bundle {candidate.name!r} has embedding space {candidate.bundle.space_id}, teacher {path} has "
                f"{origin.space_id}: their embeddings cannot be compared, give the teacher it was distilled from"
            )
    return Teacher(path=path, model=model)
