"""Writes the files of one way that a user would choose instead of `edgeembed export`; a step of exporters.py.

Each way is the one that its own documentation shows, and runs in a process of its own: optimum and nncf may live in
another environment, which needs no edgeembed.
Usage: PYTHON benchmarks/exporters_files.py WAY FOLDER, where FOLDER holds job.json and what exporters.py put beside it.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def torch_model(folder: Path) -> Any:
    """The run's network as a plain module: normalised pixels (B, 3, H, W) to unit vectors, branches folded by timm."""
    from timm.layers.config import set_exportable
    from timm.utils.model import reparameterize_model
    from torch import nn

    from edgeembed.network.model_files import load_model

    with set_exportable(True):
        model, _ = load_model(Path(job(folder)["run"]))
    return reparameterize_model(nn.Sequential(model.backbone, model.neck)).eval()


def job(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "job.json").read_text()))


def calibration(folder: Path) -> Iterator[np.ndarray]:
    """Normalised float32 images (3, H, W)."""
    facts = job(folder)
    mean, std = (np.array(facts[key], np.float32) for key in ("mean", "std"))
    for pixels_HWC in np.load(folder / "calibration.npy", mmap_mode="r"):
        yield np.ascontiguousarray(((pixels_HWC.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1))


def reference(folder: Path) -> None:
    """What torch makes of the images, to hold the others against; and the shape of the network if it is a ViT."""
    import torch
    from timm.models import VisionTransformer

    from edgeembed.network.model_files import load_model

    facts = job(folder)
    model, _ = load_model(Path(facts["run"]))
    backbone = model.backbone
    facts["vit"] = None
    if isinstance(backbone, VisionTransformer):
        facts["vit"] = {
            "image_size": facts["size_px"],
            "patch_size": backbone.patch_embed.patch_size[0],
            "hidden_size": backbone.embed_dim,
            "num_hidden_layers": len(backbone.blocks),
            "num_attention_heads": backbone.blocks[0].attn.num_heads,
            "intermediate_size": backbone.blocks[0].mlp.fc1.out_features,
        }
    (folder / "job.json").write_text(json.dumps(facts))
    pixels_NHWC = torch.from_numpy(np.load(folder / "pixels.npy"))
    with torch.inference_mode():
        np.save(folder / "reference.npy", model(pixels_NHWC.permute(0, 3, 1, 2)).numpy())


def timm(folder: Path, *, dynamo: bool = False) -> None:
    """timm's `onnx_export`, with its default exporter or with `--dynamo`."""
    from timm.utils.onnx import onnx_export

    size = job(folder)["size_px"]
    out = folder / ("timm_dynamo" if dynamo else "timm") / "model.onnx"
    out.parent.mkdir(exist_ok=True)
    onnx_export(torch_model(folder), str(out), batch_size=2, input_size=(3, size, size), use_dynamo=dynamo)


def timm_dynamo(folder: Path) -> None:
    timm(folder, dynamo=True)


def openvino(folder: Path) -> None:
    """`openvino.convert_model` of the module for one image; saved in float32, as it would be compiled unsaved."""
    import openvino as ov
    import torch

    size = job(folder)["size_px"]
    shape = [1, 3, size, size]
    converted = ov.convert_model(torch_model(folder), example_input=torch.zeros(shape), input=shape)
    ov.save_model(converted, folder / "openvino.xml", compress_to_fp16=False)


def nncf(folder: Path) -> None:
    """`nncf.quantize` of the converted model; with the type that its documentation asks for on transformers."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(folder / "openvino.xml")
    kind = nncf.ModelType.TRANSFORMER if job(folder)["vit"] else None
    images = nncf.Dataset(list(calibration(folder)), lambda image_CHW: image_CHW[None])
    ov.save_model(nncf.quantize(model, images, model_type=kind), folder / "nncf.xml", compress_to_fp16=False)


def optimum_static(folder: Path) -> None:
    """`ORTQuantizer`, ranges from images, on the file that timm wrote."""
    from onnxruntime.quantization import CalibrationMethod
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig, CalibrationConfig

    config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    quantizer = ORTQuantizer.from_pretrained(folder / "timm", file_name="model.onnx")
    images = [{"input0": image_CHW} for image_CHW in calibration(folder)]
    described = CalibrationConfig("images", "none", "train", len(images), CalibrationMethod.MinMax)
    ranges = quantizer.fit(images, described, folder / "augmented.onnx", config.operators_to_quantize)
    quantizer.quantize(config, folder / "optimum_static", calibration_tensors_range=ranges)


def optimum_dynamic(folder: Path) -> None:
    """`ORTQuantizer`, ranges found while running, on the file that timm wrote."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    quantizer = ORTQuantizer.from_pretrained(folder / "timm", file_name="model.onnx")
    quantizer.quantize(config, folder / "optimum_dynamic")


def optimum_vit(folder: Path) -> None:
    """A transformers ViT of the same shape with random weights, by optimum's export; fused by `ORTOptimizer` at O2 (O3
    would round GELU), and in int8 by `ORTQuantizer` (dynamic, what its documentation shows for transformers)."""
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTOptimizer, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoOptimizationConfig, AutoQuantizationConfig
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    shape = job(folder)["vit"]
    if not shape:
        sys.exit("not a ViT: transformers has no such network")
    out = folder / "optimum_vit"
    ViTModel(ViTConfig(**shape), add_pooling_layer=False).save_pretrained(out / "torch")
    ViTImageProcessor(size={"height": shape["image_size"], "width": shape["image_size"]}).save_pretrained(out / "torch")
    main_export(str(out / "torch"), out / "onnx", task="feature-extraction", do_validation=False)
    model = ORTModelForFeatureExtraction.from_pretrained(out / "onnx", file_name="model.onnx")
    ORTOptimizer.from_pretrained(model).optimize(AutoOptimizationConfig.O2(), out / "O2")
    quantizer = ORTQuantizer.from_pretrained(out / "onnx", file_name="model.onnx")
    quantizer.quantize(AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True), out / "int8")


ORDER = (reference, timm, timm_dynamo, openvino, nncf, optimum_static, optimum_dynamic, optimum_vit)
WAYS = {way.__name__: way for way in ORDER}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    WAYS[sys.argv[1]](Path(sys.argv[2]))
