"""One epoch of distillation beside lightly-train: same student, images, size and batch, each with a ViT-B teacher.

Why: lightly-train asks its teacher again for every batch. What a stored answer saves, and from which epoch on it pays,
should be seen beside the nearest peer.
Usage: python benchmarks/lightly_train.py MANIFEST --peer PYTHON [--images 640] [--rounds 1]
PYTHON is that of an environment of its own with lightly-train and timm. Both teachers have random weights
(theirs: dinov2/vitb14-notpretrained), so that no network is needed; both train in bf16. Theirs is timed from the first
batch asked for to the end of the epoch, ours with everything that the command does. Ends with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from variants import timed

PEER = """
import json, sys, time
import lightly_train
from pytorch_lightning import Trainer

out, data, method, batch_size, size_px, student = sys.argv[1:]
seconds = []
fit = Trainer.fit

def timed_fit(self, *args, **kwargs):
    started = time.monotonic()
    fit(self, *args, **kwargs)
    seconds.append(time.monotonic() - started)

Trainer.fit = timed_fit
lightly_train.pretrain(
    out=out, data=data, model="timm/" + student, method=method, epochs=1, batch_size=int(batch_size), num_workers=2,
    method_args={"teacher": "dinov2/vitb14-notpretrained"}, precision="bf16-mixed", accelerator="cpu", seed=0,
    transform_args={"image_size": (int(size_px), int(size_px))},
)
print(json.dumps(seconds[-1]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--peer", required=True, help="a Python that can import lightly_train")
    parser.add_argument("--methods", default="distillationv1,distillation")
    parser.add_argument("--student", default="mobilenetv4_s")
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()

    from edgeembed.data.manifest import read_manifest, write_manifest
    from edgeembed.student.aliases import timm_model_name

    manifest = read_manifest(asked.manifest)
    rows = manifest.rows("train")[: asked.images]
    common = [f"image.size_px={asked.size_px}", f"train.batch_size={asked.batch_size}"]
    found: dict[str, list[float]] = {"store": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for row in rows:
            os.symlink(Path(manifest.files[row]).resolve(), folder / f"images/{row}{Path(manifest.files[row]).suffix}")
        write_manifest(folder / "train.parquet", manifest.take(rows))

        def edgeembed(*words: str, keys: list[str]) -> float:
            options = [word for key in [*common, *keys] for word in ("--set", key)]
            command = [sys.executable, "-m", "edgeembed", *words, "--data", str(folder / "train.parquet"), *options]
            return timed(lambda: subprocess.run(command, check=True))

        teacher = ["backbone.name=vit_base_patch16_224", "train.max_steps=1", "eval.every_steps=0"]
        teacher += ["image.train_size_px=null", "image.start_size_px=null", "train.batch_size=4"]
        edgeembed("teacher-train", "--recipe", "grocery_cpu", "--out", str(folder / "teacher"), keys=teacher)
        for round_ in range(asked.rounds):
            out = folder / f"ours-{round_}"
            seed = [f"targets.seed={round_}", "targets.views=1", "targets.precision=bf16"]
            from_teacher = ["--teacher", str(folder / "teacher")]
            found["store"].append(edgeembed("targets", "build", *from_teacher, "--views", "1", keys=seed))
            one_epoch = [*seed, "student.weights=none", "train.epochs=1", "train.precision=bf16", "eval.every_steps=0"]
            distil = ["distill", "--student", asked.student, *from_teacher, "--out", str(out)]
            found["ours"].append(edgeembed(*distil, keys=one_epoch))
            for method in asked.methods.split(","):
                arguments = [str(folder / f"{method}-{round_}"), str(folder / "images"), method]
                arguments += [str(asked.batch_size), str(asked.size_px), timm_model_name(asked.student)]
                peer = subprocess.run(
                    [asked.peer, "-c", PEER, *arguments], check=True, stdout=subprocess.PIPE, text=True
                )
                found.setdefault(method, []).append(float(json.loads(peer.stdout.splitlines()[-1])))
    middle = {name: statistics.median(seconds) for name, seconds in found.items()}
    images = len(rows)
    result = {
        "student": asked.student,
        "images": images,
        "seconds": {name: round(seconds, 1) for name, seconds in middle.items()},
        "images_per_second": {
            "ours": round(images / middle["ours"], 1),
            "ours, store built first": round(images / (middle["ours"] + middle["store"]), 1),
            **{f"lightly-train {method}": round(images / middle[method], 1) for method in asked.methods.split(",")},
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
