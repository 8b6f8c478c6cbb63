"""The embedding network, from pixels to unit vectors: preprocessing, backbone and neck, alone or in an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeembed.errors import UserError
from edgeembed.model_json import (
    Architecture,
    EmbeddingDescription,
    Inference,
    InputDescription,
    NetworkDescription,
    Pooling,
)
from edgeembed.network.backbone import Backbone, build_backbone
from edgeembed.network.eval_mode import eval_mode
from edgeembed.network.model_names import library_of
from edgeembed.network.position_embedding import set_input_size

# Values of `input.resize` in model.json.
SQUASH = "squash-bilinear"  # both sides are resized to the input's, antialiased
KEEP_ASPECT = "aspect-bilinear"  # to the nearest of a few shapes that have the input's area


class Neck(nn.Module):
    """Maps backbone features to unit vectors: Dropout -> Linear -> (BatchNorm) -> L2 norm.

    Always computed in float32, also under autocast: it costs little, and its rounding errors are the embedding's.
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
            return l2_normalise(embedding_BD)


def l2_normalise(embedding_BD: Tensor) -> Tensor:
    """Scales vectors to length 1; a vector of zeros stays as it is."""
    norm_B1: Tensor = embedding_BD.norm(dim=1, keepdim=True)
    return embedding_BD / norm_B1.clamp_min(1e-12)


class EmbeddingModel(nn.Module):
    """Maps pixels (B, 3, H, W), 0..255, any dtype, to unit vectors (B, D), float32.

    In evaluation mode it can average over the image and its mirror image (`flip`) and over input sizes (`scales`).
    `pca_rotated`: dimensions are sorted by variance, so that leading dimensions alone are the best short embedding.
    `starting_weights`: name of the weights that training started from.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, neck: Neck, *, size_px: int) -> None:
        super().__init__()
        self.name, self.pooling = backbone.name, backbone.pooling
        self.patch_stride, self.output_stride = backbone.patch_stride, backbone.output_stride
        self.blocks, self.attention_blocks = backbone.blocks, backbone.attention_blocks
        self.size_px, self.dim = size_px, neck.projection.out_features
        self.keep_aspect, self.flip = False, False
        self.pca_rotated = False
        self.scales: tuple[float, ...] = (1.0,)
        self.starting_weights = backbone.starting_weights
        self.rgb_mean, self.rgb_std = backbone.mean, backbone.std
        # Times 255, so that pixels need not be divided first. Not persistent: the backbone's name defines them.
        self.register_buffer("mean", 255.0 * torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)
        self.backbone = backbone.module
        self.neck = neck

    def forward(self, image_BCHW: Tensor) -> Tensor:
        if self.training or (self.scales == (1.0,) and not self.flip):
            return self.neck(self.features(image_BCHW))  # type: ignore[no-any-return]
        image_BCHW = self.normalised(image_BCHW)
        embeddings = []
        for scale in self.scales:
            height, width = (round(side * scale) for side in image_BCHW.shape[2:])
            resized = image_BCHW if scale == 1.0 else F.interpolate(image_BCHW, (height, width), mode="bilinear")
            embeddings.append(self.neck(self.backbone(resized)))
            if self.flip:
                embeddings.append(self.neck(self.backbone(resized.flip(3))))
        # The mean of different unit vectors is shorter than 1.
        return l2_normalise(torch.stack(embeddings).mean(dim=0))

    def features(self, image_BCHW: Tensor) -> Tensor:
        """The backbone's features (B, F) of pixels (B, 3, H, W), 0..255: the input of the neck."""
        return self.backbone(self.normalised(image_BCHW))  # type: ignore[no-any-return]

    def normalised(self, image_BCHW: Tensor) -> Tensor:
        """Pixels as the backbone takes them."""
        # In place, because the subtraction has made a new tensor already.
        return (image_BCHW - self.mean).div_(self.std)

    def set_input_size(self, size_px: int, patch_stride: int | None) -> None:
        """Changes the input size; position embeddings are interpolated."""
        if (size_px, patch_stride) != (self.size_px, self.patch_stride):
            set_input_size(self.backbone, size_px, patch_stride)
            self.size_px, self.patch_stride = size_px, patch_stride

    def require_view_sizes(self, *sizes_px: int) -> None:
        """Raises UserError if the network fails on views of these sizes. To be called before training starts."""
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
        """Cuts the embedding down to its first `dim` dimensions. The space must be PCA-rotated."""
        self.neck.projection, self.dim = leading_outputs(self.neck.projection, dim), dim

    @classmethod
    def from_description(cls, description: NetworkDescription) -> EmbeddingModel:
        """Builds the network that `describe` described, with random weights."""
        architecture, inference = description.architecture, description.inference or Inference()
        model = build_model(
            architecture.backbone,
            weights="none",
            size_px=description.input.height,
            dim=description.embedding.dim,
            dropout=architecture.dropout,
            batch_norm=architecture.batch_norm,
            pooling=architecture.pooling,
            patch_stride=architecture.patch_stride,
            output_stride=architecture.output_stride,
            blocks=architecture.blocks,
            attention_blocks=architecture.attention_blocks,
        )
        model.keep_aspect = description.input.resize == KEEP_ASPECT
        model.pca_rotated = description.embedding.ordered
        model.flip, model.scales = inference.flip, inference.scales
        return model

    def describe(self) -> NetworkDescription:
        """Returns architecture, input and embedding: enough to build the network again."""
        architecture = Architecture(
            library=library_of(self.name),
            backbone=self.name,
            pooling=self.pooling,
            patch_stride=self.patch_stride,
            dropout=self.neck.dropout.p,
            batch_norm=isinstance(self.neck.batch_norm, nn.BatchNorm1d),
            params=num_params(self),
        )
        # Absent where they are not set: the space ids of such networks do not cover them.
        changed = {
            "output_stride": self.output_stride,
            "blocks": self.blocks,
            "attention_blocks": self.attention_blocks,
        }
        architecture = architecture.model_copy(update={key: value for key, value in changed.items() if value})
        return NetworkDescription(
            architecture=architecture,
            input=InputDescription(
                height=self.size_px,
                width=self.size_px,
                colour="RGB",
                resize=KEEP_ASPECT if self.keep_aspect else SQUASH,
                mean=self.rgb_mean,
                std=self.rgb_std,
            ),
            embedding=EmbeddingDescription(dim=self.dim, normalised=True, metric="cosine", ordered=self.pca_rotated),
            inference=Inference(flip=self.flip, scales=self.scales),
        )


