"""Scores a bundle's architecture with random weights on the evaluation images, or reads the recorded scores."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import numpy as np

from edgeembed.bench.candidates import Candidate
from edgeembed.bench.report_schema import ByIndex, Figures
from edgeembed.bench.retrieval import TeacherReference, measure_quality
from edgeembed.data.manifest import Rows
from edgeembed.device.bundle_schema import BundleManifest
from edgeembed.errors import UserError
from edgeembed.evaluation import EmbeddedRows, RetrievalProtocol
from edgeembed.model_json import Architecture, EmbeddingDescription, InputDescription, NetworkDescription, parse
from edgeembed.progress import stage

log = logging.getLogger(__name__)

BATCH_SIZE = 16
NEEDED = ("torch", "timm")


class UntrainedBaselines:
    """Retrieval scores of each bundle's architecture with random weights, computed once for all files of a bundle.

    They are read from the bundle where its export scored the same queries and index images and no teacher's index is
    searched. Otherwise the network is built and embeds the evaluation images once, which needs torch. None where
    neither is possible. `rows`: those that every model could embed.
    """

    def __init__(self, protocol: RetrievalProtocol, rows: Rows, teacher: TeacherReference | None) -> None:
        self.protocol, self.rows, self.teacher = protocol, rows, teacher
        self.figures_of: dict[Path, ByIndex[Figures] | None] = {}

    def figures(self, candidate: Candidate) -> ByIndex[Figures] | None:
        """The scores for the `untrained` key of the candidate's rows; None where they are not known."""
        if self.protocol.not_scored is not None:
            return None
        if candidate.folder not in self.figures_of:
            bundle = candidate.bundle
            self.figures_of[candidate.folder] = self.recorded(bundle) or self.measure_bundle(bundle)
        return self.figures_of[candidate.folder]

    def recorded(self, bundle: BundleManifest) -> ByIndex[Figures] | None:
        """What the export measured, where it scored the same images and no teacher's index is searched here."""
        # The export scored all images, and in the network's own index only.
        if bundle.evaluation is None or self.teacher is not None or len(self.rows) < len(self.protocol.rows):
            return None
        figures = bundle.evaluation.untrained_on(self.protocol.fingerprint)
        return None if figures is None else ByIndex[Figures](symmetric=figures)

    def measure_bundle(self, bundle: BundleManifest) -> ByIndex[Figures] | None:
        """Figures of the bundle's architecture with random weights; None without torch, or where it cannot be built."""
        try:
            architecture = architecture_of(bundle)
        except UserError as error:
            log.warning("%s: no untrained network to compare with: %s", bundle.name, error)
            return None
        if architecture is None or any(importlib.util.find_spec(name) is None for name in NEEDED):
            return None
        description = NetworkDescription(
            architecture=architecture,
            input=InputDescription(height=bundle.input.height, resize=bundle.input.resize),
            embedding=EmbeddingDescription(dim=bundle.embedding.dim),
        )
        return self.measure(bundle.name, description)

    def measure(self, name: str, description: NetworkDescription, *, device: str = "cpu") -> ByIndex[Figures] | None:
        """Figures of the described network with random weights; None where it is too large or unknown."""
        if self.protocol.not_scored is not None:
            return None
        # Imports torch, without which recorded scores can still be read.
        from edgeembed.network.untrained import untrained_network
        from edgeembed.training.embed import embed_files

        try:
            model = untrained_network(description)
        except (UserError, RuntimeError, TypeError) as error:  # an architecture this version cannot build
            log.warning("%s: no untrained network to compare with: %s", name, " ".join(str(error).split()))
            return None
        if model is None:
            return None
        files = self.protocol.files
        with stage(f"embedding {len(files)} images with an untrained {model.name}, to compare with"):
            embedding_MD, kept_M = embed_files(
                model.to(device), files, batch_size=BATCH_SIZE, workers=0, device=device, precision="fp32"
            )
        embedded = EmbeddedRows(embedding_ND=embedding_MD, row_N=self.protocol.rows[kept_M])
        rows = np.intersect1d(self.rows, embedded.row_N)  # a file may have become unreadable since
        quality = measure_quality(self.protocol, embedded, rows, self.teacher)
        return quality.scores.map(lambda scores: scores.figures)


def architecture_of(bundle: BundleManifest) -> Architecture | None:
    """The architecture as model.json has it; bundles of earlier versions name a student backbone alone."""
    student = bundle.student or {}
    if student.get("architecture"):
        return parse(Architecture, student["architecture"], f"bundle {bundle.name!r}: student.architecture")
    if student.get("role") != "student" or not student.get("backbone"):
        return None
    return Architecture(backbone=student["backbone"], params=student.get("params"))
