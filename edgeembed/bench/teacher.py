"""The teacher beside its students: its embeddings of the same images, and its times. Needs torch, unlike the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeembed.arrays import BoolArray, UInt8Array
from edgeembed.bench.candidates import Candidate
from edgeembed.bench.footprint import probe
from edgeembed.bench.retrieval import Embedded, Quality
from edgeembed.bench.rows import Row, Setting, timed
from edgeembed.bench.untrained import Untrained
from edgeembed.device.embeddings import long_space_id
from edgeembed.errors import UserError
from edgeembed.evaluation import EvaluationSet
from edgeembed.files import sha256_of
from edgeembed.network.model import Network
from edgeembed.network.model_files import load_model
from edgeembed.progress import stage
from edgeembed.run_folder import RunFolder, require_run
from edgeembed.student.zoo import count_macs
from edgeembed.training.device import pick_device
from edgeembed.training.embed import embed_files

BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The run whose space the students live in."""

    path: Path
    model: Network
    facts: dict[str, Any]

    def embed(self, evaluation: EvaluationSet, *, workers: int) -> Embedded:
        """In fp32, on a GPU where there is one. Only for a GPU do worker processes decode: a CPU is busy embedding."""
        model, files, device = self.model, evaluation.files, pick_device("auto")
        with stage(f"embedding {len(files)} images with the teacher, {model.name}, on {device}"):
            found_MD, kept_M = embed_files(
                model.to(device),
                files,
                batch_size=BATCH_SIZE,
                workers=0 if device == "cpu" else workers,
                device=device,
                precision="fp32",
            )
        model.to("cpu")  # where it is timed
        embedding_ND, readable_N = np.zeros((len(files), model.dim), np.float32), np.zeros(len(files), np.bool_)
        embedding_ND[kept_M], readable_N[kept_M] = found_MD, True
        return Embedded(embedding_ND=embedding_ND, readable_N=readable_N)

    def untrained(self, evaluation: EvaluationSet, readable_N: BoolArray) -> dict[str, Any] | None:
        """What its architecture reaches with random weights, in its own index; None where it is too large."""
        figures = Untrained(evaluation, readable_N, teacher=None)
        return figures.measured(self.model.name, self.facts, device=pick_device("auto"))

    def rows(self, quality: Quality, setting: Setting, untrained: dict[str, Any] | None = None) -> Iterator[Row]:
        """In torch on this CPU, one image at a time: what a device would wait for without a student."""
        model, weights, size = self.model, RunFolder(path=self.path).weights, (self.model.size_px, self.model.size_px)
        footprint = probe(self.path, runtime="torch", threads=max(setting.threads), height=size[0], width=size[1])
        untimed = Row(
            role="teacher",
            name=model.name,
            runtime="torch",
            provider="cpu",
            precision="fp32",
            batch=1,
            threads=None,
            size_bytes=weights.stat().st_size,
            params=self.facts["architecture"].get("params"),
            macs=count_macs(model),
            peak_rss_bytes=footprint.peak_rss_bytes,
            load_ms=footprint.load_ms,
            untrained=untrained,
            sha256=sha256_of(weights),
            **quality.row_facts(),
        )

        def run(image_NHWC: UInt8Array) -> object:
            with torch.inference_mode():
                return model(torch.from_numpy(image_NHWC).permute(0, 3, 1, 2)).numpy()

        threads_before = torch.get_num_threads()
        try:
            for threads in setting.threads:
                torch.set_num_threads(threads)
                row = dataclasses.replace(untimed, threads=threads)
                yield timed(row, run, size, setting, setting.teacher_budget, setting.teacher_budget)
        finally:
            torch.set_num_threads(threads_before)


def load_teacher(path: Path, candidates: Sequence[Candidate]) -> Teacher:
    """The teacher, when every bundle lives in its space. Raises UserError naming both spaces otherwise.

    A student run has its teacher's space id too, but another one's embeddings: it is refused.
    """
    require_run(path, role="teacher")
    model, facts = load_model(path)
    for candidate in candidates:
        if long_space_id(candidate.bundle.space_id) != facts["space_id"]:
            raise UserError(
                f"bundle {candidate.name!r} lives in space {candidate.bundle.space_id}, teacher {path} in "
                f"{facts['space_id']}: their embeddings cannot be compared, give the teacher it was distilled from"
            )
    return Teacher(path=path, model=model, facts=facts)
