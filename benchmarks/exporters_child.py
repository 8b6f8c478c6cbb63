"""One contestant of exporters.py in a process of its own: opens it, then measures when it is told to.

It sleeps on a pipe while others are measured, so that nobody's waiting threads take anybody's core. Preprocessing is
written as the documentation of each peer shows it.
Usage: PYTHON benchmarks/exporters_child.py CONTESTANT FOLDER THREADS; commands and answers are JSON lines.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from exporters_files import job, torch_model
from PIL import Image

WARM_UP = 3
MIN_CALLS = 5


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What runs one image: `pixels` from (H, W, 3) uint8, `jpeg` from a file, `tensor` from what `prepare` made."""

    precision: str
    pixels: Callable[[np.ndarray], np.ndarray]
    jpeg: Callable[[str], np.ndarray]
    prepare: Callable[[np.ndarray], Any] | None = None
    tensor: Callable[[Any], np.ndarray] | None = None
    same_weights: bool = True
    note: str = ""


def open_torch(folder: Path, threads: int, *, compiled: bool = False) -> Opened:
    import torch
    from torchvision import transforms

    facts = job(folder)
    torch.set_num_threads(threads)
    model = torch_model(folder)
    network = torch.compile(model) if compiled else model
    normalise = [transforms.ToTensor(), transforms.Normalize(facts["mean"], facts["std"])]
    from_pixels = transforms.Compose(normalise)
    from_image = transforms.Compose([transforms.Resize((facts["size_px"], facts["size_px"])), *normalise])

    def tensor(image_BCHW: Any) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(network(image_BCHW).numpy())

    return Opened(
        precision="fp32",
        prepare=lambda pixels_HWC: from_pixels(pixels_HWC)[None],
        tensor=tensor,
        pixels=lambda pixels_HWC: tensor(from_pixels(pixels_HWC)[None]),
        jpeg=lambda path: tensor(from_image(Image.open(path).convert("RGB"))[None]),
    )


def open_compiled(folder: Path, threads: int) -> Opened:
    return open_torch(folder, threads, compiled=True)


