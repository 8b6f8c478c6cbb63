"""What a device does with the base install alone: every package that an extra brings is hidden from these processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import edgeembed
from edgeembed.data.synthetic import render_view
from edgeembed.extras import SMALLEST_EXTRA

ROOT = Path(edgeembed.__file__).parent.parent
HIDE = f"""
import importlib.machinery, sys

finders = list(sys.meta_path)

class WithoutExtras:
    find_distributions = importlib.machinery.PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {sorted(SMALLEST_EXTRA)}:
            return None
        return next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)

sys.meta_path[:] = [WithoutExtras]
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs Python as after `pip install .`, in an empty folder; child processes too find none of the extras."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE)  # which Python imports at its start
    (tmp_path / "work").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def call(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *(str(argument) for argument in arguments)]
        return subprocess.run(
            command,
            env=environment,
            cwd=tmp_path / "work",
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return call


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV manifest of five rendered things, four photographs each."""
    folder = tmp_path_factory.mktemp("things")
    with (folder / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "domain", "split", "role"])
        for instance in range(5):
            for view in range(4):
                name = f"{instance}_{view}.jpg"
                render_view(seed=0, instance=instance, view=view, size_px=64).save(folder / name)
                writer.writerow([name, f"thing{instance}", "things", "test", "index" if view else "query"])
    return folder / "m.csv"


def test_the_extras_are_hidden(run: Run) -> None:
    done = run("-c", "import importlib.util; print(importlib.util.find_spec('numpy').name); import onnx")
    assert done.stdout.strip() == "numpy"
    assert "No module named 'onnx'" in done.stderr


def test_bench_measures_the_bundled_model_on_a_csv_manifest(run: Run, data: Path, tmp_path: Path) -> None:
    done = run("-m", "edgeembed", "bench", "--data", data, "--out", tmp_path / "r", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "r" / "report.json").read_text())
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["examples.png", "report.json"]
    assert {(row["precision"], row["batch"]) for row in report["rows"]} == {
        (precision, batch) for precision in ("fp32", "int8") for batch in (1, 8)
    }
    for row in report["rows"]:
        assert 0 < row["retrieval"]["symmetric"]["map"] <= 1
        assert row["latency_ms"]["p50"] > 0
        assert row["percent_of_floor"] > 0
    rates = report["floor"]["gemm_gflops"]
    assert set(rates["bf16"].values()) == {None}
    assert all(rate > 0 for precision in ("fp32", "fp16", "int8") for rate in rates[precision].values())
    (told,) = (line for line in done.stderr.splitlines() if "report.html" in line)
    assert "which the extra [bench] provides: in a clone of edgeembed, pip install '.[bench]'" in told
    code = """
import sys
from edgeembed.bench.report_schema import Report
from edgeembed.bench.terminal import print_summary
print_summary(Report.model_validate_json(sys.stdin.read()))
"""
    lines = run("-c", code, stdin=done.stdout).stdout.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("model "))
    assert "_lite0 fp32  " in lines[header + 1]
    assert "onnxruntime" in lines[header + 1]
    assert "reaches mAP" in lines[-1]


def test_bench_beside_a_teacher_needs_torch_and_says_so_at_once(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"role": "teacher"}')
    done = run("-m", "edgeembed", "bench", "--data", data, "--teacher", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines(keepends=True)[-1] == (
        "error: this command needs the package torch, which the extra [train] provides: "
        "in a clone of edgeembed, pip install '.[train]' (without an NVIDIA GPU, as README says under Installing)\n"
    )


def test_the_embedded_data_is_rendered_into_a_csv_manifest(run: Run) -> None:
    """What `edgeembed bench` does without --data, but smaller."""
    program = """
from pathlib import Path
from edgeembed.data.default_set import write_default_set
if __name__ == "__main__":
    options = {"num_instances": 5, "num_views": 2, "size_px": 32, "manifest_name": "manifest.csv"}
    manifest = write_default_set(Path("embedded"), **options)
    manifest.require_files()
    print(len(manifest), manifest.fingerprint)
"""
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 ")


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (["teacher-train", "--data", "m.csv"], "yaml", "train"),
        (["students"], "torch", "train"),
        (["data", "synth", "x", "--instances", "5", "--views", "2"], "pyarrow", "bench"),
        (["embed", "photo.jpg", "--out", "e.parquet"], "pyarrow", "bench"),
        (["embed", "photo.jpg", "--runtime", "openvino"], "openvino", "openvino"),
    ],
)
def test_a_missing_package_is_exit_2_and_one_line_that_names_its_extra(
    run: Run, data: Path, command: list[str], package: str, extra: str
) -> None:
    photo = str(data.parent / "0_0.jpg")
    done = run("-m", "edgeembed", *(photo if word == "photo.jpg" else word for word in command))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        f"error: this command needs the package {package}, which the extra [{extra}] provides: "
        f"in a clone of edgeembed, pip install '.[{extra}]'"
        + (" (without an NVIDIA GPU, as README says under Installing)" if extra == "train" else "")
    )
    assert "Traceback" not in done.stderr
