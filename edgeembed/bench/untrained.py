"""What a bundle's architecture reaches with random weights on the evaluation images: recorded, or measured here."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np

from edgeembed.arrays import BoolArray
from edgeembed.bench.candidates import Candidate
from edgeembed.bench.retrieval import Embedded, Reference, judge
from edgeembed.device.bundle import BundleManifest
from edgeembed.errors import UserError
from edgeembed.evaluation import EvaluationSet
from edgeembed.metrics import METRICS
from edgeembed.model_json import Architecture, EmbeddingDescription, InputDescription, NetworkDescription, parse
from edgeembed.progress import stage

log = logging.getLogger(__name__)

BATCH_SIZE = 16
NEEDED = ("torch", "timm")


class Untrained:
    """Retrieval scores of each bundle's architecture with random weights, computed once for all files of a bundle.

    They are read from the bundle where its export scored the same queries and index images and no teacher's index is
    searched. Otherwise the network is built and embeds the evaluation images once, which needs torch. None where
    neither is possible.
    """

    def __init__(self, evaluation: EvaluationSet, readable_N: BoolArray, teacher: Reference | None) -> None:
        self.evaluation, self.readable_N, self.teacher = evaluation, readable_N, teacher
        self.known: dict[Path, dict[str, Any] | None] = {}

    def figures(self, candidate: Candidate) -> dict[str, Any] | None:
        """The scores for the `untrained` key of the candidate's rows; None where they are not known."""
        if self.evaluation.not_scored is not None:
            return None
        if candidate.folder not in self.known:
            self.known[candidate.folder] = self.recorded(candidate.bundle) or self.of_bundle(candidate.bundle)
        return self.known[candidate.folder]

    def recorded(self, bundle: BundleManifest) -> dict[str, Any] | None:
        """What the export measured, where it had the same images and no index of a teacher is searched here."""
        if bundle.evaluation is None or self.teacher is not None or not self.readable_N.all():
            return None
        figures = bundle.evaluation.untrained_on(self.evaluation.fingerprint)
        return None if figures is None else {"symmetric": figures, "asymmetric": None}

    def of_bundle(self, bundle: BundleManifest) -> dict[str, Any] | None:
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
        return self.measured(bundle.name, description)

    def measured(self, name: str, description: NetworkDescription, *, device: str = "cpu") -> dict[str, Any] | None:
        """Figures of a network with random weights; None where it is too large or unknown."""
        if self.evaluation.not_scored is not None:
            return None
        from edgeembed.network.untrained import untrained_network
        from edgeembed.training.validation import embed_files

        dim = description.embedding.dim
        try:
            model = untrained_network(description)
        except (UserError, RuntimeError, TypeError) as error:
            log.warning("%s: no untrained network to compare with: %s", name, " ".join(str(error).split()))
            return None
        if model is None:
            return None
        files = self.evaluation.files
        with stage(f"embedding {len(files)} images with an untrained {model.name}, to compare with"):
            found_MD, kept_M = embed_files(
                model.to(device), files, batch_size=BATCH_SIZE, workers=0, device=device, precision="fp32"
            )
        embedding_ND, readable_N = np.zeros((len(files), dim), np.float32), self.readable_N.copy()
        embedding_ND[kept_M] = found_MD
        embedded = Embedded(embedding_ND=embedding_ND, readable_N=readable_N)
        quality = judge(self.evaluation, embedded, readable_N, self.teacher)
        return {
            kind: None if scores is None else {name: scores[name] for name in METRICS}
            for kind, scores in quality.retrieval.items()
        }


def architecture_of(bundle: BundleManifest) -> Architecture | None:
    """As in model.json. Older bundles name the backbone alone, which is enough for a student's."""
    student = bundle.student or {}
    if student.get("architecture"):
        return parse(Architecture, student["architecture"], f"bundle {bundle.name!r}: student.architecture")
    if student.get("role") != "student" or not student.get("backbone"):
        return None
    return Architecture(backbone=student["backbone"], params=student.get("params"))
