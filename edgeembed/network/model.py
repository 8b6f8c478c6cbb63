"""An embedding network with all that defines its space: preprocessing, backbone, neck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeembed.errors import UserError
from edgeembed.network.backbone import Backbone, build_backbone
from edgeembed.network.eval_mode import eval_mode
from edgeembed.network.names import library_of
from edgeembed.network.position_embedding import set_input_size

SQUASH = "squash-bilinear"  # images.squash: both sides to the input's, antialiased
KEEP_ASPECT = "aspect-bilinear"  # to the nearest of a few shapes of the input's area


class Neck(nn.Module):
    """Dropout -> Linear -> (BatchNorm) -> L2, in float32: it is tiny and decides the output.

    Without batch norm as in Huang & Li 2022; with it as in Yokoo et al. 2019.
    """

    def __init__(self, in_features: int, dim: int, dropout: float, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(in_features, dim)
        self.batch_norm = nn.BatchNorm1d(dim) if batch_norm else nn.Identity()

    def forward(self, feature_BF: Tensor) -> Tensor:
        with torch.autocast(feature_BF.device.type, enabled=False):
            embedding_BD: Tensor = self.batch_norm(self.projection(self.dropout(feature_BF.float())))
            return unit(embedding_BD)


def unit(embedding_BD: Tensor) -> Tensor:
    norm_B1: Tensor = embedding_BD.norm(dim=1, keepdim=True)
    return embedding_BD / norm_B1.clamp_min(1e-12)


class EmbeddingModel(nn.Module):
    """Pixels (B, 3, H, W), 0..255, any dtype, to unit vectors (B, D), float32.

    In evaluation it may average over the image and its mirror image (`flip`), and over sizes (`scales`).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, neck: Neck, *, size_px: int) -> None:
        super().__init__()
        self.name, self.pooling, self.patch_stride = backbone.name, backbone.pooling, backbone.patch_stride
        self.output_stride = backbone.output_stride
        self.size_px, self.dim = size_px, neck.projection.out_features
        self.keep_aspect, self.flip = False, False
        self.pca_rotated = False  # dimensions by weight: a prefix of an embedding is the best one of its length
        self.scales: tuple[float, ...] = (1.0,)
        self.starting_weights = "none"  # which weights it began with, by name
        self.constants = {"mean": list(backbone.mean), "std": list(backbone.std)}
        self.register_buffer("mean", 255.0 * torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)
        self.backbone = backbone.module
        self.neck = neck

    def forward(self, image_BCHW: Tensor) -> Tensor:
        image_BCHW = (image_BCHW - self.mean).div_(self.std)
        if self.training or (self.scales == (1.0,) and not self.flip):
            return self.neck(self.backbone(image_BCHW))  # type: ignore[no-any-return]
        embeddings = []
        for scale in self.scales:
            height, width = (round(side * scale) for side in image_BCHW.shape[2:])
            resized = image_BCHW if scale == 1.0 else F.interpolate(image_BCHW, (height, width), mode="bilinear")
            embeddings.append(self.neck(self.backbone(resized)))
            if self.flip:
                embeddings.append(self.neck(self.backbone(resized.flip(3))))
        return unit(torch.stack(embeddings).mean(dim=0))

    def set_input_size(self, size_px: int, patch_stride: int | None) -> None:
        """Prepares for squares of another size; position embeddings are interpolated."""
        if (size_px, patch_stride) != (self.size_px, self.patch_stride):
            set_input_size(self.backbone, size_px, patch_stride)
            self.size_px, self.patch_stride = size_px, patch_stride

    def require_views(self, *sizes_px: int) -> None:
        """Raises UserError where the network cannot take views of other sizes than its own, before it is trained."""
        for size_px in {*sizes_px} - {self.size_px}:
            try:
                with eval_mode(self), torch.no_grad():
                    self.backbone(self.mean.new_zeros(1, 3, size_px, size_px))
            except (AssertionError, RuntimeError) as error:
                raise UserError(
                    f"image.train_size_px, image.start_size_px: {self.name} does not take views of {size_px} px where "
                    f"it is built for {self.size_px} ({error}): set both to null"
                ) from None

    def keep_dimensions(self, dim: int) -> None:
        """Makes embeddings of the first `dim` numbers; for a space that is ordered."""
        whole = self.neck.projection
        self.neck.projection = nn.Linear(whole.in_features, dim)
        self.neck.projection.load_state_dict({"weight": whole.weight.detach()[:dim], "bias": whole.bias.detach()[:dim]})
        self.dim = dim

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> EmbeddingModel:
        """The network that `describe` described, with random weights."""
        architecture, image = facts["architecture"], facts["input"]
        model = build_model(
            architecture["backbone"],
            weights="none",
            size_px=image["height"],
            dim=int(facts["embedding"]["dim"]),
            dropout=architecture["dropout"],
            batch_norm=architecture.get("batch_norm", False),
            pooling=architecture.get("pooling", "own"),
            patch_stride=architecture.get("patch_stride"),
            output_stride=architecture.get("output_stride"),
        )
        inference = facts.get("inference", {})
        model.keep_aspect = image["resize"] == KEEP_ASPECT
        model.pca_rotated = bool(facts["embedding"].get("ordered", False))
        model.flip, model.scales = bool(inference.get("flip", False)), tuple(inference.get("scales", (1.0,)))
        return model

    def describe(self) -> dict[str, Any]:
        """What model.json says of architecture, input and embedding; enough to build the network again."""
        return {
            "architecture": {
                "library": library_of(self.name),
                "backbone": self.name,
                "pooling": self.pooling,
                "patch_stride": self.patch_stride,
                # Only where it is set: spaces that were named before the key existed keep their id.
                **({"output_stride": self.output_stride} if self.output_stride else {}),
                "dropout": self.neck.dropout.p,
                "batch_norm": isinstance(self.neck.batch_norm, nn.BatchNorm1d),
                "params": sum(parameter.numel() for parameter in self.parameters()),
            },
            "input": {
                "height": self.size_px,
                "width": self.size_px,
                "colour": "RGB",
                "resize": KEEP_ASPECT if self.keep_aspect else SQUASH,
                **self.constants,
            },
            "embedding": {"dim": self.dim, "normalised": True, "metric": "cosine", "ordered": self.pca_rotated},
            "inference": {"flip": self.flip, "scales": list(self.scales)},
        }