def open_frozen(folder: Path, threads: int) -> Opened:
    """With the weights frozen into the compiled network, which folds norms and packs weights."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    return open_torch(folder, threads, compiled=True)


def open_onnx(folder: Path, threads: int, file: str, precision: str, *, same_weights: bool = True) -> Opened:
    """A graph that takes normalised pixels, with NumPy in front of it."""
    import onnxruntime

    facts = job(folder)
    mean, std = (np.array(facts[key], np.float32) for key in ("mean", "std"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def prepare(pixels_HWC: np.ndarray) -> np.ndarray:
        scaled_HWC = (pixels_HWC.astype(np.float32) / 255 - mean) / std
        return np.ascontiguousarray(scaled_HWC.transpose(2, 0, 1)[None])

    def tensor(image_BCHW: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {name: image_BCHW})[0])

    return Opened(
        precision=precision,
        prepare=prepare,
        tensor=tensor,
        pixels=lambda pixels_HWC: tensor(prepare(pixels_HWC)),
        jpeg=lambda path: tensor(prepare(read_resized(path, facts["size_px"]))),
        same_weights=same_weights,
    )


def open_openvino(
    folder: Path, threads: int, file: str, *, exact: bool = False, int8: bool = False, ours: bool = False
) -> Opened:
    """A graph in OpenVINO; a peer's gets its normalisation from OpenVINO's own PrePostProcessor."""
    import openvino as ov

    facts = job(folder)
    core = ov.Core()
    model = core.read_model(file if ours else folder / file)
    if not ours:
        steps = ov.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NCHW"))
        scaled = steps.input().preprocess().convert_element_type(ov.Type.f32)
        scaled.mean([255 * value for value in facts["mean"]]).scale([255 * value for value in facts["std"]])
        model = steps.build()
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if exact:
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = core.compile_model(model, "CPU", settings)
    floats = {"f32": "fp32"}.get(kind := compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(), kind)
    request = compiled.create_infer_request()

    def pixels(pixels_HWC: np.ndarray) -> np.ndarray:
        request.infer([pixels_HWC[None]], share_inputs=True)
        return np.array(request.get_output_tensor().data)

    return Opened(
        precision=floats if not int8 else "int8" if floats == "fp32" else f"int8 and {floats}",
        pixels=pixels,
        jpeg=lambda path: pixels(read_resized(path, facts["size_px"])),
    )


def read_resized(path: str | Path, size_px: int) -> np.ndarray:
    """Decoded whole and resized by Pillow, as most would write it: (H, W, 3) uint8."""
    return np.asarray(Image.open(path).convert("RGB").resize((size_px, size_px), Image.Resampling.BILINEAR))


def open_ours(folder: Path, threads: int, precision: str, *, runtime: str = "onnxruntime") -> Opened:
    """The bundle as a user opens it; a runtime that has no session of ours yet gets the file as it is."""
    from edgeembed import Embedder
    from edgeembed.device.images import load_pixels
    from edgeembed.device.runtimes import RUNTIMES, open_session

    embedder = Embedder(job(folder)["bundle"], precision=precision, threads=threads)
    if runtime == "onnxruntime":
        return Opened(
            precision=precision,
            pixels=lambda pixels_HWC: embedder.embed_pixels(pixels_HWC[None]),
            jpeg=lambda path: embedder.embed(path),
        )
    if runtime not in RUNTIMES:
        opened = open_openvino(
            folder, threads, str(embedder.file), exact=precision == "fp32", int8=precision == "int8", ours=True
        )
        run, note = opened.pixels, f"file read by {runtime} itself; {opened.note}".removesuffix("; ")
    else:
        session, note = open_session(embedder.file, runtime=runtime, threads=threads), ""

        def run(pixels_HWC: np.ndarray) -> np.ndarray:
            return session.run(pixels_HWC[None])

    side_px = embedder.height
    return Opened(
        precision=precision, pixels=run, jpeg=lambda path: run(load_pixels(path, side_px, side_px)), note=note
    )


Contestant = tuple[str, tuple[str, ...], Callable[[Path, int], Opened]]

TIMM, DYNAMO = "timm/model.onnx", "timm_dynamo/model.onnx"
STATIC, DYNAMIC = "optimum_static/model_quantized.onnx", "optimum_dynamic/model_quantized.onnx"
VIT_O2, VIT_INT8 = "optimum_vit/O2/model_optimized.onnx", "optimum_vit/int8/model_quantized.onnx"

# What is printed, the ways of exporters_files.py that must have worked, and how it is opened.
CONTESTANTS: dict[str, Contestant] = {
    "torch": ("torch, eager", (), open_torch),
    "compile": ("torch.compile", (), open_compiled),
    "freeze": ("torch.compile, weights frozen", (), open_frozen),
    "timm": ("timm's ONNX export, ONNX Runtime", ("timm",), lambda *at: open_onnx(*at, TIMM, "fp32")),
    "dynamo": (
        "timm's ONNX export, --dynamo, ONNX Runtime",
        ("timm_dynamo",),
        lambda *at: open_onnx(*at, DYNAMO, "fp32"),
    ),
    "vit_o2": (
        "transformers' ViT, optimum O2, ONNX Runtime (random weights)",
        ("optimum_vit",),
        lambda *at: open_onnx(*at, VIT_O2, "fp32", same_weights=False),
    ),
    "ov": ("OpenVINO's converter, default hints", ("openvino",), lambda *at: open_openvino(*at, "openvino.xml")),
    "ov_f32": (
        "OpenVINO's converter, INFERENCE_PRECISION_HINT f32",
        ("openvino",),
        lambda *at: open_openvino(*at, "openvino.xml", exact=True),
    ),
    "ours": ("edgeembed, ONNX Runtime", (), lambda *at: open_ours(*at, "fp32")),
    "ours_ov": ("edgeembed, OpenVINO", (), lambda *at: open_ours(*at, "fp32", runtime="openvino")),
    "static": (
        "timm's ONNX export, optimum's static int8, ONNX Runtime",
        ("timm", "optimum_static"),
        lambda *at: open_onnx(*at, STATIC, "int8"),
    ),
    "dynamic": (
        "timm's ONNX export, optimum's dynamic int8, ONNX Runtime",
        ("timm", "optimum_dynamic"),
        lambda *at: open_onnx(*at, DYNAMIC, "int8"),
    ),
    "vit_int8": (
        "transformers' ViT, optimum's dynamic int8, ONNX Runtime (random weights)",
        ("optimum_vit",),
        lambda *at: open_onnx(*at, VIT_INT8, "int8", same_weights=False),
    ),
    "nncf": (
        "OpenVINO's converter, NNCF int8, default hints",
        ("openvino", "nncf"),
        lambda *at: open_openvino(*at, "nncf.xml", int8=True),
    ),
    "nncf_f32": (
        "OpenVINO's converter, NNCF int8, INFERENCE_PRECISION_HINT f32",
        ("openvino", "nncf"),
        lambda *at: open_openvino(*at, "nncf.xml", int8=True, exact=True),
    ),
    "ours_int8": ("edgeembed, ONNX Runtime", (), lambda *at: open_ours(*at, "int8")),
    "ours_ov_int8": ("edgeembed, OpenVINO", (), lambda *at: open_ours(*at, "int8", runtime="openvino")),
}


def cosine_p50(embedding_ND: Sequence[np.ndarray], reference_ND: np.ndarray) -> float:
    made_ND = np.stack([np.asarray(embedding).reshape(-1) for embedding in embedding_ND])
    made_ND = made_ND / np.linalg.norm(made_ND, axis=1, keepdims=True)
    return float(np.median((made_ND * reference_ND).sum(axis=1)))


def measure(run: Callable[[Any], object], inputs: Sequence[Any], seconds: float) -> dict[str, float]:
    """Median milliseconds of a call, over at least `seconds`, with the inputs in turn."""
    for item in inputs[:WARM_UP]:
        run(item)
    times: list[int] = []
    until = time.perf_counter() + seconds
    for item in itertools.cycle(inputs):
        started = time.perf_counter_ns()
        run(item)
        times.append(time.perf_counter_ns() - started)
        if len(times) >= MIN_CALLS and time.perf_counter() > until:
            return {"p50_ms": statistics.median(times) / 1e6, "calls": len(times)}
    raise AssertionError("inputs is empty")


def serve(name: str, folder: Path, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not get between the answers
    if threads < len(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    opened = CONTESTANTS[name][2](folder, threads)
    pixels_NHWC = list(np.load(folder / "pixels.npy"))
    inputs: dict[str, tuple[Callable[[Any], object], Sequence[Any]]] = {
        "pixels": (opened.pixels, pixels_NHWC),
        "jpeg": (opened.jpeg, job(folder)["images"]),
    }
    if opened.prepare is not None and opened.tensor is not None:
        inputs["tensor"] = (opened.tensor, [opened.prepare(each) for each in pixels_NHWC])
    reference_ND = np.load(folder / "reference.npy")
    cosines = {
        mode: cosine_p50([run(each) for each in given], reference_ND) if opened.same_weights else None
        for mode, (run, given) in inputs.items()
    }
    ready = {"precision": opened.precision, "modes": [*inputs], "cosine": cosines, "note": opened.note}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(measure(*inputs[asked["mode"]], asked["seconds"])), file=answers, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
