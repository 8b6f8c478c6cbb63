"""model.json: what is written is read again, files of earlier versions load, wrong values are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeembed.config import load_recipe
from edgeembed.errors import UserError
from edgeembed.model_json import (
    Architecture,
    ModelOrigin,
    TeacherOrigin,
    TrainingData,
    parse,
    read_model_json,
    read_origin,
    to_json,
    write_model_json,
)
from edgeembed.network.model import EnsembleModel, build_model, network_from_description
from edgeembed.network.model_files import load_model
from edgeembed.network.space_id import space_id
from edgeembed.teacher.recipe import TeacherRecipe
from tests.conftest import Outcome

KEYS_OF_A_NETWORK = ["schema", "architecture", "input", "embedding", "inference"]
KEYS_OF_AN_ARCHITECTURE = ["library", "backbone", "pooling", "patch_stride", "dropout", "batch_norm", "params"]


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(json.dumps(values))
    return path


def test_runs_write_the_documented_keys_in_their_order(tiny_teacher: Path, tiny_student: Path) -> None:
    teacher, student = (json.loads((run / "model.json").read_text()) for run in (tiny_teacher, tiny_student))
    assert list(teacher) == [*KEYS_OF_A_NETWORK, "role", "space_id", "data", "weights", "precision", "device"]
    expected = ["role", "space_id", "alias", "data", "weights", "precision", "device", "teacher"]
    assert list(student) == [*KEYS_OF_A_NETWORK, *expected]
    for values in (teacher, student):
        assert list(values["architecture"]) == KEYS_OF_AN_ARCHITECTURE
        assert list(values["input"]) == ["height", "width", "colour", "resize", "mean", "std"]
        assert list(values["embedding"]) == ["dim", "normalised", "metric", "ordered"]
    assert list(teacher["data"]) == ["fingerprint", "manifest", "images", "classes", "unreadable"]
    assert list(student["data"]) == ["fingerprint", "manifest", "images", "unreadable"]
    assert list(student["teacher"]) == ["path", "backbone", "params", "macs", "data"]
    assert student["teacher"]["data"] == teacher["data"]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    network = build_model("test_resnet", weights="none", size_px=32, dim=8, dropout=0.25)
    for model in (network, EnsembleModel([network, network], [1.0, 0.5])):
        origin = ModelOrigin(role="teacher", space_id="abc", data=TrainingData(images=7), weights="none")
        write_model_json(tmp_path / "model.json", model.describe(), origin)
        assert read_model_json(tmp_path / "model.json") == (model.describe(), origin)
    ensemble = json.loads((tmp_path / "model.json").read_text())
    assert list(ensemble) == ["schema", "architecture", "input", "embedding", "role", "space_id", "data", "weights"]
    assert list(ensemble["architecture"]) == ["library", "backbone", "weights", "members", "params"]
    assert ensemble["embedding"] == {"dim": 16, "normalised": True, "metric": "cosine"}


def test_a_network_is_built_again_from_its_description() -> None:
    network = build_model("test_vit", weights="none", size_px=64, dim=8, dropout=0.25, patch_stride=12, batch_norm=True)
    network.flip, network.scales, network.keep_aspect, network.pca_rotated = True, (0.75, 1.0), True, True
    assert network_from_description(network.describe()).describe() == network.describe()
    other = build_model("test_resnet", weights="none", size_px=64, dim=4, dropout=0.0, pooling="gem")
    ensemble = EnsembleModel([network, other], [1.0, 0.5])
    assert network_from_description(ensemble.describe()).describe() == ensemble.describe()


def test_files_of_earlier_versions_load(tmp_path: Path) -> None:
    earliest = {
        "schema": "edgeembed-model/1",
        "architecture": {"library": "timm", "backbone": "test_resnet", "dropout": 0.1},
        "input": {"height": 32, "width": 32, "colour": "RGB", "resize": "squash-bilinear"},
        "embedding": {"dim": 8, "normalised": True, "metric": "cosine"},
        "role": "student",
        "space_id": "abc",
        "teacher": {"path": "runs/teacher", "backbone": "resnet18"},
        "a key of a later version": {"is": "ignored"},
    }
    description, origin = read_model_json(write(tmp_path / "model.json", earliest))
    model = network_from_description(description)
    assert (model.dim, model.size_px, model.pooling, model.flip) == (8, 32, "default", False)  # type: ignore[union-attr]
    assert origin == ModelOrigin(
        role="student", space_id="abc", teacher=TeacherOrigin(path="runs/teacher", backbone="resnet18")
    )


def change(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *groups, last = key.split(".")
    for group in groups:
        values = values[group]
    if value is ...:
        del values[last]
    else:
        values[last] = value
    return values


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("embedding.dim", "many", "embedding.dim: 'many': Input should be a valid integer"),
        ("architecture.dropout", None, "architecture.dropout: None: Input should be a valid number"),
        ("architecture.pooling", "max", "architecture.pooling: 'max': Input should be 'default' or 'gem'"),
        ("architecture.backbone", ..., "architecture.backbone: missing"),
        ("input.height", [64], r"input.height: \[64\]: Input should be a valid integer"),
        ("inference.scales", "1", "inference.scales: '1': Input should be a valid tuple"),
        ("space_id", ..., "space_id: missing"),
        ("space_id", 7, "space_id: 7: Input should be a valid string"),
        ("data.images", "many", "data.images: 'many': Input should be a valid integer"),
        ("input", ..., "input: missing"),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_a_remedy(
    tiny_teacher: Path, tmp_path: Path, key: str, value: Any, told: str
) -> None:
    values = json.loads((tiny_teacher / "model.json").read_text())
    change(values, key, value)
    path = write(tmp_path / "model.json", values)
    with pytest.raises(UserError, match=rf"model\.json: {told}.*: restore it, or train the run again") as caught:
        load_model(tmp_path)
    assert str(caught.value).startswith(str(path))


def test_another_schema_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    values = json.loads((tiny_teacher / "model.json").read_text())
    path = write(tmp_path / "model.json", {**values, "schema": "edgeembed-model/9"})
    with pytest.raises(UserError, match="schema 'edgeembed-model/9', this version reads 'edgeembed-model/1'"):
        read_model_json(path)


def test_commands_name_the_wrong_key_in_one_line(
    edgeembed: Callable[..., Outcome], tiny_teacher: Path, tmp_path: Path
) -> None:
    values = json.loads((tiny_teacher / "model.json").read_text())
    path = write(tmp_path / "model.json", {**values, "role": ["teacher"]})
    outcome = edgeembed("export", tmp_path, "--out", tmp_path / "bundle")
    assert outcome.code == 2
    assert outcome.stderr.splitlines()[-1].startswith(
        f"error: {path}: role: ['teacher']: Input should be a valid string"
    )


def test_a_file_of_another_program_has_no_role(tmp_path: Path) -> None:
    path = write(tmp_path / "model.json", {"format": "layers-model", "weightsManifest": []})
    assert read_origin(path) == ModelOrigin()


def test_the_default_pooling_of_earlier_versions_was_called_own(tiny_teacher: Path, tmp_path: Path) -> None:
    assert parse(Architecture, {"backbone": "resnet18", "pooling": "own"}, "test").pooling == "default"
    values = json.loads((tiny_teacher / "model.json").read_text())
    assert values["architecture"]["pooling"] == "default"
    values["architecture"]["pooling"] = "own"
    write(tmp_path / "model.json", values)
    (tmp_path / "model.safetensors").write_bytes((tiny_teacher / "model.safetensors").read_bytes())
    model, origin = load_model(tmp_path)
    assert to_json(model.describe().architecture)["pooling"] == "default"
    assert space_id(model) == origin.space_id == values["space_id"]


def test_recipes_of_earlier_versions_may_say_own(
    edgeembed: Callable[..., Outcome], tiny_teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("backbone: {pooling: own}")
    from_file = load_recipe(TeacherRecipe, kind="teacher", name=str(recipe))
    from_option = load_recipe(TeacherRecipe, kind="teacher", name="vit_h14", overrides=["backbone.pooling=own"])
    assert from_file.backbone.pooling == from_option.backbone.pooling == "default"

    run = tmp_path / "run"
    shutil.copytree(tiny_teacher, run)
    config = (run / "config.yaml").read_text()
    assert "pooling: default" in config
    (run / "config.yaml").write_text(config.replace("pooling: default", "pooling: own"))
    outcome = edgeembed("teacher-train", "--resume", run)
    assert outcome.code == 0, outcome.stderr
    assert "already finished, nothing to resume" in caplog.text


def test_space_ids_are_those_of_earlier_versions() -> None:
    """Computed by the version that wrote `pooling: own` and described networks as dictionaries."""
    for options, expected in (
        ({}, "d89cebe0ce1b9b36"),
        ({"pooling": "gem", "batch_norm": True}, "b8c634bddb5a222a"),
    ):
        model = build_model("test_resnet", weights="none", size_px=32, dim=8, dropout=0.2, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            for number, (_, tensor) in enumerate(sorted(model.state_dict().items())):
                tensor.fill_(number)
        assert space_id(model) == expected
