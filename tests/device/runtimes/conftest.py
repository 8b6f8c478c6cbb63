"""Bundles of tiny networks, of which the exporter's gate says in which runtimes they hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeembed.device.checksummed_json import write_checksummed
from edgeembed.device.runtimes import fastest_cache
from tests.device.conftest import tiny_network, write_manifest

PARITY = {"cosine_p1": 1.0, "cosine_p50": 1.0, "max_abs": 0.0, "images": 8}


def say_quantised(folder: Path, quantisation: dict[str, Any] | None) -> None:
    """Writes into bundle.json how the int8 file was made."""
    path = folder / "bundle.json"
    value = json.loads(path.read_text())
    value.pop("seal", None)
    for file in value["files"]:
        if file["precision"] == "int8":
            file["quantisation"] = quantisation
    write_checksummed(path, value)


def say_verified(folder: Path, verdicts: dict[str, bool]) -> None:
    """Writes into bundle.json, for each file by its path, whether it passed in OpenVINO."""
    path = folder / "bundle.json"
    value = json.loads(path.read_text())
    value.pop("seal", None)
    for file in value["files"]:
        if file["path"] in verdicts:
            file["runtimes"] = {"openvino": {"parity": PARITY, "passed": verdicts[file["path"]]}}
    write_checksummed(path, value)


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """A bundle of an fp32 and an int8 file; by default fp32 passed in OpenVINO and int8 did not.

    The int8 file has 7-bit weights, as far as bundle.json says, and gives the fp32 file's embeddings unless `differs`.
    """

    def make(
        name: str = "tiny",
        *,
        verdicts: dict[str, bool] | None = None,
        differs: bool = False,
        reduce_range: bool = True,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for precision in ("fp32", "int8"):
            tiny_network(folder / f"model.{precision}.onnx", seed=int(differs and precision == "int8"))
        write_manifest(folder, name=name)
        say_quantised(folder, {"reduce_range": reduce_range})
        say_verified(folder, {"model.fp32.onnx": True, "model.int8.onnx": False} if verdicts is None else verdicts)
        return folder

    return make


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure of these tests is about time, so none takes any."""
    for name, value in {"ROUNDS": 1, "WARMUP_SECONDS": 0, "TIMED_SECONDS": 0}.items():
        monkeypatch.setattr(fastest_cache, name, value)
