"""`embed`, `search` and `artifacts` as a person runs them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeembed.device import embedder as embedder_module
from edgeembed.device.embedder import Embedder
from edgeembed.device.embeddings import read_embeddings
from tests.conftest import TINY, as_options
from tests.device.conftest import pattern, tiny_network, write_manifest

MakeBundle = Callable[..., Path]
Run = Callable[..., Any]


@pytest.fixture
def stored(edgeembed: Run, bundle: Path, photos: Path, tmp_path: Path) -> Path:
    """An index of photo0 to photo5 in space-a."""
    out = tmp_path / "index.safetensors"
    assert edgeembed("embed", *sorted(photos.glob("*.png")), "--model", bundle, "--out", out).code == 0
    return out


def one_line(stderr: str) -> str:
    """The error that a command ended with, which must be one line and no traceback."""
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    assert "Traceback" not in stderr
    return errors[0]


def test_embed_writes_what_the_embedder_gives(edgeembed: Run, bundle: Path, photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.glob("*.png"))
    out = tmp_path / "e.safetensors"
    result = edgeembed("embed", *files, "--model", bundle, "--out", out, "--threads", 1, "--json")
    assert result.code == 0
    value = json.loads(result.stdout)
    assert (value["images"], value["skipped"], value["dim"], value["threads"]) == (6, [], 64, 1)
    assert (value["model"], value["space_id"], value["precision"]) == ("tiny", "space-a", "fp32")
    assert (value["runtime"], value["provider"]) == ("onnxruntime", "CPUExecutionProvider")
    stored = read_embeddings(out)
    assert stored.paths == tuple(map(str, files))
    np.testing.assert_allclose(stored.embedding_ND, Embedder(bundle).embed(files), atol=1e-6)


def test_embed_takes_folders_and_names_what_it_skips(
    edgeembed: Run, bundle: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = edgeembed(
        "embed", photos, photos / "photo0.png", "--model", bundle, "--out", tmp_path / "e.safetensors", "--json"
    )
    value = json.loads(result.stdout)
    assert (result.code, value["images"], len(value["skipped"])) == (0, 12, 3)
    for name in ("corrupt.jpg", "truncated.jpg", "empty.png"):
        assert any(name in reason for reason in value["skipped"])
        assert name in caplog.text
    paths = read_embeddings(tmp_path / "e.safetensors").paths
    assert len(set(paths)) == 12
    assert all(os.path.isabs(path) for path in paths)


def test_embed_says_on_stderr_what_it_chose(bundle: Path, photos: Path, tmp_path: Path) -> None:
    program = "from edgeembed.cli import main; main()"
    options = ["--model", str(bundle), "--out", str(tmp_path / "e.npy")]
    command = [sys.executable, "-c", program, "embed", "bad", "photo0.png", *options]
    done = subprocess.run(command, cwd=photos, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "embedding 4 images with tiny (fp32, onnxruntime CPUExecutionProvider" in done.stderr
    assert "skipped: " in done.stderr
    assert "1 embeddings, 3 files skipped" in done.stderr


def test_embed_reads_manifests(edgeembed: Run, bundle: Path, photos: Path, tmp_path: Path) -> None:
    from edgeembed.data.manifest import ManifestRow, build_manifest, write_manifest

    names = ["photo3.png", "odd/grey.jpg"]
    rows = [ManifestRow(path=name, label="x", domain="d", split="test") for name in names]
    table = build_manifest(photos, rows, source="here")
    expected = [str(photos / name) for name in names]
    for suffix in (".csv", ".parquet"):
        write_manifest(tmp_path / f"m{suffix}", table)
        out = tmp_path / f"{suffix[1:]}.safetensors"
        assert edgeembed("embed", tmp_path / f"m{suffix}", "--model", bundle, "--out", out).code == 0
        assert list(read_embeddings(out).paths) == expected


def test_embed_refuses_a_csv_without_paths(edgeembed: Run, bundle: Path, tmp_path: Path) -> None:
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label"], ["a.jpg", "x"]])
    result = edgeembed("embed", tmp_path / "m.csv", "--model", bundle)
    assert result.code == 2
    assert "lacks column 'path'" in one_line(result.stderr)


def test_embed_refuses_bad_input_with_one_line(edgeembed: Run, bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    out = tmp_path / "e.safetensors"
    for arguments, message in {
        (): "PATH",
        (photos / "bad",): "none of 3 images can be decoded",
        (photos / "absent",): "no such file or folder",
        (tmp_path / "nothing",): "holds no images",
        (photos, "--precision", "int4"): "no precision 'int4'",
        (photos, "--threads", "0"): "threads",
        (photos, "--batch-size", "many"): "batch-size",
        (photos, "--out", "e.json"): "unknown suffix",
        (photos, "--model", photos): "not a bundle",
    }.items():
        extra = [word for pair in (("--model", bundle), ("--out", out)) if pair[0] not in arguments for word in pair]
        result = edgeembed("embed", *arguments, *extra)
        assert result.code == 2, arguments
        assert message in one_line(result.stderr)
        assert not out.exists()


def test_embed_replaces_a_file_only_when_it_has_another(
    edgeembed: Run, bundle: Path, photos: Path, stored: Path
) -> None:
    before = stored.read_bytes()
    failed = edgeembed("embed", photos / "bad", "--model", bundle, "--out", stored)
    assert failed.code == 2
    assert "none of 3 images can be decoded, first" in one_line(failed.stderr)
    assert stored.read_bytes() == before
    assert edgeembed("embed", photos / "photo0.png", "--model", bundle, "--out", stored).code == 0
    assert len(read_embeddings(stored).paths) == 1


def test_a_changed_byte_fails_with_one_line(
    edgeembed: Run, make_bundle: MakeBundle, photos: Path, tmp_path: Path
) -> None:
    folder = make_bundle()
    content = bytearray((folder / "model.fp32.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.fp32.onnx").write_bytes(content)
    for command in (
        ["embed", photos / "photo0.png", "--model", folder, "--precision", "fp32", "--out", tmp_path / "e.npy"],
        ["artifacts", "verify", folder],
    ):
        result = edgeembed(*command)
        assert result.code == 1
        assert "model.fp32.onnx: sha256 is" in one_line(result.stderr)


def test_search_finds_the_picture_that_was_indexed(edgeembed: Run, bundle: Path, stored: Path, tmp_path: Path) -> None:
    for seed in (2, 4):
        pattern(seed, width=60, height=60).save(tmp_path / f"query{seed}.jpg")
    queries = [tmp_path / "query2.jpg", tmp_path / "query4.jpg"]
    result = edgeembed("search", *queries, "--index", stored, "--model", bundle, "-k", 3, "--json")
    assert result.code == 0
    value = json.loads(result.stdout)
    assert (value["images"], value["k"], value["space_id"], value["sheet"]) == (6, 3, "space-a", None)
    assert [query["path"] for query in value["queries"]] == list(map(str, queries))
    for query, seed in zip(value["queries"], (2, 4), strict=True):
        assert Path(query["results"][0]["path"]).name == f"photo{seed}.png"
        assert [row["rank"] for row in query["results"]] == [1, 2, 3]
        similarity = [row["similarity"] for row in query["results"]]
        assert similarity == sorted(similarity, reverse=True)
        assert similarity[0] > 0.99


def test_search_prints_a_table_and_keeps_the_query_among_its_results(
    edgeembed: Run, bundle: Path, photos: Path, stored: Path
) -> None:
    result = edgeembed("search", photos / "photo1.png", "--index", stored, "--model", bundle, "-k", 99)
    lines = result.stdout.splitlines()
    assert (result.code, len(lines)) == (0, 7)
    assert lines[0] == str(photos / "photo1.png")
    assert lines[1].split() == ["1", "1.0000", str(photos / "photo1.png")]


def test_search_draws_a_sheet(edgeembed: Run, bundle: Path, photos: Path, stored: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "deep" / "sheet.png"
    result = edgeembed(
        "search", photos / "photo1.png", "--index", stored, "--model", bundle, "--sheet", sheet, "--json"
    )
    assert json.loads(result.stdout)["sheet"] == str(sheet)
    with Image.open(sheet) as image:
        assert image.width > image.height


def test_search_refuses_two_spaces_by_both_ids(
    edgeembed: Run, make_bundle: MakeBundle, photos: Path, stored: Path
) -> None:
    other = make_bundle("other", space_id="space-b")
    result = edgeembed("search", photos / "photo1.png", "--index", stored, "--model", other)
    line = one_line(result.stderr)
    assert (result.code, result.stdout) == (2, "")
    assert "space-a" in line
    assert "space-b" in line


def test_search_refuses_bad_input_with_one_line(edgeembed: Run, bundle: Path, photos: Path, stored: Path) -> None:
    for arguments, message in {
        (): "QUERY",
        (photos / "bad" / "corrupt.jpg",): "corrupt.jpg: not a readable image",
        (photos / "photo0.png", "-k", "0"): "-k",
        (photos / "photo0.png", "--sheet", "sheet.gif"): "unknown picture suffix",
        (photos / "photo0.png", "--index", photos / "none.safetensors"): "no such file",
        (photos / "photo0.png", "--index", photos / "photo0.png"): "expected .safetensors or .parquet",
    }.items():
        index = () if "--index" in arguments else ("--index", stored)
        result = edgeembed("search", *arguments, *index, "--model", bundle)
        assert (result.code, result.stdout) == (2, ""), arguments
        assert message in one_line(result.stderr)


def test_artifacts_lists_and_verifies_what_is_bundled(
    edgeembed: Run, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "ARTIFACTS", tmp_path)
    assert json.loads(edgeembed("artifacts", "--json").stdout) == {"artifacts": []}
    nothing = edgeembed("artifacts", "verify")
    assert nothing.code == 2
    assert one_line(nothing.stderr).startswith("error: ")
    make_bundle("one")
    rows = json.loads(edgeembed("artifacts", "list", "--json").stdout)["artifacts"]
    assert [(row["name"], row["precision"], row["space_id"], row["licence"]) for row in rows] == [
        ("one", "fp32", "space-a", "Apache-2.0"),
        ("one", "int8", "space-a", "Apache-2.0"),
    ]
    assert rows[0]["bytes"] == (tmp_path / "one" / "model.fp32.onnx").stat().st_size
    assert "Apache-2.0" in edgeembed("artifacts").stdout
    verified = edgeembed("artifacts", "verify", "--json")
    assert verified.code == 0
    files = json.loads(verified.stdout)["files"]
    assert [row["file"] for row in files if row["ok"]] == ["model.fp32.onnx", "model.int8.onnx", "MODEL_CARD.md"]


def test_artifacts_verify_runs_each_network(edgeembed: Run, make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    tiny_network(folder / "model.fp32.onnx", scale=1e37)
    (folder / "model.int8.onnx").write_bytes(b"no network")
    write_manifest(folder)
    result = edgeembed("artifacts", "verify", folder, "--json")
    rows = json.loads(result.stdout)["files"]
    assert result.code == 1
    assert [row["ok"] for row in rows] == [False, False, True]
    assert "gives vectors of length" in rows[0]["result"]
    assert "cannot open it" in rows[1]["result"]
    assert "2 of 3 files failed" in one_line(result.stderr)


def test_artifacts_refuses_an_unknown_action(edgeembed: Run) -> None:
    result = edgeembed("artifacts", "verfy")
    assert result.code == 2
    assert "did you mean 'verify'?" in one_line(result.stderr)


@pytest.mark.training
def test_an_index_of_a_training_run_is_in_its_space(
    edgeembed: Run, tiny_teacher: Path, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    from edgeembed.network.model_files import load_model
    from edgeembed.training.embed import embed_files

    files, out = [str(path) for path in sorted(photos.glob("*.png"))], tmp_path / "teacher.safetensors"
    result = edgeembed("embed", *files, "--model", tiny_teacher, "--out", out, "--json")
    assert result.code == 0, result.stderr
    value = json.loads(result.stdout)
    model, origin = load_model(tiny_teacher)
    assert (value["runtime"], value["precision"], value["space_id"]) == ("torch", "fp32", origin.space_id)
    settings: dict[str, Any] = {"batch_size": 8, "workers": 0, "device": "cpu", "precision": "fp32"}
    expected, _ = embed_files(model, files, **settings)
    np.testing.assert_allclose(read_embeddings(out).embedding_ND, expected, atol=1e-5)

    found = edgeembed("search", files[0], "--index", out, "--model", tiny_teacher, "-k", 1, "--json")
    assert json.loads(found.stdout)["queries"][0]["results"][0]["path"] == files[0]
    mixed = edgeembed("search", files[0], "--index", out, "--model", bundle)
    assert mixed.code == 2
    assert origin.space_id in one_line(mixed.stderr)
    refused = edgeembed("embed", files[0], "--model", tiny_teacher, "--out", out, "--precision", "int8")
    assert refused.code == 2
    assert "computes in fp32" in one_line(refused.stderr)
    for options in (("--runtime", "openvino"), ("--provider", "cuda")):
        refused = edgeembed("embed", files[0], "--model", tiny_teacher, "--out", out, *options)
        assert refused.code == 2
        assert "a run computes in torch" in one_line(refused.stderr)


def test_the_device_commands_import_neither_torch_nor_pyarrow(bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"path,label\n{photos / 'photo0.png'},x\n")
    program = f"""