def build_model(
    name: str,
    *,
    weights: str,
    size_px: int,
    dim: int,
    dropout: float,
    batch_norm: bool = False,
    pooling: str = "own",
    patch_stride: int | None = None,
    output_stride: int | None = None,
    grad_checkpointing: bool = False,
    weights_key: str = "backbone.weights",
) -> EmbeddingModel:
    backbone = build_backbone(
        name,
        weights=weights,
        size_px=size_px,
        patch_stride=patch_stride,
        pooling=pooling,
        output_stride=output_stride,
        grad_checkpointing=grad_checkpointing,
        weights_key=weights_key,
    )
    return EmbeddingModel(backbone, Neck(backbone.dim, dim, dropout, batch_norm=batch_norm), size_px=size_px)


class EnsembleModel(nn.Module):
    """Several networks as one: their embeddings, weighted and put one after the other, as a unit vector.

    Two of them compare by the mean of the members' cosines, weighted by the squares of `weights`. Looks like an
    EmbeddingModel to everything that uses a finished teacher (Yokoo et al. 2019 joined six).
    """

    def __init__(self, members: Sequence[EmbeddingModel], weights: Sequence[float]) -> None:
        super().__init__()
        self.members, self.weights = nn.ModuleList(members), list(weights)
        first = members[0]
        self.size_px, self.keep_aspect = first.size_px, first.keep_aspect
        self.dim = sum(member.dim for member in members)
        self.name = "+".join(member.name for member in members)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        parts = [weight * member(image_BCHW) for weight, member in zip(self.weights, self.members, strict=True)]
        return unit(torch.cat(parts, dim=1))

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> EnsembleModel:
        architecture = facts["architecture"]
        return cls([EmbeddingModel.from_facts(each) for each in architecture["members"]], architecture["weights"])

    def describe(self) -> dict[str, Any]:
        described = [member.describe() for member in self.members]  # type: ignore[operator]
        return {
            "architecture": {
                "library": "edgeembed",
                "backbone": self.name,
                "weights": self.weights,
                "members": described,
                "params": sum(parameter.numel() for parameter in self.parameters()),
            },
            "input": described[0]["input"],
            "embedding": {"dim": self.dim, "normalised": True, "metric": "cosine"},
        }


Network: TypeAlias = EmbeddingModel | EnsembleModel
