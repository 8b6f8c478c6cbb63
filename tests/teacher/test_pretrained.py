"""Teachers without training: the PCA of a pretrained network's features, made once, and what students need of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from edgeembed.data.manifest import Manifest, read_manifest, write_manifest
from edgeembed.errors import UserError
from edgeembed.files import read_json
from edgeembed.network.model import EmbeddingModel, FeatureExtractor
from edgeembed.network.model_files import load_model
from edgeembed.network.space_id import space_id
from edgeembed.network.tensor_files import iterate_tensors, save_tensors
from edgeembed.teacher.pretrained_recipe import parse_pretrained_network
from edgeembed.training.embed import embed_files
from tests.conftest import TINY_STUDENT, Outcome, as_options

Run = Callable[..., Outcome]

NAME = "test_resnet"


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny network, as a file that was downloaded elsewhere."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_tensors(path, timm.create_model(NAME).state_dict())
    return path


@pytest.fixture(scope="module")
def imported(tiny_data: Path, weight_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeembed.cli import run

    out = tmp_path_factory.mktemp("imported") / "run"
    command = ["teacher-import", f"timm:{NAME}@{weight_file}", "--data", str(tiny_data), "--dim", "16"]
    assert run([*command, "--size-px", "32", "--workers", "0", "--out", str(out)]) == 0
    return out


def training_features(model: EmbeddingModel, manifest: Manifest, precision: str | None) -> torch.Tensor:
    """Computed in the precision of the import."""
    assert precision is not None
    files = [manifest.files[row] for row in manifest.training_rows()]
    extractor = FeatureExtractor(model)
    features, _ = embed_files(extractor, files, batch_size=8, workers=0, device="cpu", precision=precision)
    return torch.from_numpy(features).double()


def test_the_neck_is_the_pca_of_the_training_features(imported: Path, tiny_data: Path, weight_file: Path) -> None:
    model, origin = load_model(imported)
    assert isinstance(model, EmbeddingModel)
    assert (model.dim, model.size_px, model.pca_rotated) == (16, 32, True)
    feature_NF = training_features(model, read_manifest(tiny_data), origin.precision)
    centred_NF = feature_NF - feature_NF.mean(dim=0)
    # An independent oracle: the right singular vectors of the centred features.
    _, _, axis_FF = torch.linalg.svd(centred_NF, full_matrices=False)
    expected_ND = centred_NF @ axis_FF[:16].T
    neck = model.requires_grad_(False).neck.projection
    projected_ND = feature_NF @ neck.weight.double().T + neck.bias.double()
    # The sign of an axis is arbitrary, and small ones are uncertain: the cosines between images are compared.
    scale = float((expected_ND @ expected_ND.T).abs().max())
    difference_NN = projected_ND @ projected_ND.T - expected_ND @ expected_ND.T
    assert float(difference_NN.abs().max()) < 1e-3 * scale
    assert (projected_ND.var(dim=0).diff() <= 1e-6 * scale).all()
    axis_DD = neck.weight.double() @ neck.weight.double().T
    torch.testing.assert_close(axis_DD, torch.eye(16).double(), atol=1e-5, rtol=0.0)

    reference = timm.create_model(NAME, num_classes=0).eval()
    in_file = dict(iterate_tensors(weight_file))
    reference.load_state_dict({name: in_file[name] for name in reference.state_dict()})
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        settings = timm.get_pretrained_cfg(NAME)
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (settings.mean, settings.std))
        torch.testing.assert_close(FeatureExtractor(model)(image * 255), reference((image - mean) / std))
    assert (origin.role, origin.weights) == ("teacher", "file model.safetensors")
    assert origin.space_id == space_id(model)


def test_the_run_folder_holds_what_a_trained_teacher_leaves(imported: Path, tiny_data: Path) -> None:
    evaluation = read_json(imported / "eval.json")
    assert (evaluation["split"], evaluation["steps"]) == ("val", 0)
    assert 0.0 < evaluation["scores"]["map"] <= 1.0
    data = read_json(imported / "model.json")["data"]
    manifest = read_manifest(tiny_data)
    assert data["fingerprint"] == manifest.fingerprint
    assert (data["images"], data["unreadable"]) == (len(manifest.training_rows()), 0)
    assert set(read_json(imported / "inputs.json")) == {"data", "weights"}
    assert (imported / "environment.json").is_file()
    assert not (imported / "head.safetensors").exists()


@pytest.mark.training
def test_distill_makes_the_teacher_once_and_takes_it_again(
    edgeembed: Run,
    tiny_data: Path,
    weight_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = as_options([*TINY_STUDENT, "train.max_steps=1", "targets.views=1", "train.device=cpu"])
    command = ["distill", "--teacher", f"timm:{NAME}@{weight_file}", "--recipe", "quickstart", *keys]
    first = edgeembed(*command, "--data", tiny_data, "--out", "one")
    assert first.code == 0, first.stderr
    teacher = Path("runs") / f"timm-{NAME}"
    assert read_json(teacher / "model.json")["embedding"]["dim"] == 64
    written = (teacher / "model.safetensors").stat().st_mtime_ns
    # Its data are the default of the second student.
    with caplog.at_level(logging.INFO):
        second = edgeembed(*command, "--out", "two")
    assert second.code == 0, second.stderr
    assert f"teacher: {teacher} was made of this network and these data before: used as it is" in caplog.text
    assert (teacher / "model.safetensors").stat().st_mtime_ns == written
    spaces = {read_json(Path(run) / "model.json")["space_id"] for run in ("one", "two", teacher)}
    assert len(spaces) == 1


def test_class_centres_are_refused_before_the_teacher_is_made(
    edgeembed: Run, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["distill", "--teacher", f"timm:{NAME}@none", "--data", tiny_data, "--recipe", "grocery_cpu"]
    outcome = edgeembed(*command)
    assert outcome.code == 2
    assert outcome.stderr.strip().endswith("add --set loss.centre_kl=0")
    assert not Path("runs").exists()


def test_another_network_size_or_data_is_an_error_that_names_the_folder(
    edgeembed: Run, imported: Path, tiny_data: Path, weight_file: Path, tmp_path: Path
) -> None:
    same = ["teacher-import", f"timm:{NAME}@{weight_file}", "--data", tiny_data, "--dim", "16", "--out", imported]
    again = edgeembed(*same, "--json")
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout) == read_json(imported / "eval.json")
    manifest = read_manifest(tiny_data)
    fewer = tmp_path / "fewer.parquet"
    write_manifest(fewer, dataclasses.replace(manifest.take(np.arange(len(manifest) - 1)), root=manifest.root))
    for changed, named in (
        (["--size-px", "64"], "image.size_px is 32 in the run, 64 requested"),
        (["--dim", "8"], "neck.dim is 16 in the run, 8 requested"),
        (["--data", fewer], "data is "),
    ):
        outcome = edgeembed(*same, *changed)
        assert outcome.code == 2
        (message,) = outcome.stderr.splitlines()[-1:]
        assert named in message
        assert f"{imported}: holds another teacher" in message
        assert "remove it to import the network again, or import it into another folder" in message


def test_a_trained_teacher_is_not_taken_for_an_imported_one(
    edgeembed: Run, tiny_teacher: Path, tiny_data: Path
) -> None:
    outcome = edgeembed("teacher-import", f"timm:{NAME}@none", "--data", tiny_data, "--out", tiny_teacher)
    assert outcome.code == 2
    assert f"{tiny_teacher}: holds another teacher (it was trained): " in outcome.stderr


def test_all_features_are_kept_and_centred(edgeembed: Run, tiny_data: Path, weight_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["teacher-import", f"timm:{NAME}@{weight_file}", "--data", tiny_data, "--dim", "features"]
    outcome = edgeembed(*command, "--size-px", "32", "--workers", "0", "--out", out)
    assert outcome.code == 0, outcome.stderr
    model, origin = load_model(out)
    assert isinstance(model, EmbeddingModel)
    feature_NF = training_features(model, read_manifest(tiny_data), origin.precision)
    assert (model.dim, model.pca_rotated) == (feature_NF.shape[1], False)
    image = torch.rand(2, 3, 32, 32) * 255
    with torch.no_grad():
        expected = F.normalize(FeatureExtractor(model)(image).double() - feature_NF.mean(dim=0), dim=1)
        torch.testing.assert_close(model(image).double(), expected, atol=1e-4, rtol=0.0)


def test_images_that_cannot_be_decoded_are_counted_and_left_out(
    edgeembed: Run, tiny_data: Path, weight_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = read_manifest(tiny_data)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    row = int(manifest.training_rows()[0])
    paths = tuple(str(broken) if number == row else file for number, file in enumerate(manifest.files))
    write_manifest(tmp_path / "m.parquet", dataclasses.replace(manifest, path=paths))
    out = tmp_path / "run"
    command = ["teacher-import", f"timm:{NAME}@{weight_file}", "--data", tmp_path / "m.parquet", "--dim", "8"]
    outcome = edgeembed(*command, "--size-px", "32", "--workers", "0", "--out", out)
    assert outcome.code == 0, outcome.stderr
    assert f"skipped: {broken}" in caplog.text
    assert read_json(out / "model.json")["data"]["unreadable"] == 1


def test_too_few_images_are_refused(edgeembed: Run, tiny_data: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_data)
    few = np.concatenate([manifest.training_rows()[:5], manifest.rows("val")])
    write_manifest(tmp_path / "few.parquet", manifest.take(few))
    outcome = edgeembed(
        "teacher-import", f"timm:{NAME}@none", "--data", tmp_path / "few.parquet", "--out", tmp_path / "run"
    )
    assert outcome.code == 2
    assert "5 training images" in outcome.stderr
    assert "64 embedding dimensions need at least 65" in outcome.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:resnet18q", "unknown timm model 'resnet18q': did you mean 'resnet18'?"),
        ("timm:resnet18.nope", "timm has no weights 'nope' of resnet18"),
        ("timm:resnet18@nothing.safetensors", "timm:resnet18@nothing.safetensors: weights = 'nothing.safetensors'"),
        ("timm:convnext_base", "open_clip has a model convnext_base too: add timm's tag"),
        ("timm:", "expected a pretrained network"),
        ("resnet18", "expected a pretrained network, timm:NAME or open_clip:NAME/TAG"),
        ("open_clip:ViT-B-61/openai", "unknown open_clip model 'ViT-B-61': did you mean 'ViT-B-16'?"),
        ("open_clip:ViT-B-16/opnai", "unknown tag of ViT-B-16: did you mean 'openai'?"),
        ("open_clip:ViT-B-16", "ViT-B-16 has several"),
        ("open_clip:ViT-B-16/openai@none", "names two weights, 'openai' and 'none'"),
    ],
)
def test_a_wrong_name_tells_the_nearest(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_pretrained_network(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("timm:resnet18", "timm-resnet18"),
        ("timm:resnet18.a1_in1k@none", "timm-resnet18.a1_in1k"),
        ("timm:convnext_base.fb_in22k", "timm-convnext_base.fb_in22k"),
        ("open_clip:ViT-B-16/openai", "open_clip-ViT-B-16-openai"),
    ],
)
def test_the_default_folder_has_the_name_of_the_network(text: str, folder: str) -> None:
    assert parse_pretrained_network(text).folder == Path("runs") / folder


def test_a_typo_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys\n"
        "from edgeembed.cli import run\n"
        "codes = [run(['distill', '--teacher', 'timm:resnet18q']), run(['teacher-import', 'timm:r', '--data', 'x'])]\n"
        "assert codes == [2, 2] and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_commands_that_take_a_folder_name_the_step_before(edgeembed: Run) -> None:
    outcome = edgeembed("targets", "build", "--teacher", f"timm:{NAME}")
    assert outcome.code == 2
    assert "name the one that `teacher-import` wrote" in outcome.stderr


def test_the_first_use_needs_a_manifest(edgeembed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = edgeembed("distill", "--teacher", f"timm:{NAME}@none")
    assert outcome.code == 2
    assert f"--data is missing: timm:{NAME}@none becomes a teacher" in outcome.stderr