def leading_outputs(whole: nn.Linear, dim: int) -> nn.Linear:
    """Returns a linear layer that computes the first `dim` outputs of another."""
    short = nn.Linear(whole.in_features, dim)
    short.load_state_dict({"weight": whole.weight.detach()[:dim], "bias": whole.bias.detach()[:dim]})
    return short


class FeatureExtractor(nn.Module):
    """Maps pixels (B, 3, H, W), 0..255, to the pooled features (B, F) of a network's backbone, without its neck."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = model
        self.size_px, self.keep_aspect = model.size_px, model.keep_aspect
        self.dim = model.neck.projection.in_features

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.model.features(image_BCHW)


def num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build_model(
    name: str,
    *,
    weights: str,
    size_px: int,
    dim: int,
    dropout: float,
    batch_norm: bool = False,
    pooling: Pooling = "default",
    patch_stride: int | None = None,
    output_stride: int | None = None,
    blocks: int | None = None,
    attention_blocks: int | None = None,
    grad_checkpointing: bool = False,
    weights_key: str = "backbone.weights",
) -> EmbeddingModel:
    """Builds a network from its parts; `build_backbone` says what the arguments mean and which errors it raises."""
    backbone = build_backbone(
        name,
        weights=weights,
        size_px=size_px,
        patch_stride=patch_stride,
        pooling=pooling,
        output_stride=output_stride,
        blocks=blocks,
        attention_blocks=attention_blocks,
        grad_checkpointing=grad_checkpointing,
        weights_key=weights_key,
    )
    return EmbeddingModel(backbone, Neck(backbone.dim, dim, dropout, batch_norm=batch_norm), size_px=size_px)


class SquareResize(nn.Module):
    """Resizes squares (B, C, H, H) to (B, C, S, S), bilinear and antialiased, as float32.

    By two matrix products, which every runtime computes: few have an antialiased resize.
    """

    matrix_SH: Tensor

    def __init__(self, from_px: int, to_px: int) -> None:
        super().__init__()
        # The resize is linear and separable: the images of unit vectors are the columns of its matrix.
        unit_11HH = torch.eye(from_px)[None, None]
        matrix_SH = F.interpolate(unit_11HH, (to_px, from_px), mode="bilinear", antialias=True)[0, 0]
        # Not persistent: the two sizes define it.
        self.register_buffer("matrix_SH", matrix_SH, persistent=False)

    def forward(self, image_BCHH: Tensor) -> Tensor:
        with torch.autocast(image_BCHH.device.type, enabled=False):
            return self.matrix_SH @ image_BCHH.float() @ self.matrix_SH.T


class EnsembleModel(nn.Module):
    """Several networks as one: their embeddings are scaled by `weights`, concatenated and normalised.

    The cosine of two such embeddings is the mean of the members' cosines, weighted by the squares of `weights`. It can
    be used wherever a finished teacher can (Yokoo et al. 2019 concatenated six).

    With `projected_dim`, the concatenation goes through a linear layer to that number of dimensions, and is normalised
    again; the teacher's side computes it by PCA of standardised embeddings (`project_ensemble`).

    The input is that of the member with the largest; squares are resized for the others.
    """

    def __init__(
        self, members: Sequence[EmbeddingModel], weights: Sequence[float], projected_dim: int | None = None
    ) -> None:
        super().__init__()
        self.members, self.weights = nn.ModuleList(members), list(weights)
        self.size_px, self.keep_aspect = max(member.size_px for member in members), members[0].keep_aspect
        self.resizes = nn.ModuleList(
            nn.Identity() if member.size_px == self.size_px else SquareResize(self.size_px, member.size_px)
            for member in members
        )
        self.dim = sum(member.dim for member in members)
        self.projection: nn.Linear | None = None
        if projected_dim is not None:
            self.projection, self.dim = nn.Linear(self.dim, projected_dim), projected_dim
        self.name = "+".join(member.name for member in members)

    @property
    def pca_rotated(self) -> bool:
        """Whether leading dimensions alone are the best short embedding."""
        return self.projection is not None

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.combine(
            [member(resize(image_BCHW)) for resize, member in zip(self.resizes, self.members, strict=True)]
        )

    def combine(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Returns the ensemble's embedding (B, D) from that of each member."""
        parts = [weight * part for weight, part in zip(self.weights, embeddings, strict=True)]
        joined_BD = l2_normalise(torch.cat(parts, dim=1))
        if self.projection is None:
            return joined_BD
        with torch.autocast(joined_BD.device.type, enabled=False):
            return l2_normalise(self.projection(joined_BD.float()))

    def keep_dimensions(self, dim: int) -> None:
        """Cuts the embedding down to its first `dim` dimensions. The ensemble must be projected."""
        assert self.projection is not None
        self.projection, self.dim = leading_outputs(self.projection, dim), dim

    @classmethod
    def from_description(cls, description: NetworkDescription) -> EnsembleModel:
        """Builds the ensemble that `describe` described, with random weights."""
        architecture = description.architecture
        members = [EmbeddingModel.from_description(each) for each in architecture.members]
        return cls(members, architecture.weights, description.embedding.dim if architecture.projected else None)

    def describe(self) -> NetworkDescription:
        """Returns the members' descriptions and their weights: enough to build the ensemble again."""
        members = tuple(member.describe() for member in self.members)  # type: ignore[operator]
        architecture = Architecture(
            library="edgeembed",
            backbone=self.name,
            weights=tuple(self.weights),
            members=members,
            params=num_params(self),
        )
        embedding = EmbeddingDescription(dim=self.dim, normalised=True, metric="cosine")
        if self.projection is not None:  # absent otherwise: the space ids of ensembles without one do not cover it
            architecture = architecture.model_copy(update={"projected": True})
            embedding = embedding.model_copy(update={"ordered": True})
        largest = next(each.input for each in members if each.input.height == self.size_px)
        return NetworkDescription(architecture=architecture, input=largest, embedding=embedding)


Network: TypeAlias = EmbeddingModel | EnsembleModel


def network_from_description(description: NetworkDescription) -> Network:
    """Builds a network or an ensemble, with random weights."""
    kind = EnsembleModel if description.architecture.members else EmbeddingModel
    return kind.from_description(description)
