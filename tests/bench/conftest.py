"""A bundle of one tiny ONNX file, a tiny data set and a tiny teacher: enough for a whole bench in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeembed.bench import roofline, run
from edgeembed.bench.latency import Budget
from edgeembed.data.manifest import Manifest, ManifestRow, build_manifest, write_manifest
from edgeembed.data.synthetic import render_view
from edgeembed.device.bundle_schema import SCHEMA_WITHOUT_CHECKSUM
from edgeembed.files import sha256_of, write_json
from edgeembed.model_json import ModelOrigin, TrainingData
from edgeembed.run_folder import RunFolder

SIZE_PX, DIM, SPACE = 32, 64, "0123456789abcdef"
CLASSES, VIEWS = 4, 4


def tiny_onnx(seed: int) -> onnx.ModelProto:
    """Pixels, pooled to 8 x 8 and projected: image uint8 (N, 32, 32, 3) to unit vectors (N, 64)."""
    rng = np.random.default_rng(seed)
    constants = {
        "middle": np.array(127.5, np.float32),
        "scale": np.array(1 / 127.5, np.float32),
        "flat": np.array([-1, 3 * 8 * 8], np.int64),
        "weight": rng.standard_normal((3 * 8 * 8, DIM)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "middle"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["nchw"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Reshape", ["pooled", "flat"], ["feature"]),
        helper.make_node("MatMul", ["feature", "weight"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embedding"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE_PX, SIZE_PX, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", DIM])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def write_bundle(folder: Path, *, space_id: str = SPACE, extra: dict[str, str] | None = None) -> Path:
    """A bundle as the exporter writes it, with model.fp32.onnx and, for each `extra` file, its runtime."""
    folder.mkdir(parents=True)
    onnx.save(tiny_onnx(0), folder / "model.fp32.onnx")
    runtimes = {"model.fp32.onnx": "onnxruntime", **(extra or {})}
    for name in extra or {}:
        (folder / name).write_bytes(b"not a network")
    files = [
        {
            "path": name,
            "runtime": runtime,
            "precision": name.split(".")[1],
            "sha256": sha256_of(folder / name),
            "bytes": (folder / name).stat().st_size,
        }
        for name, runtime in runtimes.items()
    ]
    write_json(
        folder / "bundle.json",
        {
            "schema": SCHEMA_WITHOUT_CHECKSUM,
            "name": folder.name,
            "space_id": space_id,
            "embedding": {"dim": DIM, "normalised": True, "metric": "cosine"},
            "input": {"height": SIZE_PX, "width": SIZE_PX},
            "files": files,
            "student": {"name": "tiny", "backbone": "tiny", "params": 12288, "macs": 12288, "role": "student"},
            "teacher": {"backbone": "resnet10t"},
        },
    )
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Four things in two domains, four views each: the first a query, the others the index; one file is broken."""
    root = tmp_path_factory.mktemp("data")
    rows = []
    for instance in range(CLASSES):
        for view in range(VIEWS):
            path = f"{instance}_{view}.jpg"
            render_view(seed=0, instance=instance, view=view, size_px=48).save(root / path)
            role = "query" if view == 0 else "index"
            rows.append(
                ManifestRow(path=path, label=f"thing{instance}", domain=f"d{instance % 2}", split="test", role=role)
            )
    (root / "broken.jpg").write_bytes(b"no image")
    rows.append(ManifestRow(path="broken.jpg", label="thing0", domain="d0", split="test", role="index"))
    built = build_manifest(root, rows, source="tiny")
    write_manifest(root / "manifest.parquet", built)
    return built


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from edgeembed.network.model import build_model
    from edgeembed.network.model_files import save_model

    folder = tmp_path_factory.mktemp("runs") / "teacher"
    torch.manual_seed(0)
    model = build_model("resnet10t", weights="none", size_px=SIZE_PX, dim=DIM, dropout=0.0)
    save_model(RunFolder(path=folder), model, ModelOrigin(role="teacher", space_id=SPACE, data=TrainingData()))
    return folder


@pytest.fixture(scope="session")
def hurried() -> Iterator[None]:
    """No figure of these tests is about time, so none takes any: smallest roofline, fewest samples."""
    least = Budget(min_samples=3, min_seconds=0, max_seconds=0, warmup_seconds=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "QUICK", {"budget": least, "file_budget": least, "teacher_budget": least})
        sizes = {"SIDE": 64, "TRIAL_SIDE": 32, "TRIAL_SECONDS": 0, "SECONDS_EACH": 0, "COPY_BYTES": 1000}
        for name, value in sizes.items():
            patch.setattr(roofline, name, value)
        yield
