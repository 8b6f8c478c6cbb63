from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeembed.data.default_set import write_default_set
from edgeembed.data.manifest import Manifest
from tests.bench.conftest import write_bundle
from tests.conftest import Outcome

Run = Callable[..., Outcome]


@pytest.fixture
def data(manifest: Manifest) -> Path:
    return manifest.root / "manifest.parquet"


@pytest.mark.usefixtures("hurried")
def test_json_stands_alone_on_stdout(
    edgeembed: Run, bundle: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = edgeembed("bench", bundle, "--data", data, "--out", tmp_path / "r", "--quick", "--json")
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.stdout) == json.loads((tmp_path / "r" / "report.json").read_text())
    assert "no teacher given" in caplog.text
    assert "reaches mAP" not in outcome.stderr
    for row in json.loads(outcome.stdout)["rows"]:
        assert (row["retrieval"]["asymmetric"], row["retention"], row["cosine_to_teacher"]) == (None, None, None)


def test_a_changed_byte_is_exit_1(edgeembed: Run, data: Path, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "changed")
    content = bytearray((folder / "model.fp32.onnx").read_bytes())
    content[100] ^= 1
    (folder / "model.fp32.onnx").write_bytes(content)
    outcome = edgeembed("bench", folder, "--data", data, "--out", tmp_path / "r", "--quick")
    assert outcome.code == 1
    assert "sha256" in outcome.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--teacher", "nowhere"], "nowhere: holds no finished run", marks=pytest.mark.training),
        (["--data", "nowhere.parquet"], "nowhere.parquet: no such manifest"),
    ],
)
def test_what_is_not_there_is_exit_2(
    edgeembed: Run, bundle: Path, data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    outcome = edgeembed("bench", bundle, "--data", data, "--out", tmp_path / "r", "--quick", *arguments)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("hurried")
def test_without_arguments_the_embedded_data_is_rendered_once(
    edgeembed: Run,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = functools.partial(write_default_set, num_instances=10, num_views=4, size_px=48)
    monkeypatch.setattr("edgeembed.data.default_set.write_default_set", small)
    monkeypatch.setattr("edgeembed.device.embedder.bundled_artifacts", lambda: [bundle])
    first = edgeembed("bench", "--out", tmp_path / "r", "--quick")
    assert first.code == 0, first.stderr
    assert re.search(r"^model +runtime +threads +p50", first.stdout)
    assert re.search(r"tiny fp32( openvino)? reaches mAP", first.stdout.splitlines()[-1])
    assert "rendered into" in caplog.text
    caplog.clear()
    written = (tmp_path / "r" / "report.json").stat().st_mtime_ns
    second = edgeembed("bench", "--out", tmp_path / "r", "--quick")
    assert second.code == 0
    assert "rendered into" not in caplog.text
    assert (tmp_path / "r" / "report.json").stat().st_mtime_ns > written
