"""The Python interface gives what the commands give, with typed results, and imports nothing heavy before a call."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgeembed
from edgeembed.api import as_overrides
from edgeembed.errors import UserError
from edgeembed.files import read_json

PUBLIC = ["Embedder", "Index", "bench", "distill", "export", "import_teacher", "load_student", "train_teacher"]


def test_public_names_are_there_without_torch() -> None:
    code = (
        "import sys, edgeembed\n"
        f"for name in {PUBLIC}: assert callable(getattr(edgeembed, name)), name\n"
        "assert not {'torch', 'pyarrow', 'yaml', 'onnx', 'rich'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        edgeembed.trian  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize(("name", "module"), [("bench", "run"), ("export", "recipe")])
def test_a_package_of_the_name_of_a_function_can_be_called(name: str, module: str) -> None:
    code = (
        f"import edgeembed, edgeembed.{name}.{module}\n"
        "from edgeembed.errors import UserError\n"
        f"try: edgeembed.{name}('no/such/run')\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("no/such/run: ")


@pytest.mark.training
def test_all_stages_run_from_python(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = {"max_steps": 2, "batch_size": 8, "workers": 0}
    teacher = edgeembed.train_teacher(
        tiny_data,
        recipe="quickstart",
        out="teacher",
        train=short,
        image={"size_px": 32, "train_size_px": 32, "start_size_px": 32},
    )
    assert teacher.run == Path("teacher")
    assert teacher.space_id == read_json(teacher.run / "model.json")["space_id"]
    assert teacher.evaluation.steps == 2
    assert teacher.evaluation.scores is not None
    assert teacher.evaluation.scores.map == read_json(teacher.run / "eval.json")["scores"]["map"]

    student = edgeembed.distill(
        {"name": "test_resnet", "weights": "none"},
        teacher=teacher.run,
        recipe="quickstart",
        out="student",
        overrides=["image.size_px=32"],
        train=short,
    )
    assert student.space_id == teacher.space_id
    assert student.evaluation.scores is not None
    assert set(student.evaluation.scores) == {"symmetric", "asymmetric"}

    exported = edgeembed.export(student.run, out="bundle", precision=("fp32",))
    assert [file.path for file in exported.manifest.files] == ["model.fp32.onnx"]

    measured = edgeembed.bench(exported.bundle, data=tiny_data, teacher=teacher.run, out="report", quick=True)
    assert {row.role for row in measured.report.rows} == {"teacher", "student"}
    assert (measured.folder / "report.json").is_file()
    for result in (teacher, student, exported, measured):
        assert pickle.loads(pickle.dumps(result)) == result

    model = edgeembed.load_student(student.run)
    assert model.training
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)

    import torch

    with torch.no_grad():
        by_torch = model.eval()(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    by_onnx = edgeembed.Embedder(exported.bundle).embed(list(pixels))
    np.testing.assert_allclose((by_torch * by_onnx).sum(axis=1), 1.0, atol=1e-4)


@pytest.mark.training
def test_wrong_arguments_are_named(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown key 'trian.epochs': did you mean 'train.epochs'\?"):
        edgeembed.train_teacher(tiny_data, recipe="quickstart", out=tmp_path / "t", trian={"epochs": 1})
    with pytest.raises(UserError, match="no such manifest"):
        edgeembed.train_teacher(tmp_path / "none.parquet", recipe="quickstart", out=tmp_path / "t")
    with pytest.raises(UserError, match="holds no finished run"):
        edgeembed.load_student(tmp_path)


def test_recipe_keys_are_taken_by_section_or_dotted() -> None:
    keys = {"train": {"epochs": 3, "precision": "fp32"}, "optim.lr": 1e-3, "head": {"class_margins": [0.1, 0.5]}}
    assert as_overrides(keys) == [
        "train.epochs=3",
        "train.precision=fp32",
        "optim.lr=0.001",
        "head.class_margins=[0.1, 0.5]",
    ]


def test_numpy_values_are_taken_and_others_are_refused_by_their_key() -> None:
    assert as_overrides({"train": {"max_steps": np.int64(3)}}) == ["train.max_steps=3"]
    with pytest.raises(UserError, match=r"train.max_steps = \{3\}: expected a number"):
        as_overrides({"train": {"max_steps": {3}}})


def test_a_script_without_a_guard_is_not_run_again_where_bench_renders_its_data(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import edgeembed.data.default_set as default_set\n"
        "from edgeembed.api import synthetic_data\n"
        "print('RUNS')\n"
        "default_set.write_default_set.__kwdefaults__.update(num_instances=10, num_views=2, size_px=32)\n"
        "assert len(synthetic_data().path) == 20\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.count("RUNS")) == (0, 1), done.stderr


def test_an_empty_name_of_a_bundle_is_not_the_bundled_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a bundle"):
        edgeembed.bench("", out=tmp_path / "report")