import sys
from edgeembed.cli.app import run
import edgeembed.cli
out, bundle, photos = {str(tmp_path / "e.safetensors")!r}, {str(bundle)!r}, {str(photos)!r}
for command in (
    ["--help"],
    ["embed", photos, {str(tmp_path / "m.csv")!r}, "--model", bundle, "--out", out],
    ["search", photos + "/photo1.png", "--index", out, "--model", bundle, "--sheet", {str(tmp_path / "s.png")!r}],
    ["artifacts", "list"],
    ["artifacts", "verify", bundle],
    ["doctor", bundle],
    ["artifacts", "pack", bundle, "--out", {str(tmp_path / "b.edgeembed.zip")!r}],
    ["artifacts", "unpack", {str(tmp_path / "b.edgeembed.zip")!r}],
):
    assert run(command) == 0, command
    heavy = {{"torch", "pyarrow", "yaml", "onnx", "openvino", "pandas", "matplotlib"}} & set(sys.modules)
    assert not heavy, (command, heavy)
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.training
def test_a_teacher_that_keeps_proportions_embeds_as_it_was_evaluated(
    edgeembed: Run, tiny_data: Path, tmp_path: Path
) -> None:
    from edgeembed.network.model_files import load_model
    from edgeembed.training.embed import embed_files

    keys = as_options([*TINY, "image.keep_aspect=true", "image.size_px=48", "train.max_steps=2", "eval.every_steps=0"])
    command = ["teacher-train", "--data", tiny_data, "--recipe", "quickstart", "--out", tmp_path / "run"]
    assert edgeembed(*command, *keys).code == 0
    for number, size in enumerate([(90, 60), (50, 50), (40, 80), (60, 90), (91, 60)]):
        Image.effect_noise(size, 80).convert("RGB").save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(5)]
    out = tmp_path / "e.safetensors"
    result = edgeembed("embed", *files, "--model", tmp_path / "run", "--out", out)
    assert result.code == 0, result.stderr
    model, _ = load_model(tmp_path / "run")
    settings: dict[str, Any] = {"batch_size": 8, "workers": 0, "device": "cpu", "precision": "fp32"}
    expected, _ = embed_files(model, files, **settings)
    np.testing.assert_allclose(read_embeddings(out).embedding_ND, expected, atol=1e-3)
    refused = edgeembed("export", tmp_path / "run", "--out", tmp_path / "bundle")
    assert refused.code == 2
    assert "keeps the proportions of images" in one_line(refused.stderr)
