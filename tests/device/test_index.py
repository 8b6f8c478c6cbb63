"""An index with labels, with paths that move to another machine, and with the model that it was embedded with."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeembed.device import embedder as embedder_module
from edgeembed.device.embedder import DEFAULT_ARTIFACT
from edgeembed.device.embeddings import read_embeddings
from tests.device.conftest import pattern
from tests.device.test_cli_device import one_line

MakeBundle = Callable[..., Path]
Run = Callable[..., Any]


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """`shelf/m.csv`: six pictures, four of them labelled."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    labels = ["mug", "mug", "cup", "", "plate", ""]
    for seed in range(6):
        pattern(seed).save(folder / f"{seed}.png")
    with (folder / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "domain", "split", "role"])
        writer.writerows([[f"{seed}.png", labels[seed], "things", "test", ""] for seed in range(6)])
    return folder


@pytest.fixture
def no_bundled_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    monkeypatch.setattr(embedder_module, "ARTIFACTS", folder)
    return folder


def results(stdout: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(stdout)["queries"][0]["results"]
    return found


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_labels_of_a_manifest_are_stored_and_printed(
    edgeembed: Run, bundle: Path, shelf: Path, tmp_path: Path, suffix: str
) -> None:
    from edgeembed.data.manifest import read_manifest, write_manifest

    table = shelf / f"m{suffix}"
    if suffix == ".parquet":
        write_manifest(table, read_manifest(shelf / "m.csv"))
    out = tmp_path / "e.safetensors"
    done = edgeembed("embed", table, "--model", bundle, "--out", out, "--json")
    assert json.loads(done.stdout)["labelled"] == 4
    assert read_embeddings(out).labels == ("mug", "mug", "cup", None, "plate", None)
    searched = edgeembed("search", shelf / "4.png", "--index", out, "--model", bundle, "-k", 6)
    lines = searched.stdout.splitlines()
    assert lines[1].split() == ["1", "1.0000", str(shelf / "4.png"), "[plate]"]
    assert sum("[mug]" in line for line in lines) == 2
    assert sum("[" in line for line in lines) == 4
    first = results(edgeembed("search", shelf / "3.png", "--index", out, "--model", bundle, "--json").stdout)[0]
    assert (first["path"], first["label"]) == (str(shelf / "3.png"), None)


def test_files_without_labels_give_an_index_without_labels(
    edgeembed: Run, bundle: Path, shelf: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e.safetensors"
    assert edgeembed("embed", shelf, "--model", bundle, "--out", out).code == 0
    assert read_embeddings(out).labels is None


def test_one_image_with_two_labels_is_said(
    edgeembed: Run, bundle: Path, shelf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (shelf / "two.csv").write_text("path,label\n0.png,mug\n1.png,mug\n./0.png,cup\n1.png,mug\n")
    done = edgeembed("embed", shelf / "two.csv", "--model", bundle, "--out", tmp_path / "e.safetensors")
    assert (done.code, read_embeddings(tmp_path / "e.safetensors").labels) == (0, ("cup", "mug"))
    told = f"1 images have several labels, of which the last is stored, first {shelf / '0.png'}: 'mug' and 'cup'"
    assert told in caplog.messages


@pytest.mark.skipif(os.name != "posix", reason="names that are not UTF-8")
def test_parquet_refuses_names_that_are_not_utf8_before_any_work(
    edgeembed: Run, bundle: Path, shelf: Path, tmp_path: Path
) -> None:
    shutil.copy(shelf / "0.png", os.fsencode(shelf) + b"/caf\xe9.png")
    done = edgeembed("embed", shelf, "--model", bundle, "--out", tmp_path / "e.parquet")
    assert done.code == 2
    assert "1 paths are not UTF-8" in one_line(done.stderr)
    assert not (tmp_path / "e.parquet").exists()


def test_an_index_with_a_root_moves_to_another_machine(
    edgeembed: Run, bundle: Path, shelf: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e.safetensors"
    assert edgeembed("embed", shelf, "--root", tmp_path, "--model", bundle, "--out", out).code == 0
    stored = read_embeddings(out)
    assert stored.paths == tuple(f"shelf/{seed}.png" for seed in range(6))
    assert (stored.root, stored.model_path) == (str(tmp_path), None)
    here = results(edgeembed("search", shelf / "2.png", "--index", out, "--model", bundle, "--json").stdout)
    assert here[0]["path"] == str(shelf / "2.png")
    shutil.move(shelf, tmp_path / "device" / "shelf")
    query, sheet = tmp_path / "device" / "shelf" / "2.png", tmp_path / "s.png"
    command = ["search", query, "--index", out, "--model", bundle, "--root", tmp_path / "device", "--sheet", sheet]
    assert results(edgeembed(*command, "--json").stdout)[0]["path"] == str(query)
    with Image.open(sheet) as image:
        assert len(image.getcolors(2**20) or []) > 50  # photographs, not grey tiles


def test_images_outside_the_root_and_a_root_without_use_are_refused(
    edgeembed: Run, bundle: Path, shelf: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e.safetensors"
    (tmp_path / "other").mkdir()
    done = edgeembed("embed", shelf, "--root", tmp_path / "other", "--model", bundle, "--out", out)
    assert done.code == 2
    assert "lies outside of --root" in one_line(done.stderr)
    assert not out.exists()
    assert edgeembed("embed", shelf, "--model", bundle, "--out", out).code == 0
    done = edgeembed("search", shelf / "0.png", "--index", out, "--model", bundle, "--root", tmp_path)
    assert done.code == 2
    assert "the index holds absolute paths" in one_line(done.stderr)
    done = edgeembed("search", shelf / "0.png", "--index", out, "--model", bundle, "--root", tmp_path / "none")
    assert "no such folder" in one_line(done.stderr)


@pytest.mark.usefixtures("no_bundled_models")
def test_search_without_a_model_opens_the_one_of_the_index(
    edgeembed: Run, bundle: Path, shelf: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e.safetensors"
    assert edgeembed("embed", shelf, "--model", bundle, "--out", out).code == 0
    done = edgeembed("search", shelf / "1.png", "--index", out, "--json")
    assert (done.code, json.loads(done.stdout)["model"]) == (0, "tiny")
    assert results(done.stdout)[0]["path"] == str(shelf / "1.png")


def test_search_without_a_model_takes_a_bundled_one_of_the_same_space(
    edgeembed: Run, make_bundle: MakeBundle, bundle: Path, shelf: Path, tmp_path: Path, no_bundled_models: Path
) -> None:
    out = tmp_path / "e.safetensors"
    assert edgeembed("embed", shelf, "--root", shelf, "--model", bundle, "--out", out).code == 0
    for name, space in (("another", "space-b"), ("student", "space-a")):
        shutil.move(make_bundle(name, space_id=space), no_bundled_models / name)
    done = edgeembed("search", shelf / "1.png", "--index", out, "--json")
    assert (done.code, json.loads(done.stdout)["model"]) == (0, "student")
    # Of several, the default one.
    shutil.move(make_bundle(DEFAULT_ARTIFACT, space_id="space-a"), no_bundled_models / DEFAULT_ARTIFACT)
    done = edgeembed("search", shelf / "1.png", "--index", out, "--json")
    assert (done.code, json.loads(done.stdout)["model"]) == (0, DEFAULT_ARTIFACT)


@pytest.mark.usefixtures("no_bundled_models")
def test_search_without_a_model_says_which_one_to_give(
    edgeembed: Run, make_bundle: MakeBundle, shelf: Path, tmp_path: Path
) -> None:
    out, gone = tmp_path / "e.safetensors", make_bundle("gone", space_id="space-z")
    assert edgeembed("embed", shelf, "--model", gone, "--out", out).code == 0
    shutil.rmtree(gone)
    done = edgeembed("search", shelf / "1.png", "--index", out)
    assert (done.code, done.stdout) == (2, "")
    line = one_line(done.stderr)
    for part in ("e.safetensors", "'gone'", "space-z", "--model"):
        assert part in line


def test_a_name_that_is_not_utf8_is_indexed_and_found(
    edgeembed: Run, bundle: Path, shelf: Path, tmp_path: Path
) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    pattern(9).save(shelf / "cafe.png")
    os.rename(shelf / "cafe.png", shelf / name)
    for options in ((), ("--root", shelf)):
        out = tmp_path / "e.safetensors"
        assert edgeembed("embed", shelf, "--model", bundle, "--out", out, *options).code == 0
        assert name in {os.path.basename(path) for path in read_embeddings(out).paths}
        found = edgeembed("search", shelf / name, "--index", out, "--model", bundle, "-k", 1)
        assert found.code == 0
        assert found.stdout.splitlines()[1].split()[:2] == ["1", "1.0000"]


def test_what_cannot_be_decoded_is_counted_and_named(edgeembed: Run, bundle: Path, shelf: Path, tmp_path: Path) -> None:
    whole = (shelf / "0.png").read_bytes()
    (shelf / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("F", (8, 8), 3.0).save(shelf / "deep.tif")
    huge = b"P5 60000 60000 255\n" + b"\0" * 1000
    (shelf / "huge.png").write_bytes(huge)
    Image.new("RGB", (1, 1)).save(shelf / "one.png")
    Image.new("RGB", (300, 1)).save(shelf / "row.png")
    done = edgeembed("embed", shelf, "--model", bundle, "--out", tmp_path / "e.safetensors", "--json")
    assert (done.code, json.loads(done.stdout)["images"]) == (0, 8)
    skipped = json.loads(done.stdout)["skipped"]
    assert [os.path.basename(line.split(":")[0]) for line in skipped] == ["cut.png", "deep.tif", "huge.png"]
    assert "which value is white" in skipped[1]
    assert "more pixels than the limit" in skipped[2]
