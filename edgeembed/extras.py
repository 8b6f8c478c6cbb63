"""Which extra brings a package that the base install leaves out, so that an error can name the command for it."""

from __future__ import annotations

BASE = ("numpy", "onnxruntime", "PIL", "pydantic", "safetensors", "typer")
SMALLEST_EXTRA = {
    "cuda": "tensorrt",
    "cv2": "train",
    "faiss": "bench",
    "huggingface_hub": "train",
    "jinja2": "bench",
    "matplotlib": "bench",
    "onnx": "export",
    "onnxscript": "export",
    "onnxsim": "export",
    "open_clip": "train",
    "openvino": "openvino",
    "psutil": "train",
    "pyarrow": "bench",
    "rich": "bench",
    "sympy": "export",
    "tensorboard": "train",
    "tensorrt": "tensorrt",
    "timm": "train",
    "torch": "train",
    "torchvision": "train",
    "yaml": "train",
}
"""By the name that is imported. Where several extras bring a package, the one that brings the fewest others."""

WITH_TORCH = ("train", "export")
"""Extras with which pip downloads gigabytes of CUDA libraries, unless it is told where torch's CPU wheels are."""


def is_known(module: str) -> bool:
    """Whether a module, by the name that is imported, belongs to a package that this one asks for."""
    package = module.partition(".")[0]
    return package in BASE or package in SMALLEST_EXTRA


def needed(module: str) -> str:
    """The end of a sentence for a package that is not installed: `needs ..., which ... provides`, and the command."""
    package = module.partition(".")[0]
    if package not in SMALLEST_EXTRA and package not in BASE:
        return f"needs the package {package}"
    if package in BASE:
        return f"needs the package {package}, which the base install provides: in a clone of edgeembed, pip install ."
    extra = SMALLEST_EXTRA[package]
    without_gpu = " (without an NVIDIA GPU, as README says under Installing)" if extra in WITH_TORCH else ""
    return (
        f"needs the package {package}, which the extra [{extra}] provides: "
        f"in a clone of edgeembed, pip install '.[{extra}]'{without_gpu}"
    )
