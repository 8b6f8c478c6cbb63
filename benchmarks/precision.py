"""Images a second of a training step of each bundled recipe, in fp32 and in bf16, and what `auto` chooses here.

Why: bf16 halves the time of a step on one CPU and multiplies it on another; the default has to be right on both, and an
optimiser that computes in bf16 by itself has to be seen by its price.
Usage: python benchmarks/precision.py [--recipes vit_h14,quickstart] [--rounds 3] [--slowest 60]
Each step is forward, loss, backward and optimiser on random images of the recipe's last view size, in the recipe's
batches (large networks: 2 images). Medians of rounds in which the formats take turns. A format whose first step takes
more than `--slowest` seconds is timed by that one step. Ends with the optimiser's step alone. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from timm.optim.muon import Muon as TimmMuon
from torch import nn

from edgeembed.config import OptimSection, load_recipe, recipe_names
from edgeembed.machine import describe_machine
from edgeembed.network.model import EmbeddingModel
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.zoo import build_student
from edgeembed.teacher.networks import build_teacher
from edgeembed.teacher.recipe import TeacherRecipe
from edgeembed.training.device import replace_slow_convolutions, set_allocator
from edgeembed.training.muon import is_matrix
from edgeembed.training.optimizers import build_optimizers, optimizer_step
from edgeembed.training.precision import autocast, loss_scaler, native_precision

LARGE_PARAMS = 40_000_000
PRECISIONS = ("fp32", "bf16")


def network_of(kind: str, name: str) -> tuple[EmbeddingModel, TeacherRecipe | DistillRecipe]:
    """The network of a recipe with random weights."""
    if kind == "teacher":
        recipe = load_recipe(TeacherRecipe, kind=kind, name=name, overrides=["backbone.weights=none"])
        _, opening = recipe.resolve_stages()[0]
        return build_teacher(recipe, opening), opening
    student = load_recipe(DistillRecipe, kind=kind, name=name)
    size_px = student.image.size_px
    return build_student(student.student.name, weights="none", size_px=size_px, dim=64), student


def time_recipe(kind: str, name: str, *, rounds: int, slowest: float) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    model, recipe = network_of(kind, name)
    model.train().to(memory_format=torch.channels_last)
    replace_slow_convolutions(model, "cpu")
    params = sum(parameter.numel() for parameter in model.parameters())
    set_allocator(params * 4)
    batch = 2 if params > LARGE_PARAMS else recipe.train.batch_size
    size_px = recipe.image.view_px()
    image_BCHW = torch.randint(0, 255, (batch, 3, size_px, size_px)).contiguous(memory_format=torch.channels_last)
    target_BD = torch.randn(batch, model.dim)
    by_precision = {
        precision: build_optimizers(model.backbone, model.neck, None, recipe.optim, precision=precision)
        for precision in (PRECISIONS if recipe.optim.kind == "muon" else PRECISIONS[:1])
    }

    def step_s(precision: str) -> float:
        started = time.perf_counter()
        with autocast("cpu", precision, cache_enabled=False):
            embedding_BD = model(image_BCHW)
        loss = -(embedding_BD.float() * target_BD).sum(dim=1).mean()
        loss.backward()
        optimizer_step(
            by_precision.get(precision, by_precision["fp32"]),
            list(model.parameters()),
            loss=loss.item(),
            step=0,
            clip_norm=1.0,
            scaler=loss_scaler("cpu", precision),
        )
        return time.perf_counter() - started

    samples: dict[str, list[float]] = {precision: [step_s(precision)] for precision in PRECISIONS}  # warm-up
    for _ in range(rounds):
        for precision, found in samples.items():
            if found[0] <= slowest:
                found.append(step_s(precision))
    rate = {precision: batch / statistics.median(found[1:] or found) for precision, found in samples.items()}
    chosen, _ = native_precision("cpu")
    return (
        f"| {kind} `{name}` | {model.name} | {batch} x {size_px} px | {recipe.optim.kind} | {rate['fp32']:.2f} "
        f"| {rate['bf16']:.2f} | {rate['bf16'] / rate['fp32']:.2f} | {chosen} |"
    )


def time_optimizers(student: str, *, rounds: int) -> list[str]:
    """Rows of `optimizer.step()` alone, each beside AdamW's."""
    torch.manual_seed(0)
    model = build_student(student, weights="none", size_px=224, dim=64).to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)

    def ours(precision: str = "fp32", **keys: object) -> Callable[[], None]:
        optimizers = build_optimizers(model.backbone, model.neck, None, OptimSection(**keys), precision=precision)

        def step() -> None:
            for optimizer in optimizers:
                optimizer.step()

        return step

    contestants = {
        "AdamW, fused": ours(kind="adamw"),
        "Muon, fp32, blocks of 64 rows": ours(kind="muon", block_rows=64),
        "Muon, fp32, blocks of 128 rows": ours(kind="muon", block_rows=128),
        "Muon, fp32": ours(kind="muon"),
        "Muon, bf16, blocks of 128 rows": ours(kind="muon", block_rows=128, precision="bf16"),
        "Muon, bf16": ours(kind="muon", precision="bf16"),
        "timm's Muon (bf16)": timm_muon(model),
    }
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, step in contestants.items():
            cool_caches()
            started = time.perf_counter()
            step()
            samples[name].append(time.perf_counter() - started)
    median = {name: statistics.median(found[1:]) for name, found in samples.items()}
    adamw = median["AdamW, fused"]
    return [f"| {name} | {1e3 * seconds:.1f} | {seconds / adamw:.1f} |" for name, seconds in median.items()]


def timm_muon(model: nn.Module) -> Callable[[], None]:
    optimizer = TimmMuon([{"params": [p for p in model.parameters() if is_matrix(p)]}], lr=1e-7, nesterov=True)
    return lambda: optimizer.step()


def cool_caches() -> None:
    """As after a backward pass, weights and moments are no longer in the CPU's caches."""
    torch.ones(64 * 2**20, dtype=torch.uint8).add_(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="", help="Comma-separated; default: all.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slowest", type=float, default=60.0)
    arguments = parser.parse_args()
    wanted = set(filter(None, arguments.recipes.split(",")))
    machine = describe_machine()
    chosen, reason = native_precision("cpu")
    print(f"{machine.cpu}, {machine.cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__};")
    print(f"`train.precision` auto: {chosen} ({reason})\n")
    print("| recipe | network | batch | optimiser | fp32, images/s | bf16, images/s | bf16 / fp32 | auto chose |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in ("teacher", "student"):
        for name in recipe_names(kind):
            if not wanted or name in wanted:
                print(time_recipe(kind, name, rounds=arguments.rounds, slowest=arguments.slowest), flush=True)
    print("\n| `optimizer.step()` of mobilenetv4_s | ms | times AdamW's |\n|---|---|---|")
    print("\n".join(time_optimizers("mobilenetv4_s", rounds=arguments.rounds)))


if __name__ == "__main__":
    main()
