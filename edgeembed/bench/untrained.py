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
        architecture = architecture_of(bundle)
        if architecture is None or any(importlib.util.find_spec(name) is None for name in NEEDED):
            return None
        image = {"height": bundle.input.height, "resize": bundle.input.resize}
        facts = {"architecture": architecture, "input": image, "embedding": {"dim": bundle.embedding.dim}}
        return self.measured(bundle.name, facts)

    def measured(self, name: str, facts: dict[str, Any], *, device: str = "cpu") -> dict[str, Any] | None:
        """Figures of the network that `facts` describe as model.json does; None where it is too large or unknown."""
        if self.evaluation.not_scored is not None:
            return None
        from edgeembed.network.untrained import untrained_network
        from edgeembed.training.embed import embed_files

        dim = int(facts["embedding"]["dim"])
        try:
            model = untrained_network(facts)
        except (UserError, KeyError, RuntimeError, TypeError) as error:
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


def architecture_of(bundle: BundleManifest) -> dict[str, Any] | None:
    """As model.json has it; bundles without it name the backbone, which is all of a student's."""
    student = bundle.student or {}
    if student.get("architecture"):
        return dict(student["architecture"])
    if student.get("role") != "student" or not student.get("backbone"):
        return None
    return {"backbone": student["backbone"], "dropout": 0.0, "params": student.get("params")}
