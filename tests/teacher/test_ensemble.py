"""Ensembles of teachers: their embedding, the files that they leave, and mistakes that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from edgeembed.data.manifest import read_manifest
from edgeembed.export.onnx import to_onnx
from edgeembed.network.model import EnsembleModel, SquareResize
from edgeembed.network.model_files import load_model
from edgeembed.network.space_id import space_id
from edgeembed.network.tensor_files import iterate_tensors
from edgeembed.teacher.ensemble import standardised_axes
from edgeembed.teacher.head_files import load_head
from edgeembed.teacher.pca import Statistics
from edgeembed.training.embed import embed_files
from tests.conftest import TINY, TINY_STUDENT, Outcome, as_options

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def other_teacher(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeembed.cli import run

    out = tmp_path_factory.mktemp("other") / "run"
    command = ["teacher-train", "--data", str(tiny_data), "--recipe", "quickstart", "--out", str(out)]
    assert run([*command, *as_options([*TINY, "neck.dim=16", "train.seed=3", "inference.flip=true"])]) == 0
    return out


def test_an_ensemble_is_its_weighted_members_one_after_the_other(
    edgeembed: Run, tiny_teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ensemble"
    outcome = edgeembed("teacher-join", tiny_teacher, other_teacher, "--weights", "1,0.5", "--out", out, "--json")
    assert outcome.code == 0, outcome.stderr
    facts = json.loads(outcome.stdout)
    model, _ = load_model(out)
    assert facts["embedding"]["dim"] == model.dim == 80
    assert facts["space_id"] == space_id(model)
    image = torch.rand(3, 3, 32, 32) * 255
    with torch.no_grad():
        first, second = (load_model(path)[0](image) for path in (tiny_teacher, other_teacher))
        expected = torch.nn.functional.normalize(torch.cat([first, 0.5 * second], dim=1), dim=1)
        assert torch.allclose(model(image), expected, atol=1e-6)
    head = dict(iterate_tensors(out / "head.safetensors"))["centres"]
    assert head.shape[1] == 80
    np.testing.assert_allclose(head.norm(dim=1).numpy(), 1.0, atol=1e-5)


def test_a_student_learns_from_an_ensemble(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    ensemble = tmp_path / "ensemble"
    assert edgeembed("teacher-join", tiny_teacher, other_teacher, "--out", ensemble).code == 0
    keys = as_options([*TINY_STUDENT, "loss.centre_kl=0.1"])
    command = [
        "distill",
        "--teacher",
        ensemble,
        "--data",
        tiny_data,
        "--recipe",
        "quickstart",
        "--student",
        "resnet_xs",
    ]
    outcome = edgeembed(*command, "--out", tmp_path / "student", *keys)
    assert outcome.code == 0, outcome.stderr
    student, origin = load_model(tmp_path / "student")
    assert student.dim == 80
    assert origin.space_id == load_model(ensemble)[1].space_id


@pytest.mark.parametrize(
    ("runs", "weights", "message"),
    [
        (["teacher"], None, "1 runs and weights [1.0]: expected two or more runs"),
        (
            ["teacher", "teacher"],
            "1",
            "2 runs and weights [1.0]: expected two or more runs, and a weight of 0.001 to 1000",
        ),
        (["teacher", "teacher"], "1,x", "expected numbers"),
        (["teacher", "teacher"], "nan,1", "a weight of 0.001 to 1000"),
        (["teacher", "teacher"], "1,inf", "a weight of 0.001 to 1000"),
        (["teacher", "teacher"], "1e300,1", "a weight of 0.001 to 1000"),
        (["teacher", "nothing"], None, "holds no finished run"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    edgeembed: Run, tiny_teacher: Path, tmp_path: Path, runs: list[str], weights: str | None, message: str
) -> None:
    paths = [tiny_teacher if name == "teacher" else tmp_path / name for name in runs]
    options = ["--weights", weights] if weights else []
    outcome = edgeembed("teacher-join", *paths, *options, "--out", tmp_path / "ensemble")
    assert outcome.code == 2
    assert message in outcome.stderr
    assert not (tmp_path / "ensemble").exists()


@pytest.fixture(scope="module")
def larger_teacher(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of another input size, without class centres."""
    from edgeembed.cli import run

    out = tmp_path_factory.mktemp("larger") / "run"
    command = ["teacher-import", "timm:test_resnet@none", "--data", str(tiny_data), "--dim", "24", "--size-px", "48"]
    assert run([*command, "--workers", "0", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def projected(
    tiny_data: Path, tiny_teacher: Path, larger_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from edgeembed.cli import run

    out = tmp_path_factory.mktemp("projected") / "run"
    command = ["teacher-join", str(tiny_teacher), str(larger_teacher), "--weights", "1,2", "--data", str(tiny_data)]
    assert run([*command, "--dim", "12", "--workers", "0", "--out", str(out)]) == 0
    return out


def test_a_projected_ensemble_is_the_pca_of_standardised_embeddings(
    projected: Path, tiny_data: Path, tiny_teacher: Path, larger_teacher: Path
) -> None:
    model, origin = load_model(projected)
    assert isinstance(model, EnsembleModel)
    assert (model.dim, model.size_px, model.pca_rotated) == (12, 48, True)
    assert origin.space_id == space_id(model)
    assert origin.members is not None
    assert origin.space_id not in origin.members.values()
    manifest = read_manifest(tiny_data)
    files = [manifest.files[row] for row in manifest.training_rows()]
    members = [load_model(path)[0] for path in (tiny_teacher, larger_teacher)]
    concatenation = EnsembleModel(members, [1.0, 2.0]).eval()  # type: ignore[arg-type]
    # In the precision that the projection was computed in.
    assert origin.precision is not None
    vectors, _ = embed_files(concatenation, files, batch_size=64, workers=0, device="cpu", precision=origin.precision)
    joined_BJ = torch.from_numpy(vectors).double()
    parts = [
        weight * part / part.square().sum(dim=1).mean().sqrt()
        for weight, part in zip([1.0, 2.0], (joined_BJ - joined_BJ.mean(dim=0)).split([64, 24], dim=1), strict=True)
    ]
    weighted_BJ = torch.cat(parts, dim=1)
    # An independent oracle: the leading left singular vectors are the projected images.
    left, value, _ = torch.linalg.svd(weighted_BJ, full_matrices=False)
    expected_BD = left[:, :12] * value[:12]
    assert model.projection is not None
    projected_BD = model.projection.double()(joined_BJ).detach()
    difference_BB = projected_BD @ projected_BD.T - expected_BD @ expected_BD.T
    assert float(difference_BB.abs().max()) < 1e-3 * float((expected_BD @ expected_BD.T).abs().max())


def test_each_member_of_a_projected_ensemble_sees_its_own_input_size(
    projected: Path, tiny_teacher: Path, larger_teacher: Path
) -> None:
    model, _ = load_model(projected)
    assert isinstance(model, EnsembleModel)
    image_BCHW = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    smaller_BCHW = torch.nn.functional.interpolate(image_BCHW.float(), (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        parts = [load_model(tiny_teacher)[0](smaller_BCHW), load_model(larger_teacher)[0](image_BCHW)]
        torch.testing.assert_close(model(image_BCHW), model.combine(parts), atol=1e-3, rtol=0.0)


def test_a_projected_ensemble_is_evaluated_and_records_its_data(projected: Path, tiny_data: Path) -> None:
    scores = json.loads((projected / "eval.json").read_text())["scores"]
    assert 0.0 < scores["map"] <= 1.0
    facts = json.loads((projected / "model.json").read_text())
    assert facts["architecture"]["projected"] is True
    assert facts["embedding"] == {"dim": 12, "normalised": True, "metric": "cosine", "ordered": True}
    assert facts["data"]["fingerprint"] == read_manifest(tiny_data).fingerprint
    assert [member["input"]["height"] for member in facts["architecture"]["members"]] == [32, 48]
    # The second member has no class centres.
    assert not (projected / "head.safetensors").exists()


def test_class_centres_go_through_the_projection(
    edgeembed: Run, tiny_data: Path, tiny_teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["teacher-join", tiny_teacher, other_teacher, "--data", tiny_data, "--dim", "12", "--workers", "0"]
    outcome = edgeembed(*command, "--out", out)
    assert outcome.code == 0, outcome.stderr
    model, _ = load_model(out)
    assert isinstance(model, EnsembleModel)
    head = load_head(out)
    centres = [
        torch.nn.functional.normalize(load_head(path).centre_RD, dim=1) for path in (tiny_teacher, other_teacher)
    ]
    assert head.classes == load_head(tiny_teacher).classes
    torch.testing.assert_close(head.centre_RD, model.combine(centres), atol=1e-5, rtol=0.0)


def test_a_projected_ensemble_is_one_onnx_graph(projected: Path) -> None:
    model, _ = load_model(projected)
    image = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    with torch.no_grad():
        in_torch = model(torch.from_numpy(image).permute(0, 3, 1, 2)).numpy()
    session = onnxruntime.InferenceSession(to_onnx(model, {}).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"image": image})[0], in_torch, atol=1e-4)


def test_the_leading_dimensions_of_a_projected_ensemble_can_be_kept(projected: Path) -> None:
    short, whole = (load_model(projected)[0] for _ in range(2))
    short.keep_dimensions(4)
    image_BCHW = torch.rand(2, 3, 48, 48) * 255
    with torch.no_grad():
        expected = torch.nn.functional.normalize(whole(image_BCHW)[:, :4], dim=1)
        torch.testing.assert_close(short(image_BCHW), expected, atol=1e-5, rtol=0.0)


def test_a_student_learns_the_projected_space(edgeembed: Run, projected: Path, tiny_data: Path, tmp_path: Path) -> None:
    keys = as_options([*TINY_STUDENT, "train.max_steps=1", "targets.views=1"])
    command = ["distill", "--teacher", projected, "--data", tiny_data, "--recipe", "quickstart", *keys]
    outcome = edgeembed(*command, "--out", tmp_path / "student")
    assert outcome.code == 0, outcome.stderr
    student, origin = load_model(tmp_path / "student")
    assert (student.dim, student.pca_rotated) == (12, True)
    assert origin.space_id == load_model(projected)[1].space_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dim", "8"], "--dim 8: needs --data"),
        (["--data", "DATA", "--dim", "500"], "--dim 500: the runs have 128 embedding dimensions together"),
        (["--data", "DATA", "--dim", "120"], "120 embedding dimensions need at least 121"),
        (["--data", "nothing.parquet"], "nothing.parquet: no such manifest"),
    ],
)
def test_a_projection_that_cannot_be_computed_is_refused(
    edgeembed: Run, tiny_teacher: Path, tiny_data: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    given = [str(tiny_data) if option == "DATA" else option for option in options]
    outcome = edgeembed("teacher-join", tiny_teacher, tiny_teacher, *given, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert message in outcome.stderr
    assert not (tmp_path / "run" / "model.json").exists()


def test_the_variance_of_a_member_is_the_square_of_its_weight() -> None:
    torch.manual_seed(0)
    # The second member varies far less, and has a constant dimension.
    vector_NJ = torch.randn(50, 6).double() * torch.tensor([1.0, 0.1, 3.0, 0.01, 0.02, 0.0]).double() + 5.0
    statistics = Statistics(mean_D=vector_NJ.mean(dim=0), covariance_DD=torch.cov(vector_NJ.T, correction=0))
    weight, bias = standardised_axes(statistics, [3, 3], [1.0, 2.0], 5)
    projected = vector_NJ @ weight.T + bias
    torch.testing.assert_close(projected.mean(dim=0), torch.zeros(5).double(), atol=1e-9, rtol=0.0)
    assert float(projected.var(dim=0, correction=0).sum()) == pytest.approx(1.0 + 4.0)
    assert (projected.var(dim=0).diff() <= 0).all()


def test_a_member_that_gives_every_image_the_same_embedding_changes_nothing() -> None:
    vector_NJ = torch.cat([torch.randn(50, 3), torch.ones(50, 2)], dim=1).double()
    statistics = Statistics(mean_D=vector_NJ.mean(dim=0), covariance_DD=torch.cov(vector_NJ.T, correction=0))
    weight, bias = standardised_axes(statistics, [3, 2], [1.0, 1.0], 3)
    projected = vector_NJ @ weight.T + bias
    assert projected.isfinite().all()
    assert float(projected.var(dim=0, correction=0).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("to_px", [32, 33, 64])
def test_squares_are_resized_as_torch_resizes_them_antialiased(to_px: int) -> None:
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = torch.nn.functional.interpolate(image.float(), (to_px, to_px), mode="bilinear", antialias=True)
    torch.testing.assert_close(SquareResize(64, to_px)(image), expected, atol=1e-3, rtol=0.0)
