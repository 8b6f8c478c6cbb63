"""A tiny but real bundle, and photographs of the kinds that people have on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeembed.device.bundle import write_bundle
from edgeembed.device.bundle_schema import SCHEMA, BundleManifest
from edgeembed.files import sha256_of

SIZE_PX, DIM = 32, 64


def tiny_network(path: Path, *, seed: int = 0, batch: int | str = "N", scale: float = 1.0, norm: int = 2) -> None:
    """Colour means of a 4 x 4 grid through a random projection: near-duplicates stay near, all else differs."""
    rng = np.random.default_rng(seed)
    constants = {
        "shift": np.array(127.5, np.float32),
        "weight": (scale * rng.standard_normal((48, DIM))).astype(np.float32),
        "bias": (scale * rng.standard_normal(DIM)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "shift"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["nchw"], ["grid"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["grid"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["projected"]),
        helper.make_node("Add", ["projected", "bias"], ["biased"]),
        helper.make_node("LpNormalization", ["biased"], ["embedding"], axis=1, p=norm),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, SIZE_PX, SIZE_PX, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, DIM])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def write_manifest(folder: Path, *, name: str = "tiny", space_id: str = "space-a", dim: int = DIM) -> None:
    """bundle.json and card, with the checksums of the folder's `model.<precision>.onnx` and what lies beside them."""
    files = [
        {
            "path": path.name,
            "runtime": "onnxruntime",
            "precision": path.name.split(".")[1],
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
            "opset": 18,
        }
        for path in sorted(folder.glob("model.*"))
    ]
    value = {
        "schema": SCHEMA,
        "name": name,
        "space_id": space_id,
        "embedding": {"dim": dim},
        "input": {"height": SIZE_PX, "width": SIZE_PX},
        "files": files,
        "licence": "Apache-2.0",
    }
    write_bundle(folder, BundleManifest.model_validate(value), f"# {name}\n")


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Writes a bundle of its own for a test that damages it."""

    def make(name: str = "tiny", *, space_id: str = "space-a", seed: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for precision in ("fp32", "int8"):
            tiny_network(folder / f"model.{precision}.onnx", seed=seed)
        write_manifest(folder, name=name, space_id=space_id)
        return folder

    return make


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tests only read."""
    folder = tmp_path_factory.mktemp("bundle")
    tiny_network(folder / "model.fp32.onnx")
    write_manifest(folder)
    return folder


def pattern(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """Large coloured patches, unlike those of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photo<i>.png`, six that differ; `odd/`, modes and orientations; `bad/`, what cannot be decoded."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "odd").mkdir()
    (folder / "bad").mkdir()
    for seed in range(6):
        pattern(seed).save(folder / f"photo{seed}.png")
    odd, picture = folder / "odd", pattern(0)
    picture.save(odd / "colour.jpg", quality=95)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(odd / "rotated.jpg", quality=95, exif=rotated)
    picture.convert("L").save(odd / "grey.jpg", quality=95)
    picture.convert("CMYK").save(odd / "cmyk.jpg", quality=95)
    picture.convert("P").save(odd / "palette.png")
    with_alpha = picture.convert("RGBA")
    with_alpha.putalpha(Image.linear_gradient("L").resize(picture.size))
    with_alpha.save(odd / "alpha.png")
    whole = (odd / "colour.jpg").read_bytes()
    (folder / "bad" / "corrupt.jpg").write_bytes(b"\xff\xd8\xff not a photograph")
    (folder / "bad" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bad" / "empty.png").write_bytes(b"")
    return folder
