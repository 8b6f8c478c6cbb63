"""Compares the three published recipes with their authors' figures.

Why: a recipe named after a system must train as that system does. Learning rates, margins, augmentation, clipping and
weight decay come from the code that trains with the recipe, not from the recipe's file.
Usage: python benchmarks/fidelity.py [--steps-per-epoch 1000] [--json]
Prints a table; where a figure differs from the authors' it says so, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from edgeembed.config import AugmentSection, load_recipe
from edgeembed.data.augment import draw_views
from edgeembed.network.backbone import random_module
from edgeembed.network.blocks import no_weight_decay_ids
from edgeembed.network.model_names import library_of
from edgeembed.teacher.margin import dynamic_margins
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.training.schedule import learning_rate_factor

NUM_VIEWS = 200_000


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a recipe; `theirs` is None where the authors give none. Numbers agree within 1 %."""

    recipe: str
    what: str
    ours: float | str | None
    theirs: float | str | None

    @property
    def agrees(self) -> bool:
        if self.theirs is None:
            return True
        if isinstance(self.theirs, float) and isinstance(self.ours, float):
            return abs(self.ours - self.theirs) <= 0.01 * max(abs(self.theirs), 1e-12)
        return self.ours == self.theirs


# The authors' figures, from the paper and code named in the header of each recipe. Learning rates are those of the
# neck. Epochs are counted over the whole run, from 1.
PUBLISHED: dict[str, dict[str, float | str]] = {
    "vit_h14": {
        "learning rate, epoch 1, start": 1e-6,
        "learning rate, epoch 1, middle": 5.05e-5,
        "learning rate, epoch 1, end": 1e-4,
        "learning rate, epoch 2, start": 9.80e-5,
        "learning rate, epoch 2, middle": 9.80e-5,
        "learning rate, epoch 2, end": 9.80e-5,
        "learning rate, epoch 3, start": 9.21e-5,
        "learning rate, epoch 3, middle": 9.21e-5,
        "learning rate, epoch 3, end": 9.21e-5,
        "learning rate of the backbone, as a multiple": 1e-3,
        "margin, epoch 1": 0.3,
        "margin, epoch 2": 0.4,
        "margin, epoch 3": 0.5,
        "largest margin": 0.8,
        "scale": 30.0,
        "epochs": "everything 2, neck and head 1 (backbone frozen)",
        "optimiser": "adamw",
        "weight decay": 1e-5,
        "without weight decay": "biases, class token, norms, patch stem, position embedding",
        "gradient clipping": "none",
        "zoom, smallest": 0.8,
        "zoom, largest": 1.2,
        "zoom of the two axes": "one",
        "share of views zoomed": 0.5,
        "rotation, largest, degrees": 10.0,
        "share of views rotated": 0.5,
        "share of views mirrored": 0.5,
        "brightness": 0.1,
        "contrast": 0.1,
        "share of views recoloured": 0.5,
        "erased square, smallest side": 0.1,
        "erased square, largest side": 0.2,
        "share of views with an erased square": 0.5,
        "dropout": 0.2,
    },
    "eee511": {
        "margin, epoch 1": 0.3,
        "margin, epoch 15": 0.3,
        "scale": 30.0,
        "learning rate of the second stage, as a multiple of the first's": 1e-3,
        "decay": "linear",
        "epochs of the second stage": 10.0,
        "augmentation of the second stage": "none",
        "most images of a class": 50.0,
        "without weight decay": "biases, class token, norms, patch stem, position embedding",
        "gradient clipping": "none",
    },
    "landmark_2019": {
        "learning rate, epoch 1, start": 1e-3,
        "learning rate, epoch 3, middle": 5.015e-4,
        "learning rate, epoch 5, end": 3e-6,
        "learning rate, epoch 6, start": 1e-3,
        "learning rate, epoch 9, middle": 5.015e-4,
        "learning rate, epoch 12, start": 5.237e-5,
        "learning rate, epoch 12, end": 3e-6,
        "margin, epoch 1": 0.3,
        "margin, epoch 12": 0.3,
        "scale": 30.0,
        "epochs": "soft 5, hard 6, hard, full resolution 1",
        "optimiser": "sgd",
        "momentum": 0.9,
        "weight decay": 1e-5,
        "without weight decay": "biases, norms",
        "gradient clipping": "none",
        "soft: crop side, smallest": 0.8,
        "soft: crop side, largest": 1.2,
        "soft: shear, largest, degrees": 0.0,
        "soft: brightness": 0.1,
        "soft: contrast": 0.0,
        "hard: crop side, smallest": 0.7,
        "hard: crop side, largest": 1.3,
        "hard: shear, largest, degrees": 4.0,
        "hard: brightness": 0.1,
        "hard: contrast": 0.1,
        "crop sides of the two axes": "apart",
        "share of views cropped": 1.0,
        "share of views sheared": 0.5,
        "share of views recoloured": 0.5,
        "share of views mirrored": 0.0,
        "border": "black",
        "batch norm of the last epoch": "frozen",
        "image size of the last epoch": 704.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Measured ranges of `NUM_VIEWS` sampled views, and the shares of views that a change applies to."""

    crop_side: tuple[float, float]
    same_for_both_axes: bool
    cropped: float
    rotation_degrees: float
    rotated: float
    shear_degrees: float
    sheared: float
    mirrored: float
    brightness: float
    contrast: float
    recoloured: float
    erased_side: tuple[float, float]
    erased: float


def sample(section: AugmentSection) -> Sampled:
    """Draws views as training does and measures them."""
    views = draw_views(section, seed=0, image_B=np.arange(NUM_VIEWS), view=0)
    matrix = views.affine_B23[:, :, :2].double()
    mirrored = torch.linalg.det(matrix) < 0
    matrix = torch.where(mirrored[:, None, None], matrix * torch.tensor([-1.0, 1.0]), matrix)
    width, angle = matrix[:, :, 0].norm(dim=1), torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])
    height = torch.linalg.det(matrix) / width
    shear = torch.atan((matrix[:, :, 0] * matrix[:, :, 1]).sum(dim=1) / width / height)
    square = views.square_B4[:, 2] - views.square_B4[:, 0]
    erased = square > 0
    side = torch.stack([width, height])
    colours = torch.stack([views.brightness_B, views.contrast_B])

    def share(chosen: torch.Tensor) -> float:
        return float(chosen.double().mean())

    return Sampled(
        crop_side=(float(side.min()), float(side.max())),
        same_for_both_axes=bool(torch.allclose(width, height, atol=1e-3)),
        cropped=share((side - 1.0).abs().amax(dim=0) > 1e-4),
        rotation_degrees=float(angle.abs().max().rad2deg()),
        rotated=share(angle.abs() > 1e-4),
        shear_degrees=float(shear.abs().max().rad2deg()),
        sheared=share(shear.abs() > 1e-4),
        mirrored=share(mirrored),
        brightness=float((colours[0] - 1.0).abs().max()),
        contrast=float((colours[1] - 1.0).abs().max()),
        recoloured=share((colours != 1.0).any(dim=0)),
        erased_side=(float(square[erased].min()), float(square[erased].max())) if erased.any() else (0.0, 0.0),
        erased=share(erased),
    )


def rounded(value: float) -> float:
    """Rounded to the precision of the samples: shares and ranges to a hundredth, angles to a tenth."""
    return round(value, 2) if abs(value) < 2 else round(value, 1)


def epochs_of(recipe: TeacherRecipe, steps_per_epoch: int) -> Iterator[tuple[int, TeacherRecipe, list[float], float]]:
    """For each epoch: its number from 1, the stage, the learning rates at its start, middle and end, and the margin."""
    number = 0
    for _, stage in recipe.resolve_stages():
        start_K = torch.tensor([stage.head.margin], dtype=torch.float64)
        for epoch in range(stage.train.epochs):
            number += 1
            begin = epoch * steps_per_epoch
            rates = [
                stage.optim.lr
                * learning_rate_factor(
                    step,
                    steps_per_epoch=steps_per_epoch,
                    total_steps=stage.train.epochs * steps_per_epoch,
                    section=stage.optim,
                )
                for step in (begin, begin + steps_per_epoch // 2, begin + steps_per_epoch - 1)
            ]
            margin_K = dynamic_margins(
                epoch,
                start_K,
                growth_per_epoch=stage.head.margin_growth_per_epoch,
                margin_max=stage.head.margin_max,
            )
            yield number, stage, rates, float(margin_K)


def undecayed_kinds(recipe: TeacherRecipe) -> str:
    """The kinds of backbone parameters that are exempt from weight decay."""
    with torch.device("meta"):  # the names and shapes of all parameters, without their memory
        backbone, _, _ = random_module(
            recipe.backbone.name, library_of(recipe.backbone.name), size_px=recipe.image.size_px
        )
    left_out = no_weight_decay_ids(backbone)
    kinds = {
        kind_of(name, module)
        for module in backbone.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in left_out
    }
    return ", ".join(sorted(kinds))


def kind_of(name: str, module: nn.Module) -> str:
    if "norm" in type(module).__name__.lower():
        return "norms"
    if name.endswith("bias"):
        return "biases"
    if isinstance(module, nn.Conv2d):
        return "patch stem"
    return {"class_embedding": "class token", "positional_embedding": "position embedding"}.get(name, name)


def figures(name: str, steps_per_epoch: int) -> list[Figure]:
    """Every figure of a recipe, with the authors' figure where they give one."""
    recipe = load_recipe(TeacherRecipe, kind="teacher", name=name)
    stages = dict(recipe.resolve_stages())
    ours: dict[str, float | str | None] = {}
    for number, _, rates, margin in epochs_of(recipe, steps_per_epoch):
        for when, rate in zip(("start", "middle", "end"), rates, strict=True):
            ours[f"learning rate, epoch {number}, {when}"] = rate
        ours[f"margin, epoch {number}"] = margin
    ours |= {
        "scale": recipe.head.scale,
        "optimiser": recipe.optim.kind,
        "momentum": recipe.optim.momentum,
        "weight decay": recipe.optim.weight_decay,
        "without weight decay": undecayed_kinds(recipe),
        "gradient clipping": "none" if recipe.train.clip_norm is None else f"{recipe.train.clip_norm:g}",
        "dropout": recipe.neck.dropout,
        "epochs": ", ".join(f"{stage} {keys.train.epochs}" for stage, keys in stages.items()),
    }
    ours |= {"vit_h14": vit_h14, "eee511": eee511, "landmark_2019": landmark_2019}[name](stages)
    published = PUBLISHED[name]
    missing = set(published) - set(ours)
    assert not missing, missing
    return [Figure(recipe=name, what=what, ours=value, theirs=published.get(what)) for what, value in ours.items()]


def vit_h14(stages: dict[str, TeacherRecipe]) -> dict[str, float | str | None]:
    first, last = stages["everything"], stages["neck and head"]
    drawn = sample(first.augment)
    frozen = " (backbone frozen)" if last.backbone.frozen else ""
    return {
        "epochs": f"everything {first.train.epochs}, neck and head {last.train.epochs}{frozen}",
        "learning rate of the backbone, as a multiple": first.optim.backbone_lr_factor,
        "largest margin": first.head.margin_max,
        "zoom, smallest": rounded(1 / drawn.crop_side[1]),
        "zoom, largest": rounded(1 / drawn.crop_side[0]),
        "zoom of the two axes": "one" if drawn.same_for_both_axes else "apart",
        "share of views zoomed": rounded(drawn.cropped),
        "rotation, largest, degrees": rounded(drawn.rotation_degrees),
        "share of views rotated": rounded(drawn.rotated),
        "share of views mirrored": rounded(drawn.mirrored),
        "brightness": rounded(drawn.brightness),
        "contrast": rounded(drawn.contrast),
        "share of views recoloured": rounded(drawn.recoloured),
        "erased square, smallest side": rounded(drawn.erased_side[0]),
        "erased square, largest side": rounded(drawn.erased_side[1]),
        "share of views with an erased square": rounded(drawn.erased),
    }


def eee511(stages: dict[str, TeacherRecipe]) -> dict[str, float | str | None]:
    first, second = stages["neck and head"], stages["everything"]
    drawn = sample(second.augment)
    plain = drawn.cropped + drawn.rotated + drawn.sheared + drawn.mirrored + drawn.recoloured + drawn.erased == 0.0
    return {
        "learning rate of the second stage, as a multiple of the first's": second.optim.lr / first.optim.lr,
        "decay": second.optim.decay,
        "epochs of the second stage": float(second.train.epochs),
        "augmentation of the second stage": "none" if plain else "some",
        "most images of a class": None if second.sampling.cap is None else float(second.sampling.cap),
    }


def landmark_2019(stages: dict[str, TeacherRecipe]) -> dict[str, float | str | None]:
    last = stages["hard, full resolution"]
    rows: dict[str, float | str | None] = {}
    for name in ("soft", "hard"):
        drawn = sample(stages[name].augment)
        rows |= {
            f"{name}: crop side, smallest": rounded(drawn.crop_side[0]),
            f"{name}: crop side, largest": rounded(drawn.crop_side[1]),
            f"{name}: shear, largest, degrees": rounded(drawn.shear_degrees),
            f"{name}: brightness": rounded(drawn.brightness),
            f"{name}: contrast": rounded(drawn.contrast),
        }
    hard = sample(stages["hard"].augment)
    return rows | {
        "crop sides of the two axes": "one" if hard.same_for_both_axes else "apart",
        "share of views cropped": rounded(hard.cropped),
        "share of views sheared": rounded(hard.sheared),
        "share of views recoloured": rounded(hard.recoloured),
        "share of views mirrored": rounded(hard.mirrored),
        "border": stages["hard"].augment.border,
        "batch norm of the last epoch": "frozen" if last.backbone.frozen_batch_norm else "trained",
        "image size of the last epoch": float(last.image.size_px),
    }


def shown(value: float | str | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps-per-epoch", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    rows = [figure for name in PUBLISHED for figure in figures(name, options.steps_per_epoch)]
    if options.json:
        print(json.dumps({"figures": [asdict(row) | {"agrees": row.agrees} for row in rows]}, indent=2))
    else:
        print("| recipe | figure | ours | the authors' | |\n|---|---|---|---|---|")
        for row in rows:
            print(
                f"| {row.recipe} | {row.what} | {shown(row.ours)} | {shown(row.theirs)} | "
                f"{'' if row.theirs is None else 'same' if row.agrees else 'DIFFERENT'} |"
            )
    if not all(row.agrees for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
