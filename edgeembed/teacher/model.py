"""An embedding network with all that defines its space: preprocessing, backbone, neck; saved and loaded whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeembed.checkpoint import load_module, save_tensors
from edgeembed.errors import UserError
from edgeembed.run import RunFolder, read_json, write_json
from edgeembed.teacher.backbone import Backbone, build_backbone, library_of

SCHEMA = "edgeembed-model/1"
RESIZE = "squash-bilinear"  # images.squash: both sides to the input's, antialiased


class Neck(nn.Module):
    """Dropout -> Linear -> L2 (Huang & Li 2022; no batch norm). Runs in float32: it is tiny and decides the output."""

    def __init__(self, in_features: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(in_features, dim)

    def forward(self, feature_BF: Tensor) -> Tensor:
        with torch.autocast(feature_BF.device.type, enabled=False):
            embedding_BD: Tensor = self.projection(self.dropout(feature_BF.float()))
            norm_B1: Tensor = embedding_BD.norm(dim=1, keepdim=True)
            return embedding_BD / norm_B1.clamp_min(1e-12)


class EmbeddingModel(nn.Module):
    """Pixels (B, 3, H, W), 0..255, any dtype, to unit vectors (B, D), float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, *, name: str, size_px: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.name, self.size_px, self.dim = name, size_px, dim
        self.constants = {"mean": list(backbone.mean), "std": list(backbone.std)}
        self.register_buffer("mean", 255.0 * torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)
        self.backbone = backbone.module
        self.neck = Neck(backbone.dim, dim, dropout)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        embedding_BD: Tensor = self.neck(self.backbone((image_BCHW.float() - self.mean) / self.std))
        return embedding_BD

    def describe(self) -> dict[str, Any]:
        """What model.json says of architecture, input and embedding; enough to build the network again."""
        return {
            "architecture": {
                "library": library_of(self.name),
                "backbone": self.name,
                "dropout": self.neck.dropout.p,
                "params": sum(parameter.numel() for parameter in self.parameters()),
            },
            "input": {
                "height": self.size_px,
                "width": self.size_px,
                "colour": "RGB",
                "resize": RESIZE,
                **self.constants,
            },
            "embedding": {"dim": self.dim, "normalised": True, "metric": "cosine"},
        }


def build_model(
    name: str, *, weights: str, size_px: int, dim: int, dropout: float, grad_checkpointing: bool = False
) -> EmbeddingModel:
    backbone = build_backbone(name, weights=weights, size_px=size_px, grad_checkpointing=grad_checkpointing)
    return EmbeddingModel(backbone, name=name, size_px=size_px, dim=dim, dropout=dropout)


def space_id(model: EmbeddingModel) -> str:
    """Names a teacher's embedding space: a hash of preprocessing, architecture and weights, without class centres."""
    described = model.describe()
    digest = hashlib.sha256(json.dumps([described["architecture"], described["input"]], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_model(run: RunFolder, model: EmbeddingModel, facts: dict[str, Any]) -> None:
    """Writes model.safetensors, then model.json, whose presence says that the run is finished."""
    save_tensors(run.weights, model.state_dict(), metadata={"space_id": str(facts["space_id"])})
    write_json(run.model_json, {"schema": SCHEMA, **model.describe(), **facts})


def load_model(path: Path) -> tuple[EmbeddingModel, dict[str, Any]]:
    """A finished run's network, in eval mode, and its model.json. Raises UserError where there is none."""
    run = RunFolder(path=path)
    if not run.finished:
        raise UserError(f"{path}: holds no finished run (no model.json): name a run folder, or finish it with --resume")
    facts = read_json(run.model_json)
    if facts.get("schema") != SCHEMA:
        raise UserError(f"{run.model_json}: schema {facts.get('schema')!r}, this version reads {SCHEMA!r}")
    try:
        architecture, image, dim = facts["architecture"], facts["input"], int(facts["embedding"]["dim"])
        model = build_model(
            architecture["backbone"], weights="none", size_px=image["height"], dim=dim, dropout=architecture["dropout"]
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.model_json}: incomplete ({error})") from None
    load_module(model, run.weights)
    return model.eval(), facts
